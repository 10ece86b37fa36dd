"""Examples that the caller gives at sizes: they are run, wherever a sample would be made."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
import torch

import mlflow_e2eai
from mlflow_e2eai import Axis, export
from mlflow_e2eai.artifacts.example import (
    GeneratedExample,
    SizedExample,
    assumptions_of,
    others_of,
)
from mlflow_e2eai.cli.main import main
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pipeline import jobs, variant_stages

pytestmark = pytest.mark.usefixtures("on_threads")

AXES = {"x": {0: Axis("N", min=1, opt=2, max=4), 1: Axis("T", min=3, opt=4, max=6)}}


class EndsWithItsLength(torch.nn.Module):
    """Takes rows whose last number is their length, which no repeated row has."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        if bool((x[:, -1] != x.shape[1]).any()):
            raise ValueError("a row does not end with its length")  # noqa: EM101, TRY003
        return torch.tanh(x[:, :-1] * self.scale).sum(1)


def rows(items, steps):
    x = torch.randn(items, steps, generator=torch.Generator().manual_seed(items * steps))
    x[:, -1] = steps
    return {"x": x}


EXAMPLE = rows(2, 4)
SAMPLES = [rows(1, 3), rows(4, 6), rows(3, 5), rows(4, 3), rows(1, 6)]


def build():
    """What `mlflow run . -e log` logs."""
    return {
        "model": EndsWithItsLength().eval(),
        "input_example": EXAMPLE,
        "dynamic_axes": AXES,
        "samples_at": SAMPLES,
    }


def build_without_samples():
    return {**build(), "samples_at": ()}


@pytest.fixture
def exported(tmp_path):
    def once(samples, model=None, example=EXAMPLE, axes=AXES):
        module = EndsWithItsLength() if model is None else model
        return export(
            module.eval(),
            example,
            out=tmp_path / "raw.onnx",
            dynamic_axes=axes,
            samples_at=samples,
            exporter="trace",
        )[1]

    return once


def test_a_module_that_refuses_all_samples_made_here_is_exported_on_given_ones(exported):
    with pytest.raises(InvalidInputError, match="give an example at these sizes by samples_at"):
        exported([])
    report = exported(SAMPLES)
    assert {"opt", "min", "max", "max N, min others", "N=3, T=5"} <= set(report.samples)
    assert "the model fails on it" in report.left_out["turned"]


def test_one_example_at_the_largest_sizes_is_what_the_others_are_cut_from(exported):
    seen = []

    class Records(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.sum(1)

    largest = {"x": torch.arange(24.0).reshape(4, 6) + 100}
    exported([largest], Records(), {"x": torch.ones(2, 4)})
    (cut,) = {tuple(x.shape): x for x in seen if x.shape[0] == 3 and x.shape[1] == 5}.values()
    torch.testing.assert_close(cut, largest["x"][:3, :5])


def test_a_given_example_that_the_module_refuses_is_the_callers(exported):
    wrong = {"x": torch.zeros(3, 5)}
    with pytest.raises(InvalidInputError, match="the example of samples_at at N=3, T=5") as e:
        exported([*SAMPLES[:2], *SAMPLES[3:], wrong])
    assert "narrow the axes" not in str(e.value)


class Nested(torch.nn.Module):
    def forward(self, tokens, scale):
        return tokens["a"] * scale


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"tokens": {"b": torch.ones(3, 4)}}, r"samples_at\[0\].tokens.a is missing"),
        ({"tokens": {"a": torch.ones(3, 4)}, "scale": 3.0}, "scale is fixed at 2.0, but 3.0"),
    ],
)
def test_a_given_example_has_the_structure_of_the_input_example(exported, sample, words):
    axes = {"tokens.a": {0: AXES["x"][0]}}
    example = {"tokens": {"a": torch.ones(2, 4)}, "scale": 2.0}
    exported([{"tokens": {"a": torch.ones(3, 4)}}], Nested(), example, axes)
    with pytest.raises(InvalidInputError, match=words):
        exported([sample], Nested(), example, axes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([rows(5, 4)], "has 5 on axis 'N' of 'x', which may have 1 to 4"),
        ([{"x": rows(3, 5)["x"].double()}], "has float64 for 'x'"),
        (rows(3, 5), "samples_at is a dict; give a list of examples"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(store, given, words):
    with pytest.raises(InvalidInputError, match=words):
        mlflow_e2eai.log_model(**{**build(), "samples_at": given}, name="rows", exporter="trace")
    assert mlflow.search_logged_models(output_format="list") == []


@pytest.fixture
def evaluated(monkeypatch):
    """Samples that a variant is compared on, by kind, as `evaluate` gets them."""
    seen = []
    evaluate = variant_stages.evaluate

    def recording(reference, graphs, engines, example, **options):
        seen.append(others_of(example))
        return evaluate(reference, graphs, engines, example, **options)

    monkeypatch.setattr(variant_stages, "evaluate", recording)
    return seen


def test_a_bundle_is_judged_on_given_samples(store, evaluated):
    info = mlflow_e2eai.log_model(**build(), name="rows", exporter="trace", precisions=("fp32",))
    with mlflow_e2eai.load_model(info.model_uri) as model:
        evidence = {each.variant: each for each in model.manifest.evidence}
        assert set(model.manifest.latency) == {"opt", "min", "max", *MIXED}
    assert evidence["onnxruntime-cpu/fp32"].passed
    assert evidence["onnxruntime-cpu/fp32"].sizes == ("N=3, T=5",)
    (others,) = evaluated
    for other, given in zip(others, SAMPLES, strict=True):
        np.testing.assert_array_equal(other["x"], given["x"])


MIXED = ("max N, min others", "max T, min others")


def test_stages_one_by_one_have_the_samples_that_were_logged_with_the_model(store, evaluated):
    source = jobs.log(f"{__name__}:build", name="rows")
    raw = jobs.export(source, exporter="trace")
    half = jobs.convert(jobs.clean(raw), precision="fp16")
    evidence = jobs.evaluate(half).evidence
    assert all(each.passed for each in evidence if each.measured)
    assert {each.sizes for each in evidence if each.sizes} == {("N=3, T=5",)}
    (others,) = evaluated
    assert [other["x"].shape for other in others] == [tuple(s["x"].shape) for s in SAMPLES]


@pytest.fixture
def files(tmp_path):
    """The samples as npz files, with commas between."""
    paths = [tmp_path / f"{at}.npz" for at in range(len(SAMPLES))]
    for path, sample in zip(paths, SAMPLES, strict=True):
        np.savez(path, **{name: array.numpy() for name, array in sample.items()})
    return ",".join(map(str, paths))


def test_a_command_runs_files_of_samples_on_a_model_that_was_logged_without(store, files, capsys):
    source = jobs.log(f"{__name__}:build_without_samples", name="rows")
    command = ["export", source, "--exporter", "trace"]
    assert main(command) == 1
    assert "give an example at these sizes by samples_at" in capsys.readouterr().err
    assert main([*command, "--samples-at", files]) == 0
    assert main([*command, "--samples-at", files.split(",")[0] + ".npz"]) == 1
    assert "Cannot read 0.npz.npz" in capsys.readouterr().err


def test_a_pipeline_on_a_logged_model_compares_on_files_of_samples(store, files, evaluated):
    source = jobs.log(f"{__name__}:build_without_samples", name="rows")
    words = ["--exporter", "trace", "--precisions", "fp32", "--evidence", "quick"]
    assert main(["pipeline", source, "--samples-at", files, *words]) == 0
    assert [len(others) for others in evaluated] == [5]


def test_clean_takes_files_of_samples_with_an_onnx_file(store, tmp_path, capsys):
    path, wide = tmp_path / "model.onnx", tmp_path / "wide.npz"
    export(torch.nn.Tanh().eval(), EXAMPLE["x"], out=path, dynamic_axes={"input": AXES["x"]})
    np.savez(wide, input=np.zeros((9, 4), np.float32))
    axes = "input:0=N:1:2:4,input:1=T:3:4:6"
    words = ["clean", "--onnx", str(path), "--dynamic-axes", axes, "--samples-at"]
    assert main([*words, str(wide)]) == 1
    assert "samples_at[0] has 9 on axis 'N'" in capsys.readouterr().err
    np.savez(wide, input=np.zeros((3, 5), np.float32))
    assert main([*words, str(wide)]) == 0


def test_an_example_with_samples_keeps_its_assumptions():
    generated = GeneratedExample({"x": np.zeros((2, 4), np.float32)}, ["It was generated."])
    assert assumptions_of(SizedExample(generated, [])) == ("It was generated.",)


def test_logged_samples_that_other_axes_do_not_admit_are_left_out(store, caplog):
    source = jobs.log(f"{__name__}:build", name="rows")
    narrow = {"x": {0: AXES["x"][0], 1: Axis("T", min=2, opt=4, max=5)}}
    with pytest.raises(InvalidInputError, match="the min size of its dynamic axes"):
        jobs.export(source, exporter="trace", dynamic_axes=narrow)
    assert "which may have 2 to 5" in caplog.text


def test_an_onnx_file_is_judged_on_given_samples_too(store, tmp_path, evaluated):
    path = tmp_path / "model.onnx"
    export(
        torch.nn.Tanh().eval(), {"input": EXAMPLE["x"]}, out=path, dynamic_axes={"input": AXES["x"]}
    )
    samples = [{"input": each["x"].numpy()} for each in SAMPLES]
    arguments = {
        "input_example": {"input": EXAMPLE["x"].numpy()},
        "dynamic_axes": {"input": AXES["x"]},
        "precisions": ("fp32",),
    }
    mlflow_e2eai.log_model(str(path), "file", samples_at=samples, **arguments)
    assert [len(others) for others in evaluated] == [5]
    wrong = [{"input": np.zeros((9, 4), np.float32)}]
    with pytest.raises(InvalidInputError, match="has 9 on axis 'N'"):
        mlflow_e2eai.log_model(str(path), "file", samples_at=wrong, **arguments)
