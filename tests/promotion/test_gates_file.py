"""gates.yaml: what may be written, its schema, and errors that name the line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.gates import Gate, decide
from mlflow_e2eai.promotion.gates_file import (
    GATES,
    SCHEMA,
    GatesFile,
    parse_policy,
    policy_from,
    read_policy,
    schema_text,
)
from mlflow_e2eai.promotion.policy import (
    INCOMPARABLE,
    METRICS,
    Policy,
    RequiredTarget,
    check_metric,
)

SHIPPED = read_policy(None).gates
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGl1HZVxQ6zVZqeqDL8OiwxstK04egqXvHNwUAlarHev ann"


def error_of(text: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        parse_policy(text, "gates.yaml")
    return str(caught.value)


# What may be written


def test_a_file_of_before_keeps_its_meaning():
    text = """
gates:
  - {metric: parity/failed, at_most: 0}
  - {metric: task/accuracy, at_least: 0.97}
  - {metric: task/drop, at_most: 0.01, optional: true}
quantized:
  - {metric: quantized/gain_ratio, at_most: 0.9}
"""
    assert parse_policy(text, "gates.yaml") == Policy(
        gates=(
            Gate(metric="parity/failed", bound="at_most", limit=0.0),
            Gate(metric="task/accuracy", bound="at_least", limit=0.97),
            Gate(metric="task/drop", bound="at_most", limit=0.01, optional=True),
        )
    )


def test_gates_select_variants_sizes_and_severity_and_targets_may_be_required():
    text = """
gates:
  - {metric: latency/p99_ms, at_most: 5, target: L4, precision: half, at: 8, severity: warn}
  - {metric: champion/file/size_bytes/ratio, at_most: 1.1, variant: onnxruntime-cpu/*}
required_targets:
  - {target: sm89, precision: fp16, tensorrt: "1.6*", max_age_days: 30}
  - {target: "trt11:sm90", severity: warn}
unmeasured: exclude
"""
    assert parse_policy(text, "gates.yaml") == Policy(
        gates=(
            Gate(
                metric="latency/p99_ms",
                bound="at_most",
                limit=5.0,
                target="sm89",
                precision="fp16",
                at=8,
                severity="warn",
            ),
            Gate(
                metric="champion/file/size_bytes/ratio",
                bound="at_most",
                limit=1.1,
                variant="onnxruntime-cpu/*",
            ),
        ),
        required_targets=(
            RequiredTarget(target="sm89", precision="fp16", tensorrt="1.6*", max_age_days=30.0),
            RequiredTarget(target="tensorrt11-sm90", severity="warn"),
        ),
        unmeasured="exclude",
    )


def test_the_shipped_gates_may_be_named_where_other_rules_differ():
    policy = parse_policy("gates: default\nunmeasured: exclude\n", "gates.yaml")

    assert policy == Policy(gates=SHIPPED, unmeasured="exclude")
    assert json.loads(schema_text())["properties"]["gates"]["anyOf"][0] == {"const": "default"}


def test_no_entries_are_no_gates():
    assert policy_from({"gates": []}) == Policy(gates=())


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_list_can_be_named(name):
    check_metric(name)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in INCOMPARABLE])
def test_a_metric_of_a_variant_can_be_compared(name):
    check_metric(f"champion/{name}/ratio")
    check_metric(f"champion/{name}/difference")


@pytest.mark.parametrize(
    "name",
    ["task/F1 (macro), 100 %//x", "task/accuracy/night", "parity/logits/cosine", "task/\n"],
)
def test_a_metric_that_a_bundle_may_have_can_be_named(name):
    check_metric(name)


# Errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            (
                "gates:\n  - {metric: parity/failed, at_most: 0}\n  - {metric: latency/p98_ms,\n"
                "     at_most: 1}\n"
            ),
            (
                "gates.yaml, line 3: There is no metric 'latency/p98_ms' that a gate could read; "
                "did you mean latency/p99_ms?"
            ),
        ),
        (
            "gates:\n  - metric: parity/failed\n    atmost: 0\n",
            "gates.yaml, line 3: 'atmost' is no key of an entry; did you mean 'at_most'?",
        ),
        ("gates: []\nunmesured: warn\n", "line 2: 'unmesured' is no key of gates;"),
        (
            "gates:\n  - metric: parity/failed\n    at_most: yes\n",
            "line 3: gates.0.at_most is True",
        ),
        ("gates:\n\n  - metric: parity/failed\n", "line 3: {'metric': 'parity/failed'} is no"),
        (
            "gates: []\nrequired_targets:\n  - target: sm90\n    tensorrt: 1.6\n",
            "line 4: required_targets.0.tensorrt is 1.6",
        ),
        ("gates: []\nrequired_targets:\n  - target: sm999\n", "line 3: No engine is for sm999"),
        (
            "gates:\n  - {metric: file/size_bytes, at_most: 1, at: 8}\n",
            "line 2: The gate on 'file/size_bytes' is at 8 items",
        ),
        (
            "gates:\n  - {metric: parity/failed, at_most: 0, precision: fp61}\n",
            "precision is 'fp61'",
        ),
        (
            "gates:\n  - {metric: task/drop, at_most: 1e-3}\n",
            "line 2: gates.0.at_most is the text '1e-3'; write 0.001, which YAML reads",
        ),
        (
            "gates:\n  - {metric: task/drop, at_most: 1e-7}\n",
            "write 1.0e-07, which YAML reads as a number.",
        ),
        ("gates:\n  - {aproval: release}\n", "no key of an entry; did you mean 'approval'?"),
        ("gates:\n  - 3\n", "line 2: gates.0 is 3, but a mapping such as {metric: "),
        ("gates: 3\n", "line 1: gates is 3, but a list is expected."),
        ("gates: []\nunmeasured: never\n", "line 2: unmeasured is 'never'"),
        ("gates:\n  - &a {metric: parity/failed, at_most: 0}\n  - *a\n", "line 3: an alias (*a)"),
        ("gates: []\ngates: []\n", "line 2: 'gates' is there twice, first in line 1"),
        ("gates: [\n", "gates.yaml, line 2: this is not YAML ("),
        ("gates: []\nx: !!python/name:os.system ''\n", "holds no plain values"),
        (f"gates: []\nkeys:\n  ann: {KEY}\n", "gates.yaml, line 2: No gate names a key of 'keys'"),
        (
            f"gates:\n\n  - {{approval: release, keys: [bob]}}\nkeys:\n  ann: {KEY}\n",
            "gates.yaml, line 3: The approval 'release' names the key 'bob', which is not under",
        ),
        (
            "gates:\n\n  - signed_by: [ann]\n",
            "yaml, line 3: The gate signed_by names the key",
        ),
        ("gates:\n\n  - approval: a b\n", "gates.yaml, line 3: 'a b' is no name of an approval"),
        (
            "gates:\n  - {approval: release, keys: [ann]}\nkeys:\n  ann: hi\n",
            "gates.yaml, line 4: 'hi' is no public key",
        ),
        ("", "line 1: Gates are a mapping with the key 'gates'"),
        ("gates: " + "[" * 5000, "too deep to read"),
        ("# " + "x" * 300_000, "has 300002 characters"),
    ],
    ids=range(27),
)
def test_an_error_is_one_sentence_that_names_the_line(text, message):
    assert message in error_of(text)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "gates",
        5,
        {},
        {"gates": None},
        {"gates": "metric"},
        {"gates": {"metric": "parity/failed", "at_most": 1}},
        {"gates": [], "champion_gates": [{"metric": "parity/failed", "at_most": 1}]},
        {"Gates": []},
        {1: 2, "gates": []},
    ],
    ids=str,
)
def test_what_is_no_list_of_gates_under_the_known_keys_is_refused(data):
    with pytest.raises(InvalidInputError):
        policy_from(data)


@pytest.mark.parametrize(
    "entry",
    [
        {"metric": "task/a"},
        {"at_most": 1},
        {"metric": "task/a", "at_most": "1"},
        {"metric": "task/a", "at_most": None},
        {"metric": "task/a", "at_most": True},
        {"metric": "task/a", "at_least": False},
        {"metric": "task/a", "at_most": [1]},
        {"metric": 1, "at_most": 1},
        {"metric": "task/a", "below": 1},
        {"metric": "task/a", "at_most": 1, "at_least": 0},
        {"metric": "task/a", "at_most": 1, "note": "x"},
        {"metric": "task/a", "at_most": 1, "optional": "yes"},
        {"metric": "task/a", "at_most": math.nan},
        {"metric": "task/a", "at_most": math.inf},
        {"metric": "task/a", "at_most": 10**400},
        {"metric": "task/a", "at_most": 1, "severity": "block it"},
        {"metric": "latency/p50_ms", "at_most": 1, "at": 0},
        {"metric": "latency/p50_ms", "at_most": 1, "at": 8.5},
        {"metric": "evidence/quick", "at_most": 0, "target": "sm89"},
        "a <= 1",
        ["a", "at_most", 1],
        None,
    ],
    ids=lambda entry: str(entry)[:60],
)
def test_what_is_no_gate_is_refused(entry):
    with pytest.raises(InvalidInputError):
        policy_from({"gates": [entry]})


@given(text=st.text(alphabet="gates:-{}[]&*!|>'\"#, \nmetricat_os0123.", max_size=60))
def test_any_text_is_a_policy_or_one_sentence(text):
    try:
        policy = parse_policy(text, "gates.yaml")
    except InvalidInputError as error:
        assert "Traceback" not in str(error)  # noqa: PT017 - most texts are wrong, and some are not
    else:
        assert isinstance(policy, Policy)


# The schema


def test_the_shipped_schema_is_that_of_the_code():
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "write it again: python -c 'from mlflow_e2eai.promotion.gates_file import *; "
        "Path(str(SCHEMA)).write_text(schema_text())'"
    )


def test_the_schema_names_every_key_that_a_file_may_have():
    schema = json.loads(schema_text())
    assert set(schema["properties"]) == {
        *("gates", "required_targets", "unmeasured", "keys", "quantized")
    }
    assert set(schema["$defs"]["GateEntry"]["properties"]) >= {"metric", "at_most", "severity"}
    assert schema["$defs"]["GateEntry"]["additionalProperties"] is False


def test_the_guide_names_every_key_and_metric():
    page = (Path(__file__).parents[2] / "docs" / "gates-file.md").read_text(encoding="utf-8")
    schema = json.loads(schema_text())
    keys = {key for each in (schema, *schema["$defs"].values()) for key in each["properties"]}

    assert {name for name in (*METRICS, *keys) if f"`{name}`" not in page} == set()


def test_an_editor_finds_the_schema_next_to_the_shipped_gates():
    first = GATES.read_text(encoding="utf-8").splitlines()[0]
    assert (Path(str(GATES)).parent / first.rpartition("=")[2]).is_file()


def test_the_models_refuse_what_the_reader_refuses():
    with pytest.raises(ValidationError):
        GatesFile.model_validate({"gates": [{"metric": "task/a", "at_most": True}]})


# The shipped gates


def test_the_shipped_gates_can_be_read_and_name_each_metric_once():
    names = [gate.metric for gate in SHIPPED]

    assert names
    assert len(set(names)) == len(names)
    assert read_policy(None).unmeasured == "block"
    assert yaml.safe_load(GATES.read_text(encoding="utf-8"))["unmeasured"] == "block"


GOOD = {
    "parity/failed": 0.0,
    "parity/measured": 3.0,
    "evidence/unverified": 0.0,
    "evidence/quick": 0.0,
    "evidence/assumptions": 0.0,
    "task/drop": 0.0,
}


def test_the_shipped_gates_promote_a_good_first_version():
    assert decide(SHIPPED, GOOD, has_champion=False).promoted


@pytest.mark.parametrize(
    ("metric", "bad"),
    [
        ("parity/failed", 1.0),
        ("parity/measured", 0.0),
        ("evidence/unverified", 1.0),
        ("evidence/quick", 1.0),
        ("evidence/assumptions", 2.0),
        ("task/drop", 0.5),
        ("champion/task_drop", 0.5),
        ("champion/latency_ratio", 2.0),
    ],
)
def test_each_shipped_gate_alone_can_stop_a_promotion(metric, bad):
    good = {**GOOD, "champion/task_drop": 0.0, "champion/latency_ratio": 1.0}

    assert decide(SHIPPED, good, has_champion=True).promoted
    assert not decide(SHIPPED, {**good, metric: bad}, has_champion=True).promoted
