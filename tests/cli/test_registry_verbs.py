"""The verbs of a registered model's versions and aliases, on a real store."""

from __future__ import annotations

import json
import shutil
import subprocess

import mlflow
import pandas as pd
import pytest
from rated_bundles import GATES, register, save

import mlflow_e2eai
from mlflow_e2eai.cli import main
from mlflow_e2eai.promotion.registry import drift
from mlflow_e2eai.report import canvas

pytestmark = pytest.mark.usefixtures("on_threads")

APPROVED = {"gates": [{"approval": "release"}, *GATES["gates"]]}


@pytest.fixture(scope="module")
def empty_store(empty_store, on_threads, tmp_path_factory):
    """A database that each test gets a copy of: three versions, of which the first is champion."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(canvas, "png", lambda *_: b"")
        patch.setattr(canvas, "svg", lambda *_: "<svg/>")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("versions", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("versions")
        saved = save(folder / "saved")
        for number, accuracy in enumerate((0.9, 1.0, 0.1)):
            register(saved, folder / str(number), accuracy=accuracy)
        mlflow_e2eai.promote("digits", 1, gates=GATES)
        mlflow.set_tracking_uri(before)
    return folder / "mlflow.db"


@pytest.fixture
def digits(store):
    """The client of a store with the three versions; the third passes no gate."""
    return store


@pytest.fixture
def run(capsys):
    """Run a verb: its exit code, and what it printed."""

    def run_verb(words):
        capsys.readouterr()
        code = main.main(words if isinstance(words, list) else words.split())
        printed = capsys.readouterr()
        return code, printed.out.strip(), printed.err.strip()

    return run_verb


@pytest.fixture
def keys(tmp_path):
    """Paths of two private keys, and the public key of the first."""
    paths = [tmp_path / "ann", tmp_path / "bob"]
    for path in paths:
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(words, check=True, timeout=60)
    return *paths, (tmp_path / "ann.pub").read_text().strip()


def move_by_hand(store, version, alias="champion"):
    store.set_registered_model_alias("digits", alias, version)


def holder(store, alias="champion"):
    return str(store.get_registered_model("digits").aliases.get(alias))


@pytest.mark.parametrize(
    "words", ["models:/digits/1", "digits 1", "models:/digits@champion", "models:/digits/1 latest"]
)
def test_explain_shows_the_stored_decision_of_a_version_however_it_is_named(digits, run, words):
    code, out, err = run(f"explain {words}")

    lines = out.splitlines()
    assert code == main.DONE
    assert err == ""
    assert lines[0] == "Version 1 of digits: promoted for @champion"
    assert lines[1].endswith(f"mlflow_e2eai {mlflow_e2eai.__version__}")
    assert " UTC, by " in lines[1]
    assert any(line.startswith("  passed  task/accuracy = 0.9 (") for line in lines)


def test_explain_without_words_takes_the_newest_version(digits, run):
    mlflow.set_experiment("versions")
    code, _, err = run("explain")

    assert code == main.ERROR
    latest, sentence = err.splitlines()
    assert latest == "latest is models:/digits/3"
    assert sentence == (
        "mlflow_e2eai: Nothing was decided about version 3 of 'digits' yet; promote it with "
        "`mlflow_e2eai promote digits 3`."
    )


def test_a_decision_whose_file_is_gone_is_named_with_its_run(digits, run, tmp_path):
    mlflow_e2eai.promote("digits", 2, gates=GATES)
    run_id = digits.get_model_version("digits", "2").tags["e2eai.decision_run"]
    (file,) = tmp_path.rglob(f"{run_id}/artifacts/decision.json")
    file.unlink()

    code, _, err = run("explain digits 2")

    assert code == main.ERROR
    assert f"is no longer in run {run_id}" in err
    assert len(err.splitlines()) == 1


def test_redecide_says_0_where_the_decision_is_the_same_today_and_3_where_it_is_not(digits, run):
    code, out, _ = run("redecide digits 1")
    assert code == main.DONE
    assert out == "Version 1 of digits: the decision would be the same today (promoted)"

    mlflow_e2eai.approve("digits", 2, as_="release")
    mlflow_e2eai.promote("digits", 2, gates=APPROVED)
    mlflow_e2eai.reject("digits", 2, as_="release")
    code, out, _ = run("redecide digits 2")
    assert code == main.NOT_PASSED
    title, difference = out.splitlines()
    assert title == "Version 2 of digits: the decision would be another today (rejected)"
    assert "then passed  approval/release: Approved as 'release' by" in difference
    assert "now failed  approval/release: it was Rejected as 'release' by" in difference


def test_history_is_a_table_with_times_in_utc_and_a_day_selects_from_it(digits, run):
    mlflow_e2eai.promote("digits", 2, gates=GATES)

    code, out, err = run("history digits --alias champion")
    head, _, first, second = out.splitlines()
    assert (code, err) == (main.DONE, "")
    assert head.split() == ["when", "alias", "version", "before", "kind", "by", "reason"]
    assert first.split()[2:7] == ["UTC", "@champion", "1", "none", "promotion"]
    assert second.split()[2:7] == ["UTC", "@champion", "2", "1", "promotion"]
    assert second.endswith("every gate passed")

    assert run("history digits --on 2020-02-29")[1] == (
        "No move of an alias of digits is on record."
    )
    assert run("history digits --on 9999-12-30")[1].splitlines()[2:] == [second]


def test_an_approval_lets_the_gate_pass_and_names_the_command_before(digits, run, tmp_path):
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{approval: release}]")
    promote = f"promote digits 2 --gates {gates}"

    code, out, _ = run(promote)
    assert code == main.NOT_PASSED
    assert "to pass: mlflow_e2eai approve digits 2 --as release" in out.splitlines()

    code, out, _ = run("approve digits 2 --as release")
    assert code == main.DONE
    assert out.startswith("digits 2: Approved as 'release' by ")
    assert out.endswith(" UTC")
    assert run(promote)[0] == main.DONE
    assert holder(digits) == "2"


def test_a_rejection_is_final(digits, run):
    code, out, _ = run("reject models:/digits/2 --as release")
    assert code == main.DONE
    assert out.startswith("digits 2: Rejected as 'release' by ")

    code, _, err = run("approve digits 2 --as release")
    assert code == main.ERROR
    assert err.endswith("That is final; log a new version.")


def test_only_an_approval_that_is_signed_by_a_named_key_counts(digits, run, keys, tmp_path):
    ann, bob, public = keys
    gates = tmp_path / "gates.yaml"
    gates.write_text(f"gates: [{{approval: release, keys: [ann]}}]\nkeys: {{ann: {public}}}")
    promote = f"promote digits 2 --gates {gates}"

    run("approve digits 2 --as release")
    code, out, _ = run(promote)
    assert code == main.NOT_PASSED
    assert "is not signed (gate: Approved, signed by ann)" in out

    run(f"approve digits 2 --as release --key {bob}")
    code, out, _ = run(promote)
    assert code == main.NOT_PASSED
    assert "the signature is not by any of the keys ann (gate: Approved, signed by ann)" in out
    assert "to pass: mlflow_e2eai approve digits 2 --as release --key FILE" in out.splitlines()

    assert run(f"approve digits 2 --as release --key {ann}")[1].endswith(" UTC, signed")
    assert run(promote)[0] == main.DONE


def test_guard_says_3_for_an_alias_that_was_moved_by_hand_and_puts_it_back(digits, run):
    code, out, _ = run("guard digits")
    assert code == main.DONE
    assert out.startswith("@champion points to version 1, as decided by ")

    move_by_hand(digits, 3)
    code, out, _ = run("guard digits")
    assert code == main.NOT_PASSED
    assert out.startswith("@champion points to version 3, moved by hand: the last decision, by ")

    code, out, _ = run("guard --name digits --restore")
    assert code == main.NOT_PASSED
    assert out.endswith("put it at version 1; it was put back")
    assert holder(digits) == "1"
    assert run("guard digits")[0] == main.DONE
    assert run("history digits")[1].endswith("@champion was moved to version 3 by hand")


def test_an_alias_that_was_deleted_is_put_back_and_one_of_no_decision_is_left_alone(digits, run):
    digits.delete_registered_model_alias("digits", "champion")
    move_by_hand(digits, 3, alias="mine")

    code, out, _ = run("guard digits --restore")

    assert code == main.NOT_PASSED
    gone, mine = out.splitlines()
    assert gone.startswith("@champion points to no version, deleted by hand")
    assert mine == "@mine points to version 3, and no decision on record put it there"
    assert (holder(digits), holder(digits, "mine")) == ("1", "3")


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_ends_at_the_first_move_by_hand(digits, run, monkeypatch, as_json):
    monkeypatch.setattr(drift.time, "sleep", lambda _: move_by_hand(digits, 3))

    code, out, _ = run(["watch", "digits", "--every", "0.1", *(["--json"] if as_json else [])])

    assert code == main.NOT_PASSED
    first, second = out.splitlines()
    if as_json:
        standings = [json.loads(line)["aliases"][0]["standing"] for line in (first, second)]
        assert standings == ["as decided", "moved by hand"]
    else:
        assert first.startswith("@champion points to version 1, as decided by ")
        assert second.startswith("@champion points to version 3, moved by hand: ")


def test_watch_that_puts_back_goes_on_until_ctrl_c(digits, run, monkeypatch):
    looks = []

    def sleep(_):
        looks.append(holder(digits))
        if len(looks) == 3:
            raise KeyboardInterrupt
        move_by_hand(digits, 3)

    monkeypatch.setattr(drift.time, "sleep", sleep)

    code, out, err = run("watch digits --restore")

    assert code == main.INTERRUPTED
    assert looks == ["1", "1", "1"]
    assert out.splitlines()[-1].endswith("it was put back")
    assert "To continue: mlflow_e2eai watch digits --restore" in err


def test_rollback_goes_back_and_says_from_where(digits, run):
    mlflow_e2eai.promote("digits", 2, gates=GATES)

    code, out, _ = run("rollback digits")

    assert code == main.DONE
    assert out == "rolled back: digits 1 is champion again, before 2"
    assert holder(digits) == "1"
    assert run("rollback digits --to 2")[1] == "rolled back: digits 2 is champion again, before 1"


def test_several_aliases_roll_back_together(digits, run):
    both = ["champion", "blue"]
    for version in (1, 2):
        mlflow_e2eai.promote("digits", version, alias=both, gates=GATES)

    code, out, _ = run("rollback digits --alias champion,blue --json")

    assert code == main.DONE
    assert [(move["alias"], move["after"]) for move in json.loads(out)["moves"]] == [
        ("blue", "1"),
        ("champion", "1"),
    ]
    assert run("rollback digits --alias champion,blue --to 2")[1].splitlines() == [
        "rolled back: digits 2 is blue again, before 1",
        "rolled back: digits 2 is champion again, before 1",
    ]


def test_an_alias_that_was_gone_was_at_no_version_before(digits, run):
    digits.delete_registered_model_alias("digits", "champion")

    assert run("rollback digits")[1] == (
        "rolled back: digits 1 is champion again, before no version"
    )


@pytest.mark.parametrize(
    "words",
    [
        "approve digits 2 --as release",
        "reject digits 2 --as release",
        "promote digits 2 --gates gates.yaml",
        "rollback digits --alias blue",
        "guard digits --restore",
    ],
)
def test_a_registry_that_is_read_only_is_one_sentence_that_names_it(digits, run, tmp_path, words):
    if not mlflow.get_tracking_uri().startswith("sqlite:"):
        pytest.skip("a server has its database for itself")
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{metric: task/accuracy, at_least: 0.1}]")
    for version in (1, 2):
        mlflow_e2eai.promote("digits", version, alias="blue", gates=str(gates))
    move_by_hand(digits, 3)
    registry = f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true"
    mlflow.set_tracking_uri(registry)

    code, _, err = run(words.replace("gates.yaml", str(gates)))

    assert code == main.ERROR
    assert err == (
        f"mlflow_e2eai: The registry {registry} is read-only (attempt to write a readonly "
        "database); set MLFLOW_TRACKING_URI to one that your user may write to, and repeat the "
        "call."
    )


def test_an_alias_that_there_is_not_is_one_sentence_with_the_nearest(digits, run):
    sentence = "mlflow_e2eai: There is no version '@chmpion' of 'digits'; did you mean @champion?"

    for words in (
        "explain digits@chmpion",
        "redecide models:/digits@chmpion",
        "compare digits chmpion,1",
    ):
        code, _, err = run(words)
        assert (code, err) == (main.ERROR, sentence)
    assert ".." not in run("explain digits 99")[2]


def test_rollback_to_a_version_that_does_not_pass_today_is_refused(digits, run, tmp_path):
    mlflow_e2eai.promote("digits", 2, gates=GATES)
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{metric: task/accuracy, at_least: 0.95}]")

    code, _, err = run(f"rollback digits --gates {gates}")

    assert code == main.ERROR
    assert "Version 1 of 'digits'" in err
    assert "does not pass its gates today: task/accuracy = 0.9 (" in err
    assert holder(digits) == "2"
    assert "evidence/quick" in run("rollback digits --gates default")[2]


def test_several_aliases_move_together(digits, run, tmp_path):
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{metric: task/accuracy, at_least: 0.5}]")

    code, out, _ = run(f"promote digits 2 --alias champion,champion-sm89 --gates {gates}")

    assert code == main.DONE
    assert out.endswith("promoted: digits 2 is champion, champion-sm89")
    assert holder(digits) == holder(digits, "champion-sm89") == "2"


def test_the_best_of_several_versions_is_promoted_and_each_is_headed(digits, run, tmp_path):
    gates = tmp_path / "gates.yaml"
    gates.write_text("gates: [{metric: task/accuracy, at_least: 0.5}]")
    promote = f"promote digits 2,3 --goal task/accuracy --gates {gates}"

    code, out, _ = run(f"{promote} --dry-run")
    lines = out.splitlines()
    assert code == main.DONE
    assert lines[0] == "version 2:"
    assert "promoted: digits 2 would become champion" in lines
    assert lines[-1].startswith("rejected: task/accuracy = 0.1 (")
    assert holder(digits) == "1"

    assert run(promote)[0] == main.DONE
    assert holder(digits) == "2"


def test_results_are_data_with_json(digits, run):
    def data(words, code=main.DONE):
        found, out, _ = run(f"{words} --json")
        assert found == code
        return json.loads(out)

    record = data("explain digits 1")
    assert (record["format_version"], record["name"], record["aliases"]) == (
        1,
        "digits",
        ["champion"],
    )
    assert record["decision"]["verdicts"][0]["found"] == 0.9
    today = data("redecide digits 1")
    assert (today["promoted"], today["differs"], today["then"]["promoted"]) == (True, False, True)
    statement = data("approve digits 2 --as release")
    assert (statement["answer"], statement["signature"]) == ("Approved", None)
    mlflow_e2eai.promote("digits", 2, gates=APPROVED)
    assert [move["after"] for move in data("history digits")["moves"]] == ["1", "2"]
    assert data("rollback digits")["after"] == "1"
    move_by_hand(digits, 3)
    (alias,) = data("guard digits", main.NOT_PASSED)["aliases"]
    assert (alias["standing"], alias["version"], alias["decided"]) == ("moved by hand", "3", "1")
    assert data("reject digits 2 --as release")["answer"] == "Rejected"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("explain models:/digits/9", main.ERROR, "There is no version 9 of 'digits'"),
        ("explain digits/9", main.ERROR, "There is no version 9 of 'digits'"),
        (
            "explain models:/digits@nobody",
            main.ERROR,
            "There is no version '@nobody' of 'digits'",
        ),
        (
            "explain digits@nobody",
            main.ERROR,
            "There is no version '@nobody' of 'digits'",
        ),
        ("explain runs:/a/b 1", main.USAGE, "the version is given twice; leave 1 out"),
        ("explain runs:/a/b", main.ERROR, "'runs:/a/b' does not name a version; give models:/na"),
        ("explain digits seven", main.USAGE, "must be a positive integer, got 'seven'"),
        ("redecide digits 3", main.ERROR, "Nothing was decided about version 3 of 'digits' yet"),
        ("history nothing", main.ERROR, "There is no registered model 'nothing'"),
        ("history digits --alias champoin", main.ERROR, "did you mean champion?"),
        ("history digits --on yesterday", main.ERROR, "'yesterday' is no date; give one such as"),
        ("approve digits --as release", main.USAGE, "VERSION is missing; give it after the name"),
        ("approve digits 2", main.USAGE, "approve: --as is missing: name of the approval"),
        ("approve digits 2 --as no/word", main.ERROR, "'no/word' is no name of an approval"),
        ("approve digits 2 --as a --key no.key", main.ERROR, "Cannot read the key no.key: No such"),
        ("approve digits 9 --as release", main.ERROR, "There is no version 9 of 'digits'"),
        ("guard nothing", main.ERROR, "There is no registered model 'nothing'"),
        ("guard digits --name other", main.USAGE, "the name is given twice; leave --name out"),
        ("watch digits --every 0", main.USAGE, "'0' is not a number of seconds above 0"),
        ("rollback digits", main.ERROR, "@champion of 'digits' pointed to no version before"),
        (
            "rollback digits --to 1",
            main.ERROR,
            "@champion of 'digits' points to version 1 already.",
        ),
        ("rollback digits --to 2", main.ERROR, "never pointed to version 2 (it pointed to 1)"),
        ("rollback digits --alias champoin", main.ERROR, "did you mean champion?"),
        ("promote digits 1 --name digits", main.USAGE, "the name is given twice; leave --name out"),
        ("promote digits 1,2", main.ERROR, "Several versions are given and no goal"),
    ],
)
def test_a_wrong_word_is_one_sentence_and_moves_nothing(digits, run, words, code, sentence):
    runs = len(mlflow.search_runs(search_all_experiments=True, output_format="list"))

    found, out, err = run(words)

    assert (found, out) == (code, "")
    assert err.startswith("mlflow_e2eai: ")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert holder(digits) == "1"
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == runs


def test_the_result_alone_is_printed_when_it_is_to_be_quiet(digits, run):
    mlflow_e2eai.promote("digits", 2, gates=GATES)

    code, out, err = run("rollback digits --quiet")

    assert (code, err) == (main.DONE, "")
    assert out == "rolled back: digits 1 is champion again, before 2"


def test_versions_are_a_table_with_the_aliases_and_the_decision(digits, run):
    digits.set_registered_model_alias("digits", "blue", "2")
    code, table, _ = run("list digits")
    head, *rows = [line.split() for line in table.splitlines()]

    assert code == 0
    assert head[:4] == ["version", "aliases", "decision", "created"]
    assert [row[0] for row in rows] == ["3", "2", "1"]
    assert rows[1][1:3] == ["blue", "-"]
    assert rows[2][1:3] == ["champion", "promoted"]


@pytest.mark.usefixtures("digits")
def test_versions_are_compared_a_line_for_each_variant_and_version(run):
    code, table, _ = run("compare digits 1,@champion,3")
    head, *rows = [line.split() for line in table.splitlines()]
    own = [row for row in rows if row[1] == "onnxruntime-cpu/fp32"]

    assert code == 0
    assert {row[0] for row in own} == {"1", "champion", "3"}
    assert "machine" not in head
    accuracy = head.index("task/accuracy")
    assert {row[0]: float(row[accuracy]) for row in own} == {"1": 0.9, "champion": 0.9, "3": 0.1}
    code, text, _ = run("compare digits 1,2 --json")
    assert {row["version"] for row in json.loads(text)["rows"]} == {"1", "2"}


def test_a_name_with_a_quote_is_promoted_found_and_explained(digits, run, tmp_path):
    name = "the team's digits"
    digits.copy_model_version("models:/digits/1", name)
    (tmp_path / "gates.yaml").write_text(json.dumps(GATES))

    code, text, error = run(["promote", name, "1", "--gates", str(tmp_path / "gates.yaml")])
    assert code == 0, error
    assert text.splitlines()[-1] == f"promoted: {name} 1 is champion"
    assert run(["explain", name, "1"])[0] == 0
    assert "champion" in run(["history", name])[1]
    assert run(["list", name])[1].splitlines()[1].split()[:3] == ["1", "champion", "promoted"]


def test_a_time_of_a_busy_machine_is_not_compared(capsys):
    from mlflow_e2eai.cli.listings import print_comparison

    row = dict.fromkeys(("max_abs_error", "ratio", "ratio_low", "ratio_high"), 1.0)
    about = {"variant": "a", "items": 8, "outcome": "passed", "p50_ms": 12.5, **row}
    machines = [("1", "here", False), ("2", "there", True)]
    rows = [{**about, "version": v, "machine": m, "busy": busy} for v, m, busy in machines]
    print_comparison(pd.DataFrame(rows), {})
    first, second = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]

    assert (first[2], second[2]) == ("here", "there")
    assert (first[6], second[6]) == ("12.5", "-")


RULES = """
gates:
  - {metric: task/accuracy, at_least: 0.9, severity: warn}
  - {metric: latency/p50_ms, at_most: 2, precision: fp16, at: 8}
  - {metric: task/drop, at_most: 0.01, optional: true}
  - {approval: release}
required_targets:
  - {target: sm89, precision: fp16, tensorrt: 1.6*, max_age_days: 30}
unmeasured: warn
"""


def test_a_file_of_gates_is_checked_and_shown_rule_by_rule(run, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(RULES)
    code, text, _ = run(["gates", str(path)])

    assert code == 0
    assert text.splitlines() == [
        "warn    task/accuracy: at least 0.9",
        "block   latency/p50_ms (fp16 at 8): at most 2",
        "block   task/drop: at most 0.01; only where there is data",
        "block   an engine for sm89 in fp16 that passed there of TensorRT 1.6* at most 30 days ago",
        "block   the approval release",
        "warn    engines that were not measured on a GPU of their target",
    ]
    path.write_text(RULES.replace("at_least: 0.9", "at_lest: 0.9"))
    code, _, error = run(["gates", str(path)])
    assert code == 1
    assert "gates.yaml, line 3: 'at_lest' is no key of an entry; did you mean 'at_least'?" in error


def test_the_gates_of_this_package_are_shown_where_no_file_is_named(run):
    code, text, _ = run("gates")
    assert code == 0
    assert "block   parity/failed: at most 0" in text.splitlines()


def test_every_gpu_is_listed_with_its_target_and_where_that_is_built(run):
    code, text, _ = run("targets")
    lines = {line.split()[0]: line for line in text.splitlines()}

    assert code == 0
    assert lines["sm80"].split(maxsplit=4)[1:] == ["sm80,", "built", "anywhere", "A100, A30"]
    assert "trt:sm90, built on it" in lines["sm90"]
    assert "too old" in lines["sm70"]
    code, text, _ = run("targets --json")
    rows = {row["gpu"]: row for row in json.loads(text)["targets"]}
    assert (rows["L4"]["target"], rows["L4"]["built"]) == ("sm89", "anywhere")
    assert rows["V100"]["target"] is None
