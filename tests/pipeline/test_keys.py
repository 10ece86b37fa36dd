"""The key of a stage: the content of all that its result depends on, and nothing else."""

import dataclasses
import functools
import importlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_manifest import RAW_SHA, shown

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.artifacts.values import Library
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.pipeline import keys
from mlflow_e2eai.pipeline.earlier_runs import EarlierRuns
from mlflow_e2eai.pipeline.variant_stages import EvidenceKeys
from mlflow_e2eai.pytorch.module_code import module_code_digest


def test_no_two_values_have_one_key():
    values = [
        *(None, True, 1, 1.0, "1", b"1", [1], ["1"], [[1]], [], {}, {"a": 1}, {"a": "1"}),
        *([1, 2], [12], ["ab", "c"], ["a", "bc"], {"a": {}, "b": 1}, {"a": {"b": 1}}),
        *(np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, np.int64)),
        *(Axis("N", min=1, opt=1, max=2), Axis("N", min=1, opt=2, max=2)),
    ]
    found = [keys.stage_key("stage", value=value) for value in values]
    assert None not in found
    assert len(set(found)) == len(values)
    assert keys.stage_key("one", value=1) != keys.stage_key("other", value=1)


def test_a_value_of_unknown_content_has_no_key():
    for value in (object(), keys.UNKNOWN, [lambda: 1], {"a": object()}, np.array([object()])):
        assert keys.stage_key("stage", value=value) is None


def test_every_setting_is_part_of_a_key_or_named_here():
    """A new setting that no key has would be a change that goes unseen."""
    from mlflow_e2eai.pipeline.settings import Settings

    in_keys = {
        *("dynamic_axes", "samples_at", "exporter", "opset", "output_names", "operators"),
        *("operator_libraries", "surgery", "keep_fp32", "batch_sizes", "evidence"),
        *("plugin_libraries", "build_settings"),  # of the engine's key
    }
    # Each of these has stages of its own, or says what is reused.
    others = {"precisions", "targets", "rebuild", "fresh", "evidence_days"}
    assert {field.name for field in dataclasses.fields(Settings)} == in_keys | others


def test_the_digest_of_the_code_is_that_of_every_file_of_the_package(tmp_path, monkeypatch):
    before = keys.code_digest.__wrapped__()
    package = tmp_path / "mlflow_e2eai"
    shutil.copytree(Path(mlflow_e2eai.__file__).parent, package)
    monkeypatch.setattr(mlflow_e2eai, "__file__", str(package / "__init__.py"))
    assert keys.code_digest.__wrapped__() == before
    file = package / "precision" / "half.py"
    file.write_text(file.read_text() + "\n")
    assert keys.code_digest.__wrapped__() != before


@pytest.mark.parametrize("name", ["code_digest", "_versions"])
def test_other_code_and_other_libraries_are_another_key(name, monkeypatch):
    before = keys.stage_key("stage", value=1)
    monkeypatch.setattr(keys, name, lambda: "another")
    assert keys.stage_key("stage", value=1) != before


def test_a_path_stands_for_the_content_of_its_file(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"1")
    first = keys.stage_key("stage", file=one)
    assert keys.stage_key("stage", file=other) == first
    one.write_bytes(b"2")
    assert keys.stage_key("stage", file=one) != first


def test_an_array_stands_for_its_numbers():
    one, other = np.zeros(4), np.array([0.0, 0, 0, 1e-300])
    assert keys.stage_key("stage", array=one) == keys.stage_key("stage", array=np.zeros(8)[::2])
    assert keys.stage_key("stage", array=one) != keys.stage_key("stage", array=other)


def data(inputs, labels, metrics=None):
    example = {"x": np.zeros((1, 2), np.float32)}
    return EvaluationData.of((inputs, labels), example=example, metrics=metrics)


def test_evaluation_data_stands_for_its_inputs_labels_and_metrics():
    inputs = np.arange(8, dtype=np.float32).reshape(4, 2)
    digest = keys.data_digest(data(inputs, np.array([0, 1, 0, 1])))
    assert digest == keys.data_digest(data(inputs.copy(), np.array([0, 1, 0, 1])))
    assert digest != keys.data_digest(data(inputs, np.array([0, 1, 1, 1])))
    assert digest != keys.data_digest(data(inputs + 1, np.array([0, 1, 0, 1])))
    assert keys.data_digest(None) is None


def evidence_keys(sha256):
    """The keys of all evidence and of each variant, with an operator library of this digest."""
    library = Library(path=Path("operators.so"), sha256=sha256)
    described = shown()
    graphs = [dataclasses.replace(graph, libraries=(library,)) for graph in described.graphs]
    engines = [dataclasses.replace(engine, libraries=(library,)) for engine in described.engines]
    raw = dataclasses.replace(graphs[0], sha256=RAW_SHA, stage="export", parent_sha256=None)
    earlier = EarlierRuns(cache=NoCache(), folder=Path(), source="source")
    found = EvidenceKeys.for_pipeline(
        earlier,
        graphs,
        engines,
        {"x": np.zeros(2)},
        raw=raw,
        batch_sizes=(),
        level="quick",
        not_evaluated=[],
    )
    found.known(graphs, [], raw, "torch/fp32")
    return {"all": found.whole, **found.variants}


class NoCache:
    def find(self, *_, **__):
        return None


def test_evidence_has_another_key_where_an_operator_library_changed():
    before, after = evidence_keys("0" * 64), evidence_keys("1" * 64)
    assert before == evidence_keys("0" * 64)
    assert len(before) > 1
    assert not set(before.values()) & set(after.values())


def digest_with(metric):
    inputs, labels = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    return keys.data_digest(data(inputs, labels, {"ours": metric}))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a module of the caller's, and import it as a new process would."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(name, text):
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        os.utime(file, (len(names), len(names)))  # else Python may take the compiled one
        names.append(name)
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


FACTOR = 0.5


def plain(outputs, labels):
    return float(np.mean(outputs["y"] == labels)) * FACTOR


def tripled(function):
    @functools.wraps(function)
    def inner(outputs, labels):
        return 3 * function(outputs, labels)

    return inner


class Scored:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, outputs, labels):
        return self.weights

    def method(self, outputs, labels):
        return self.weights


def weighted(weights):
    def metric(outputs, labels):
        return float(np.sum(weights))

    return metric


def with_import(outputs, labels):
    from mlflow_e2eai.evaluation.metrics import accuracy as metric

    return metric(outputs, labels)


def cell_of_a_notebook(factor):
    surroundings = {"__name__": "__main__", "np": np}
    code = f"def metric(outputs, labels):\n    return {factor} + np.mean(labels)"
    exec(code, surroundings)  # noqa: S102 - as a notebook does
    return surroundings["metric"]


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    factor: float = 1.0

    def __call__(self, outputs, labels):
        return self.factor


METRICS = {
    "a function": lambda: plain,
    "a lambda": lambda: lambda *given: len(given),
    "a partial": lambda: functools.partial(plain, labels=np.ones(3)),
    "an object": lambda: Scored([1, 2]),
    "a dataclass": lambda: Described(2.0),
    "a method": lambda: Scored([1, 2]).method,
    "a closure": lambda: weighted(torch.ones(3)),
    "a decorated function": lambda: tripled(plain),
    "a function without gradients": lambda: torch.no_grad()(plain),
    "a function with an import": lambda: with_import,
    "a function of a notebook's cell": lambda: cell_of_a_notebook(1),
    "a function of numpy": lambda: np.mean,
    "a universal function": lambda: np.add,
    "a function of torch": lambda: torch.nn.functional.cross_entropy,
    "a loss of torch": torch.nn.CrossEntropyLoss,
}


@pytest.mark.parametrize("kind", METRICS)
def test_a_metric_of_every_common_kind_is_known_again(kind):
    digest = digest_with(METRICS[kind]())
    assert digest is not keys.UNKNOWN
    assert digest == digest_with(METRICS[kind]())


def test_metrics_that_differ_in_code_or_values_have_other_digests():
    metrics = [make() for make in METRICS.values()]
    metrics += [Scored([1, 3]), weighted(torch.zeros(3)), cell_of_a_notebook(2), tripled(np.mean)]
    metrics += [functools.partial(plain, labels=np.zeros(3)), lambda *given: -len(given)]
    digests = [digest_with(metric) for metric in metrics]
    assert keys.UNKNOWN not in digests
    assert len(set(digests)) == len(digests)


def test_a_module_that_is_imported_in_a_metric_is_part_of_its_digest(written):
    written("helper_of_metric", "def score():\n    return 0.25\n")
    metric = written(
        "lazy_metric",
        "def m(outputs, labels):\n    import helper_of_metric\n"
        "    return helper_of_metric.score()\n",
    ).m
    before = digest_with(metric)
    assert before is not keys.UNKNOWN
    written("helper_of_metric", "def score():\n    return 0.75\n")
    assert digest_with(metric) != before


def test_a_global_that_is_set_at_run_time_is_part_of_the_digest_of_a_metric(written, monkeypatch):
    module = written("metric_of_global", "T = 0.25\ndef m(outputs, labels):\n    return T\n")
    before = digest_with(module.m)
    assert before is not keys.UNKNOWN
    monkeypatch.setattr(module, "T", 0.75)
    assert digest_with(module.m) != before


def test_a_global_of_a_function_within_a_metric_is_part_of_its_digest(written, monkeypatch):
    text = "T = 0.25\ndef m(outputs, labels):\n    return sum(T for _ in labels)\n"
    module = written("metric_of_inner_global", text)
    before = digest_with(module.m)
    monkeypatch.setattr(module, "T", 0.75)
    assert digest_with(module.m) != before


def test_a_default_of_a_metric_is_part_of_its_digest():
    def thresholds(low, high):
        def metric(outputs, labels, at=low, *, below=high):
            return np.mean((labels > at) & (labels < below))

        return metric

    digests = {digest_with(thresholds(*both)) for both in ((0.1, 0.5), (0.2, 0.5), (0.1, 0.6))}
    assert len(digests) == 3


def test_the_code_that_runs_is_the_digest_of_a_metric_and_not_its_file(written, tmp_path):
    text = "def m(outputs, labels):\n    return 0.25\n"
    metric = written("edited_metric", text).m
    before = digest_with(metric)
    (tmp_path / "edited_metric.py").write_text(text.replace("0.25", "0.75"))
    assert digest_with(metric) == before
    edited = written("edited_metric", text.replace("0.25", "0.75")).m
    assert digest_with(edited) != before
    assert digest_with(metric) == before


def reads_a_file(outputs, labels):
    return float(Path("threshold.txt").read_text())


def opens_a_file(outputs, labels):
    with open("threshold.txt") as file:  # noqa: PTH123
        return len([*file])


def loads_an_array(outputs, labels):
    return np.load("threshold.npy").item()


def takes_the_environment(outputs, labels):
    return float(os.environ["THRESHOLD"])


def runs_a_text(outputs, labels):
    return eval("FACTOR")  # noqa: S307


@pytest.mark.parametrize(
    "metric",
    [
        *(reads_a_file, opens_a_file, loads_an_array, takes_the_environment, runs_a_text),
        functools.partial(plain, labels=Path("threshold.txt")),
        functools.partial(plain, labels=(each for each in [1])),
    ],
)
def test_a_metric_that_reads_what_no_digest_can_say_is_not_known(metric):
    assert digest_with(metric) is keys.UNKNOWN


def test_values_that_hold_themselves_have_no_key_and_long_numbers_and_mixed_sets_have_one():
    cyclic: list = []
    cyclic.append(cyclic)
    assert keys.stage_key("stage", tags={"a": cyclic}) is None
    one, other = ({"a": 10**5000 + rest, "b": {1, "b"}, "c": "\ud800"} for rest in (0, 1))
    assert keys.stage_key("stage", tags=one) is not None
    assert keys.stage_key("stage", tags=one) != keys.stage_key("stage", tags=other)


def test_the_methods_of_a_model_count_as_they_run_with_constants_of_several_kinds(
    written, monkeypatch
):
    text = (
        "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x, mode='a'):\n"
        "        return x if mode in {'a', ('b', 1), 2} else -x\n"
    )
    module = written("model_of_sets", text)
    before = module_code_digest(module.Net())
    assert before is not None
    assert module_code_digest(module.Net()) == before

    monkeypatch.setattr(module.Net, "forward", lambda _self, x, **_others: -x)
    assert module_code_digest(module.Net()) != before
