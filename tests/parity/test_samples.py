"""What variants are asked: evaluation data in any form, task metrics on it, and edge samples."""

from __future__ import annotations

import dataclasses
import weakref
from itertools import pairwise

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.metrics import MetricValue
from mlflow.models import make_metric
from small_models import AXES, N, features, labelled, net
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.artifacts.values import InputOrigin, OnnxArtifact, Origins, TensorSpec
from mlflow_e2eai.bundle.manifest import read
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation import data as evaluation_data
from mlflow_e2eai.evaluation.data import EvaluationData, calls
from mlflow_e2eai.evaluation.metrics import accuracy, scores, task_metrics
from mlflow_e2eai.parity.samples import branch_samples, edge_samples, turned_samples

pytestmark = pytest.mark.usefixtures("on_threads")

X = features(40)
LABELS = np.arange(40) % 3
EXAMPLE = {"x": X[:4]}


def graph(*axes, shape=("N", 8), dtype="float32"):
    return OnnxArtifact(
        path=None,
        sha256="",
        parent_sha256=None,
        stage="clean",
        precision="fp32",
        opset=18,
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
        outputs=(),
        axes=axes,
    )


def all_of(data):
    """Everything that one pass over the data gives, in one piece."""
    batches = list(data.batches())
    inputs = {name: np.concatenate([found[name] for found, _ in batches]) for name in data.names}
    return inputs, np.concatenate([labels for _, labels in batches])


# The forms of evaluation data

COLUMNS = [f"feature_{at}" for at in range(8)]
TABLE = pd.DataFrame(X, columns=COLUMNS).assign(label=LABELS)
IMAGES = pd.DataFrame({"x": list(X), "label": LABELS})

FORMS = {
    "a pair of arrays": (X, LABELS),
    "a pair by name": ({"x": X}, LABELS),
    "a pair of tensors": (torch.from_numpy(X), torch.from_numpy(LABELS)),
    "labels in a list": ((X,), LABELS.tolist()),
    "a table and its column": (TABLE, "label"),
    "a table and labels beside it": (TABLE[COLUMNS], TABLE["label"]),
    "a table of doubles": (TABLE.astype(dict.fromkeys(COLUMNS, np.float64)), "label"),
    "a table of tensors": (IMAGES, "label"),
    "a loader": DataLoader(
        TensorDataset(torch.from_numpy(X), torch.from_numpy(LABELS)), batch_size=7
    ),
    "a list of batches": [(X[:30], LABELS[:30]), (X[30:], LABELS[30:])],
    "a callable": lambda: ((X[at : at + 8], LABELS[at : at + 8]) for at in range(0, 40, 8)),
    "a callable that reads tables": lambda: (
        (TABLE[at : at + 9], "label") for at in (0, 9, 18, 27, 36)
    ),
    "an MLflow dataset of arrays": mlflow.data.from_numpy(X, targets=LABELS),
    "an MLflow dataset by name": mlflow.data.from_numpy({"x": X}, targets=LABELS),
    "an MLflow dataset of a table": mlflow.data.from_pandas(TABLE, targets="label"),
    "an MLflow dataset with predictions": mlflow.data.from_pandas(
        TABLE.assign(guess=0), targets="label", predictions="guess"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_data_is_read_from_any_form_any_number_of_times(form):
    data = EvaluationData.of(FORMS[form], example=EXAMPLE)
    for _ in range(2):
        inputs, labels = all_of(data)
        np.testing.assert_allclose(inputs["x"], X, rtol=0, atol=0)
        np.testing.assert_array_equal(labels, LABELS)
    assert dict(data.metrics) == {"accuracy": accuracy}


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_is_asked_in_its_own_dtype(form):
    data = EvaluationData.of(FORMS[form], example=EXAMPLE)
    asked = [inputs["x"] for inputs, _, _ in calls(data, graph(N), EXAMPLE)]
    assert {array.dtype.name for array in asked} == {"float32"}
    np.testing.assert_array_equal(np.concatenate(asked), X)


@pytest.mark.parametrize(
    "given",
    [
        X,
        (X, None),
        {"x": X},
        TABLE[COLUMNS],
        DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=9),
        DataLoader(torch.from_numpy(X), batch_size=9),
        mlflow.data.from_numpy(X),
        mlflow.data.from_pandas(TABLE[COLUMNS]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_without_labels_there_are_no_task_metrics(given):
    data = EvaluationData.of(given, example=EXAMPLE)
    assert [labels for _, labels, _ in calls(data, graph(N), EXAMPLE)] == [None] * 3 + (
        [None] * 2 if isinstance(given, DataLoader) else []
    )
    assert dict(data.metrics) == {}
    assert scores(None, calls(data, graph(N), EXAMPLE), data.metrics) == {}


def test_whole_numbers_in_a_table_are_floating_where_the_input_is():
    table = pd.DataFrame({"x": [1, 2], "ids": [3, 4]})
    example = {"x": np.ones(2, np.float32), "ids": np.ones(2, np.int32)}
    ((inputs, _),) = EvaluationData.of(table, example=example).batches()
    assert (inputs["x"].dtype, inputs["ids"].dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(inputs["x"], [1, 2])


def test_inputs_without_names_are_taken_in_the_examples_order():
    example = {"b": X[:4], "a": X[:4, :2]}
    data = EvaluationData.of(((X, X[:, :2]), LABELS), example=example)
    inputs, _ = all_of(data)
    np.testing.assert_array_equal(inputs["b"], X)
    np.testing.assert_array_equal(inputs["a"], X[:, :2])


def test_data_for_a_cleaned_graph_has_its_names_and_types():
    before = InputOrigin(name="x", dtype="float32", scale=(0.25,))
    spec = TensorSpec(name="pixels", dtype="uint8", shape=("N", 3))
    origins = Origins(inputs=(before,), outputs=())
    cleaned = dataclasses.replace(graph(N), inputs=(spec,), origins=origins)
    x = np.array([[0, 0.5, 2]], np.float32)
    data = EvaluationData.of(x, example={"x": x}).for_graph(cleaned)
    data.check_names(["pixels"])
    ((inputs, _),) = data.batches()
    np.testing.assert_array_equal(inputs["pixels"], np.array([[0, 2, 8]], np.uint8))
    with pytest.raises(InvalidInputError, match=r"\['pixels'\], but \['x'\] are expected"):
        data.check_names(["x"])


def test_ragged_labels_stay_python_objects():
    boxes = [{"boxes": np.ones((count, 4))} for count in range(3)]
    data = EvaluationData.of((X[:3], boxes), example=EXAMPLE, metrics={"mAP": lambda *_: 0.5})
    ((_, labels),) = data.batches()
    assert labels.shape == (3,)
    assert [len(label["boxes"]) for label in labels] == [0, 1, 2]
    data = EvaluationData.of((X[:2], [[1], [2, 3]]), example=EXAMPLE, metrics={"wer": lambda *_: 1})
    ((_, labels),) = data.batches()
    assert list(labels) == [[1], [2, 3]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (((X, LABELS) for _ in range(2)), "generator, which can be read only once"),
        (iter([(X, LABELS)]), "give a DataLoader, a list of batches, or a callable"),
        (TensorDataset(torch.from_numpy(X)), "TensorDataset; give .* a DataLoader"),
        (3, "is a int; give"),
        ("data.csv", "is a str; give"),
        ((X, LABELS, LABELS), "3 parts"),
        ([(X, LABELS, LABELS)], "3 parts"),
        ([], "has no batches"),
        (list, "has no batches"),
        (({"y": X}, LABELS), r"\['y'\], but \['x'\] are expected"),
        (((X, X), LABELS), "2 inputs"),
        ((X, {"a": LABELS, "b": LABELS}), r"a mapping of \['a', 'b'\]"),
        ((TABLE, "class"), "column is 'class', but the data has"),
        ((X, "label"), "column is 'label', but the data has ndarray"),
        ((TABLE[COLUMNS], LABELS[:39]), "give inputs and labels of one length"),
        ((X[:3], LABELS[:4]), "give inputs and labels of one length"),
        ((X[:0], LABELS[:0]), "at least one item"),
        ((np.float32(1), [1]), "tensor or a numeric NumPy array"),
        ((X, 1), "give inputs and labels of one length"),
        (TABLE[:0][COLUMNS], "has no batches"),
        (TABLE[COLUMNS].assign(name="one"), "columns for 'x' are not numbers"),
        ((X, X[:, 0]), "labels are float32, but accuracy needs integers"),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_any_work(given, words):
    with pytest.raises(InvalidInputError, match=words):
        EvaluationData.of(given, example=EXAMPLE)


def test_data_that_is_used_up_after_one_pass_is_found_out():
    class Once(IterableDataset):
        batches = iter([(X, LABELS)] * 2)

        def __iter__(self):
            return self.batches

    data = EvaluationData.of(DataLoader(Once(), batch_size=None), example=EXAMPLE)
    assert len(list(data.batches())) == 1  # the first was read to know the data
    with pytest.raises(InvalidInputError, match="iterated once per variant"):
        next(data.batches())


def test_a_batch_that_lacks_the_labels_of_the_others_is_refused():
    data = EvaluationData.of([(X, LABELS), (X, None)], example=EXAMPLE)
    with pytest.raises(InvalidInputError, match="has no labels"):
        list(data.batches())


# Streaming


class Batches:
    """Makes batches of a loader's items, and knows how many of them are alive."""

    def __init__(self):
        self.made = []

    def __call__(self, items):
        array = np.stack(items)
        self.made.append(weakref.ref(array))
        return array, np.arange(len(items)) % 3

    @property
    def alive(self):
        return sum(batch() is not None for batch in self.made)


def test_a_loader_is_streamed_and_no_batch_is_held():
    batches = Batches()
    items = DataLoader(list(features(400)), batch_size=8, collate_fn=batches)
    data = EvaluationData.of(items, example=EXAMPLE)
    at_one_time = [batches.alive for _ in calls(data, graph(N), EXAMPLE)]
    assert len(at_one_time) == 50
    # The one that is asked, and the one that is being read.
    assert 1 <= max(at_one_time) <= 2


def test_scores_hold_no_inputs():
    batches = Batches()
    items = DataLoader(list(features(400)), batch_size=8, collate_fn=batches)
    data = EvaluationData.of(items, example=EXAMPLE)
    at_one_time = []

    def infer(inputs):
        at_one_time.append(batches.alive)
        return {"y": inputs["x"][:, :3]}

    assert scores(infer, calls(data, graph(N), EXAMPLE), data.metrics).keys() == {"accuracy"}
    assert max(at_one_time) <= 2


def test_every_variant_is_asked_the_whole_loader_anew(tmp_path):
    module = net()
    inputs, labels = labelled(module, items=50)
    pairs = TensorDataset(torch.from_numpy(inputs["x"]), torch.from_numpy(labels))
    mlflow_e2eai.save_model(
        module,
        tmp_path / "model",
        input_example=EXAMPLE,
        dynamic_axes=AXES,
        evaluation_data=DataLoader(pairs, batch_size=17, shuffle=True),
    )
    evidence = {entry.variant: entry for entry in read(tmp_path / "model" / "bundle").evidence}
    assert evidence["torch/fp32"].task == {"accuracy": 1}
    assert evidence["onnxruntime-cpu/fp32"].task == {"accuracy": 1}
    # 17 + 17 + 16 items, and no call of more than 16
    assert evidence["onnxruntime-cpu/fp32"].parity["data"].samples == 5


# Calls


@pytest.mark.parametrize(
    ("axis", "sizes", "asked", "counted"),
    [
        (Axis("N", min=1, opt=4, max=16), [40], [16, 16, 8], [16, 16, 8]),
        (Axis("N", min=4, opt=4, max=16), [17, 3], [16, 4, 4], [16, 1, 3]),
        (Axis("N", min=16, opt=16, max=16), [20], [16, 16], [16, 4]),
        (Axis("N", min=4, opt=4, max=16, multiple=4), [21, 2], [16, 8, 4], [16, 5, 2]),
        (None, [6], [4, 4], [4, 2]),  # static: as many as the example
    ],
)
def test_batches_are_cut_into_calls_that_the_profile_admits(axis, sizes, asked, counted):
    starts = np.cumsum([0, *sizes])
    batches = [(X[start:end], LABELS[start:end]) for start, end in pairwise(starts)]
    data = EvaluationData.of(batches, example=EXAMPLE)
    wanted = graph(axis) if axis else graph(shape=(4, 8))
    found = list(calls(data, wanted, EXAMPLE))
    assert [len(inputs["x"]) for inputs, _, _ in found] == asked
    assert [count for _, _, count in found] == counted
    kept = np.concatenate([inputs["x"][:count] for inputs, _, count in found])
    np.testing.assert_array_equal(kept, X[: starts[-1]])
    known = np.concatenate([labels for _, labels, _ in found])
    np.testing.assert_array_equal(known, LABELS[: starts[-1]])


def test_what_fills_a_call_up_is_the_items_that_are_left():
    data = EvaluationData.of((X[:3], LABELS[:3]), example=EXAMPLE)
    ((inputs, labels, count),) = calls(data, graph(Axis("N", min=8, opt=8, max=8)), EXAMPLE)
    np.testing.assert_array_equal(inputs["x"], X[[0, 1, 2, 0, 1, 2, 0, 1]])
    assert (len(labels), count) == (3, 3)


def test_a_size_that_the_profile_does_not_admit_is_refused_by_its_axis():
    axes = (N, Axis("T", min=1, opt=4, max=6))
    data = EvaluationData.of((X, LABELS), example=EXAMPLE)
    with pytest.raises(
        InvalidInputError, match="8 on axis 'T' of 'x', but the profile allows 1 to"
    ):
        next(calls(data, graph(*axes, shape=("N", "T")), EXAMPLE))


# What is kept with the PyTorch model


def kept(data, folder):
    """The data as it comes back; None where nothing was kept."""
    path = folder / "evaluation.npz"
    evaluation_data.save_evaluation(data, path)
    return evaluation_data.read_evaluation(path)


LOADER = FORMS["a loader"]


@pytest.mark.parametrize("given", [(X, LABELS), LOADER], ids=["arrays", "loader"])
def test_small_data_is_kept_whole_whatever_it_comes_as(given, tmp_path):
    found = kept(EvaluationData.of(given, example=EXAMPLE), tmp_path)
    inputs, labels = all_of(found)
    np.testing.assert_array_equal(inputs["x"], X)
    np.testing.assert_array_equal(labels, LABELS)
    assert dict(found.metrics) == {"accuracy": accuracy}


@pytest.mark.parametrize("metrics", [{"mine": lambda *_: 1}, {"accuracy": lambda *_: 1}, {}])
def test_labels_of_a_metric_whose_code_is_not_kept_are_not_kept_either(metrics, tmp_path):
    found = kept(EvaluationData.of((X, LABELS), example=EXAMPLE, metrics=metrics), tmp_path)
    ((inputs, labels),) = found.batches()
    np.testing.assert_array_equal(inputs["x"], X)
    assert labels is None
    assert dict(found.metrics) == {}


@pytest.mark.parametrize("given", [(X, LABELS), LOADER], ids=["arrays", "loader"])
def test_data_beyond_the_limit_is_not_kept_and_one_line_says_so(
    given, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(evaluation_data, "_MAX_EVALUATION_BYTES", X.nbytes + LABELS.nbytes - 1)
    assert kept(EvaluationData.of(given, example=EXAMPLE), tmp_path) is None
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "is not logged with the PyTorch model" in record.message
    monkeypatch.setattr(evaluation_data, "_MAX_EVALUATION_BYTES", X.nbytes + LABELS.nbytes)
    assert kept(EvaluationData.of(given, example=EXAMPLE), tmp_path) is not None


def test_reading_stops_where_the_limit_is_passed():
    batches = Batches()
    items = DataLoader(list(features(400)), batch_size=8, collate_fn=batches)
    data = EvaluationData.of(items, example=EXAMPLE)
    assert data.whole(limit_bytes=3 * 8 * (8 * 4 + 8)) is None
    assert len(batches.made) == 1 + 4  # one to know the data, and the one that was too much


def test_data_whose_batches_differ_in_shape_is_not_kept(tmp_path, caplog):
    given = [(X, LABELS), (X[:, :5], LABELS)]
    assert kept(EvaluationData.of(given, example=EXAMPLE), tmp_path) is None
    assert "differ in shape" in caplog.text


# Task metrics

LOGITS = np.eye(3, dtype=np.float32)[LABELS]


def score(metrics, infer=None, labels=LABELS, given=LOGITS):
    """A metric on a variant; without one, on one that has these answers to the items."""
    numbered = np.tile(np.arange(40, dtype=np.float32)[:, None], 8)
    data = EvaluationData.of((numbered, labels), example=EXAMPLE, metrics=metrics)
    known = infer or (lambda inputs: {"y": given[inputs["x"][:, 0].astype(int)]})
    return scores(known, calls(data, graph(N), EXAMPLE), data.metrics)


def test_a_callable_gets_the_outputs_by_name_and_the_labels_whole():
    seen = {}

    def metric(outputs, labels):
        seen.update(outputs, labels=labels)
        return 0.25

    assert score({"mine": metric}) == {"mine": 0.25}
    np.testing.assert_array_equal(seen["y"], LOGITS)
    np.testing.assert_array_equal(seen["labels"], LABELS)


def test_filling_does_not_count_for_a_metric():
    data = EvaluationData.of((X[:5], LABELS[:5]), example=EXAMPLE)
    wanted = calls(data, graph(Axis("N", min=4, opt=4, max=4)), EXAMPLE)
    metric = {"items": lambda outputs, _: len(outputs["y"])}
    assert scores(lambda inputs: {"y": inputs["x"]}, wanted, metric) == {"items": 5}


def test_outputs_whose_shapes_differ_from_call_to_call_are_a_list_of_arrays():
    def transcripts(inputs):
        items = len(inputs["x"])
        return {"tokens": np.zeros((items, items)), "pooled": inputs["x"]}

    def metric(outputs, labels):
        assert [part.shape for part in outputs["tokens"]] == [(16, 16), (16, 16), (8, 8)]
        assert outputs["pooled"].shape == (40, 8)
        return len(labels)

    assert score({"m": metric}, transcripts) == {"m": 40}


def test_outputs_that_do_not_count_items_are_never_cut():
    def detections(inputs):
        found = np.repeat(np.arange(3.0), 7)[:, None]  # more rows than items
        return {"boxes": found, "total": np.float32(len(inputs["x"]))}

    data = EvaluationData.of((X[:5], LABELS[:5]), example=EXAMPLE, metrics={"m": lambda *_: 0})
    wanted = calls(data, graph(Axis("N", min=4, opt=4, max=4)), EXAMPLE)
    seen = {}
    scores(detections, wanted, {"m": lambda outputs, _: seen.update(outputs) or 0})
    assert [part.shape for part in seen["boxes"]] == [(21, 1), (21, 1)]
    assert [part.shape for part in seen["total"]] == [(), ()]


def test_detections_and_their_labels_pair_call_by_call():
    boxes = [{"boxes": at} for at in range(40)]

    def metric(outputs, labels):
        pairs = list(zip(outputs["y"], labels, strict=True))
        assert [(len(found), len(known)) for found, known in pairs] == [(17, 16), (17, 16), (9, 8)]
        return labels[1][0]["boxes"]

    def infer(inputs):
        return {"y": np.zeros((len(inputs["x"]) + 1, 7))}

    assert score({"mAP": metric}, infer, labels=boxes) == {"mAP": 16}


def test_a_metric_that_raises_says_which_and_why():
    def broken(outputs, labels):
        return outputs["logits"]

    with pytest.raises(InvalidInputError, match=r"'mine' fails on the outputs \['y'\]: KeyError"):
        score({"mine": broken})


@pytest.mark.parametrize("value", [None, "much", [1, 2]])
def test_a_metric_that_gives_no_number_is_refused(value):
    with pytest.raises(InvalidInputError, match="'mine' fails"):
        score({"mine": lambda *_: value})


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((4, 3)), np.zeros((4, 1), int)),  # NumPy would compare each with each
        (np.zeros((4, 1)), np.zeros(4, int)),  # the largest of one is always the first
        (np.zeros(4), np.zeros(4, int)),
    ],
)
def test_accuracy_refuses_what_it_would_count_wrongly(logits, labels):
    with pytest.raises(InvalidInputError, match="accuracy needs scores of two or more classes"):
        accuracy({"y": logits}, labels)


class Flat(torch.nn.Module):
    """Right in fp32; in fp16 its answer to each question is not a number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.full((8,), 1.0))
        self.register_buffer("nearly", torch.full((8,), 1.0001))

    def forward(self, x):
        difference = x * self.one - x * self.nearly
        return x[:, :3] * (difference / difference)[:, :3]


def judged(module, place, metrics):
    mlflow_e2eai.save_model(
        module,
        place,
        input_example=EXAMPLE,
        dynamic_axes=AXES,
        evaluation_data=(X, LABELS),
        metrics=metrics,
    )
    return {entry.variant: entry for entry in read(place / "bundle").evidence}


def only_finite(outputs, labels):
    if not np.isfinite(next(iter(outputs.values()))).all():
        msg = "found NaN"
        raise ValueError(msg)
    return 1.0


def test_a_metric_that_one_variants_outputs_break_is_that_variants_result(tmp_path):
    evidence = judged(Flat().eval(), tmp_path / "model", {"mine": only_finite})
    assert evidence["torch/fp32"].task == {"mine": 1}
    assert evidence["onnxruntime-cpu/fp32"].task == {"mine": 1}
    half = evidence["onnxruntime-cpu/fp16"]
    assert (half.measured, half.passed, dict(half.task)) == (True, False, {})
    assert (
        half.reason == "Task metric 'mine' fails on the outputs ['output']: ValueError: found NaN"
    )


def test_a_metric_that_the_references_outputs_break_is_the_callers_error(tmp_path):
    with pytest.raises(InvalidInputError, match="'mine' fails on the outputs"):
        judged(net(), tmp_path / "model", {"mine": lambda outputs, _: outputs["logits"]})


# MLflow's metrics


def test_an_mlflow_metric_is_called_as_mlflow_calls_it():
    seen = {}

    def eval_fn(predictions, targets, metrics, other, weight=3, **more):
        seen.update(predictions=predictions, targets=targets, other=other, weight=weight)
        return MetricValue(scores=[0.0, 1.0])

    metric = make_metric(eval_fn=eval_fn, greater_is_better=True, name="mine")

    def infer(inputs):
        return {"y": inputs["x"][:, :1], "other": inputs["x"]}

    assert score([metric], infer) == {"mine": 0.5}
    pd.testing.assert_series_equal(seen["predictions"], pd.Series(np.arange(40.0)))
    pd.testing.assert_series_equal(seen["targets"], pd.Series(LABELS))
    assert seen["other"][39].tolist() == [39] * 8
    assert seen["weight"] == 3


def test_the_metrics_of_mlflow_agree_with_their_formulas():
    found = score(
        [mlflow.metrics.mse(), mlflow.metrics.mae(), mlflow.metrics.r2_score()],
        given=np.linspace(0, 2, 40)[:, None],
    )
    error = np.linspace(0, 2, 40) - LABELS
    assert found["neg_mean_squared_error"] == pytest.approx(-np.mean(error**2))
    assert found["neg_mean_absolute_error"] == pytest.approx(-np.mean(np.abs(error)))
    assert found["r2_score"] == pytest.approx(1 - np.mean(error**2) / np.var(LABELS))


def test_a_metric_of_which_less_is_better_is_negated_and_says_so_in_its_name():
    def eval_fn(predictions, targets):
        return 0.2

    less = make_metric(eval_fn=eval_fn, greater_is_better=False, name="wer")
    more = make_metric(eval_fn=eval_fn, greater_is_better=True, name="wer")
    assert score([less]) == {"neg_wer": -0.2}
    assert score({"mine": less}) == {"neg_mine": -0.2}
    assert score([more]) == {"wer": 0.2}


@pytest.mark.filterwarnings("ignore:.*mlflow.metrics.exact_match:FutureWarning")
def test_classes_are_the_argmax_where_the_metric_says_so():
    exact = mlflow.metrics.exact_match()
    with pytest.raises(InvalidInputError, match="'exact_match' fails"):
        score([exact])
    exact.metric_metadata = {"predictions": "argmax"}
    assert score([exact]) == {"exact_match": 1}


def test_texts_are_judged_item_by_item_from_outputs_of_many_lengths():
    words = [" ".join(["one"] * (at % 3 + 1)) for at in range(40)]

    def eval_fn(predictions, targets):
        assert (len(predictions), len(targets)) == (40, 40)
        pairs = zip(predictions, targets, strict=True)
        return MetricValue(scores=[float((row > 0).sum() == len(t.split())) for row, t in pairs])

    def infer(inputs):
        items = inputs["x"][:, 0].astype(int)
        longest = 3 + items[0]  # as padding differs from batch to batch
        return {"tokens": (np.arange(longest) < (items % 3 + 1)[:, None]).astype(np.float32)}

    metric = make_metric(eval_fn=eval_fn, greater_is_better=True, name="right")
    assert score([metric], infer, labels=words) == {"right": 1}


def test_a_metric_in_mlflows_first_style_gets_a_table():
    def eval_fn(table, builtin):
        assert builtin == {}
        return float((table["prediction"] == table["target"]).mean())

    metric = make_metric(eval_fn=eval_fn, greater_is_better=True, name="old")
    assert score([metric], given=LABELS.astype(np.float64)) == {"old": 1}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "'m' fails"),
        (MetricValue(scores=["good"]), "'m' fails"),
        (MetricValue(aggregate_results={"p50": 1.0, "p90": 2.0}), "'m' fails"),
    ],
)
def test_a_metric_of_mlflow_that_gives_no_one_number_is_refused(value, words):
    def eval_fn(predictions, targets):
        return value

    with pytest.raises(InvalidInputError, match=words):
        score([make_metric(eval_fn=eval_fn, greater_is_better=True, name="m")])


def test_a_metric_of_mlflow_that_wants_something_unknown_is_refused_by_its_name():
    def eval_fn(predictions, targets, question):
        return 1.0

    with pytest.raises(
        InvalidInputError, match="it has the parameter 'question', which is not one of"
    ):
        score([make_metric(eval_fn=eval_fn, greater_is_better=True, name="m")])


def test_metrics_without_labels_and_two_of_one_name_are_refused():
    metric = mlflow.metrics.mse()
    with pytest.raises(InvalidInputError, match="Metrics need labels"):
        task_metrics([metric], None)
    with pytest.raises(InvalidInputError, match="have the same name"):
        task_metrics([metric, metric], LABELS)


# Edges


def identity(inputs):
    return {"y": inputs["x"]}


def test_the_edges_are_zeros_denormal_numbers_and_large_ones_at_the_opt_sizes():
    example = {"x": np.array([[-2.0, 0.0, 3.0]], np.float32)}
    edges = edge_samples(example, graph(N, shape=("N", 3)), identity)
    assert list(edges) == ["zeros", "denormal", "large"]
    assert {sample["x"].shape for sample in edges.values()} == {(N.opt, 3)}
    assert {sample["x"].dtype.name for sample in edges.values()} == {"float32"}
    assert not edges["zeros"]["x"].any()
    denormal = edges["denormal"]["x"][0]
    assert denormal.all()
    assert (abs(denormal) < np.finfo(np.float32).smallest_normal).all()
    assert (denormal < 0).tolist() == [True, False, False]
    np.testing.assert_array_equal(edges["large"]["x"][0], [-32, 0, 48])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_denormal_numbers_are_so_in_the_inputs_own_dtype_and_in_float32(dtype):
    edges = edge_samples({"x": np.ones((4, 8), dtype)}, graph(N, dtype=dtype), identity)
    found = edges["denormal"]["x"]
    assert found.dtype == dtype
    assert (found > 0).all()
    assert (found < np.finfo(min(np.dtype(dtype), np.dtype("float32"))).smallest_normal).all()


def test_integers_stay_as_they_are_and_alone_have_no_edges():
    ids = {"x": np.arange(8).reshape(1, 8)}
    assert edge_samples(ids, graph(N, dtype="int64"), identity) == {}
    both = {**ids, "mask": np.ones((1, 8), np.float32)}
    specs = (
        TensorSpec(name="x", dtype="int64", shape=("N", 8)),
        TensorSpec(name="mask", dtype="float32", shape=("N", 8)),
    )
    edges = edge_samples(both, dataclasses.replace(graph(N), inputs=specs), identity)
    for sample in edges.values():
        np.testing.assert_array_equal(sample["x"], np.tile(ids["x"], (N.opt, 1)))
    assert not edges["zeros"]["mask"].any()


def refuses_zeros(inputs):
    if not inputs["x"].any():
        msg = "nothing to see"
        raise RuntimeError(msg)
    return identity(inputs)


def divides(inputs):
    with np.errstate(all="ignore"):
        return {"y": 1 / inputs["x"] ** 2, "index": np.arange(3)}


@pytest.mark.parametrize(
    ("reference", "left"),
    [(refuses_zeros, ["denormal", "large"]), (divides, ["large"])],
)
def test_an_edge_that_the_reference_cannot_answer_is_left_out(reference, left):
    assert list(edge_samples({"x": np.ones((1, 8), np.float32)}, graph(N), reference)) == left


@pytest.mark.parametrize(
    ("reference", "left"),
    [
        (lambda t: {"best": t["x"].argmax(-1)}, ["large"]),
        (lambda t: {"best": (t["x"] * [1, 2, 3]).max(-1)}, ["zeros", "denormal", "large"]),
        (lambda _: {"best": np.arange(3)}, ["zeros", "denormal", "large"]),
    ],
)
def test_an_edge_where_numbers_tie_is_left_out_where_their_places_are_an_output(reference, left):
    example = {"x": np.array([[-2, 4, 3]], np.float32)}
    assert list(edge_samples(example, graph(N, shape=("N", 3)), reference)) == left


def test_a_large_edge_beyond_the_dtype_is_left_out():
    huge = {"x": np.full((1, 8), 6e4, np.float16)}
    found = edge_samples(huge, graph(N, dtype="float16"), lambda _: {"y": np.ones(1)})
    assert list(found) == ["zeros", "denormal"]


def test_other_values_for_a_branch_keep_masks_and_indices_in_their_range():
    given = {
        "ids": np.array([[3, 0, 7]]),
        "mask": np.ones((1, 3), dtype=np.int64),
        "steps": np.array(3),
        "flag": np.ones((), dtype=bool),
    }
    made = branch_samples(given)
    assert list(made) == ["turned", "less one", "inverted"]
    np.testing.assert_array_equal(made["turned"]["ids"], [[7, 0, 3]])
    assert made["less one"]["steps"] == 2
    assert all(made["less one"][name] is given[name] for name in ("ids", "mask", "flag"))
    assert made["inverted"]["flag"].shape == ()
    assert not made["inverted"]["flag"]
    assert list(branch_samples({"x": X[:2]})) == ["turned", "zeros", "negated", "large"]


def test_a_single_number_that_is_turned_round_stays_a_single_number():
    given = {"x": np.arange(3.0, dtype=np.float32), "count": np.array(2)}

    turned = turned_samples({"opt": given}, lambda tensors: {"y": tensors["x"]})

    assert turned["opt"]["x"].tolist() == [2, 1, 0]
    assert turned["opt"]["count"].shape == ()
