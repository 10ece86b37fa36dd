"""Models that were saved as TorchScript or by torch.export: taken from their files as they are."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

import mlflow_e2eai
from mlflow_e2eai import export, tracking
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.exporters import flat_script
from mlflow_e2eai.pytorch.flat_module import flatten_module, run_with_tree
from mlflow_e2eai.runtime.ort import onnxruntime_runner

N = Axis("N", min=1, opt=2, max=4)

pytestmark = [
    pytest.mark.exporters,
    pytest.mark.usefixtures("on_threads"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor to a Python:torch.jit.TracerWarning"),
]


class Sums(NamedTuple):
    rows: torch.Tensor
    whole: torch.Tensor


class Reader(torch.nn.Module):
    """Nested arguments and outputs, an optional one, a constant and a branch on the data."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(
        self,
        tokens: dict[str, torch.Tensor],
        pair: tuple[torch.Tensor, list[torch.Tensor]],
        bias: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[dict[str, torch.Tensor], Sums, torch.Tensor | None]:
        hidden = self.layer(tokens["x"]) + tokens["y"] * scale
        if bool(pair[0].sum() > 0):
            hidden = hidden * 2 + pair[1][0]
        if bias is not None:
            hidden = hidden + bias
        return {"hidden": hidden}, Sums(hidden.sum(0), hidden.mean()), bias


class Keywords(torch.nn.Module):
    """Arguments by keyword only, nested, and an answer of several levels."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, *, mask=None, tokens=None, scale=1.0):
        hidden = self.layer(x) * scale
        if mask is not None:
            hidden = hidden * mask
        if tokens is not None:
            hidden = hidden + tokens["y"]
        return {"hidden": hidden, "sums": (hidden.sum(0), [hidden.mean()])}


def rows(width, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_normal((2, width), dtype=np.float32))


def reader_example(**more):
    tokens = {"x": rows(4), "y": rows(3)}
    return {"tokens": tokens, "pair": (rows(3, 1), [rows(3, 2)]), **more}


def keywords_example():
    return {"x": rows(4), "tokens": {"y": rows(3, 1)}, "mask": rows(3, 2)}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture
def scripted(tmp_path):
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Reader().eval()), tmp_path / "reader.pt")
    return torch.jit.load(tmp_path / "reader.pt")


@pytest.fixture
def program(tmp_path):
    """Exported with arguments by keyword, the leading size open."""
    torch.manual_seed(0)
    example = keywords_example()
    size = torch.export.Dim("size", min=1, max=8)
    shapes = {"x": {0: size}, "tokens": {"y": {0: size}}, "mask": {0: size}}
    made = torch.export.export(
        Keywords().eval(), (example.pop("x"),), example, dynamic_shapes=shapes
    )
    torch.export.save(made, tmp_path / "keywords.pt2")
    return torch.export.load(tmp_path / "keywords.pt2")


def leading(names):
    return {name: {0: N} for name in names}


def matches(made, report, model, example):
    """The answer has the module's numbers in the module's shape, for the example and its negative.

    The negative takes the other branch, where there is one.
    """
    module, arrays = flatten_module(model, example)
    with onnxruntime_runner(made.path) as infer:
        for sign in (1, -1):
            given = {name: sign * array for name, array in arrays.items()}
            tree, right = run_with_tree(module, given)
            assert report.outputs == tree
            for name, answer in infer(given).items():
                np.testing.assert_allclose(answer, right[name].numpy(), rtol=1e-5, atol=1e-6)
    return True


def test_a_saved_script_with_nested_arguments_and_outputs_is_exported(scripted, out):
    names = ["tokens.x", "tokens.y", "pair.0", "pair.1.0"]
    example = reader_example()
    made, report = export(scripted, example, out=out, dynamic_axes=leading(names))
    assert report.exporter == "script"
    assert [(spec.name, spec.shape[0]) for spec in made.inputs] == [(name, "N") for name in names]
    outputs = ["output_0.hidden", "output_1.rows", "output_1.whole"]
    assert [spec.name for spec in made.outputs] == outputs
    assert matches(made, report, scripted, example)


@pytest.mark.parametrize("scale", [2.5, math.inf])
def test_a_saved_script_takes_an_optional_argument_and_a_constant(scripted, out, scale):
    example = reader_example(bias=rows(3, 3), scale=scale)
    made, report = export(scripted, example, out=out)
    assert [spec.name for spec in made.inputs][-1] == "bias"
    assert [spec.name for spec in made.outputs][-1] == "output_2"
    assert report.unverified is None
    assert matches(made, report, scripted, example)


def test_the_script_exporter_takes_a_module_with_nested_arguments(out):
    torch.manual_seed(0)
    module = Reader().eval()
    made, report = export(module, reader_example(), out=out, exporter="script")
    assert matches(made, report, module, reader_example())


def test_the_ladder_reaches_script_with_nested_arguments(out):
    torch.manual_seed(0)
    _, report = export(Reader().eval(), reader_example(), out=out)
    assert (report.exporter, list(report.refused)) == ("script", ["dynamo", "trace"])


def test_a_saved_trace_with_nested_arguments_is_exported(tmp_path, out):
    torch.manual_seed(0)
    example = ({"x": rows(4), "y": rows(3)}, (rows(3, 1), [rows(3, 2)]))

    class Traced(Reader):
        def forward(self, tokens, pair):
            hidden = self.layer(tokens["x"]) + tokens["y"] + pair[0] * pair[1][0]
            return {"hidden": hidden, "sum": hidden.sum(0)}

    torch.jit.save(torch.jit.trace(Traced().eval(), example, strict=False), tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    made, report = export(traced, example, out=out)
    assert [spec.name for spec in made.outputs] == ["hidden", "sum"]
    assert matches(made, report, traced, example)


def test_an_object_in_the_inputs_is_not_for_script_and_says_so():
    tree = pytree.flatten({"sums": Sums(rows(3), rows(3))})[0]
    with pytest.raises(ExportError, match="holds a Sums; pass its fields to forward"):
        flat_script(torch.jit.script(torch.nn.ReLU()), tree, pytree.Tree(kind="leaf"))


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_a_script_is_for_the_script_exporter_however_nested(scripted, out, exporter):
    with pytest.raises(InvalidInputError, match=f"The {exporter} exporter takes no ScriptModule"):
        export(scripted, reader_example(), out=out, exporter=exporter)


def test_an_exported_program_is_not_for_script(program, out):
    with pytest.raises(InvalidInputError, match="The script exporter takes no ExportedProgram"):
        export(program, keywords_example(), out=out, exporter="script")


def test_a_saved_program_is_called_by_keyword_as_it_was_exported(program, out):
    names = ["x", "tokens.y", "mask"]
    example = keywords_example()
    made, report = export(program, example, out=out, dynamic_axes=leading(names))
    assert report.exporter == "dynamo"
    assert {spec.name: spec.shape[0] for spec in made.inputs} == dict.fromkeys(names, "N")
    assert [spec.name for spec in made.outputs] == ["hidden", "sums.0", "sums.1.0"]
    assert matches(made, report, program, example)


def test_a_size_that_a_saved_program_fixed_cannot_be_dynamic(tmp_path, out):
    made = torch.export.export(Keywords().eval(), (rows(4),), {"scale": 2.0})
    torch.export.save(made, tmp_path / "fixed.pt2")
    fixed = torch.export.load(tmp_path / "fixed.pt2")
    example = {"x": rows(4), "scale": 2.0}
    with pytest.raises(InvalidInputError, match=r"min size .* Guard failed: x\.size"):
        export(fixed, example, out=out, dynamic_axes={"x": {0: N}})
    assert matches(*export(fixed, example, out=out), fixed, example)


@pytest.mark.parametrize("kind", ["scripted", "program"])
def test_a_saved_model_goes_from_its_log_to_a_model_that_answers_in_its_shape(store, request, kind):
    model = request.getfixturevalue(kind)
    example = reader_example() if kind == "scripted" else keywords_example()
    info = mlflow_e2eai.log_model(model, "saved", input_example=example, precisions=("fp32",))
    tree, right = run_with_tree(*flatten_module(model, example))
    with mlflow_e2eai.load_model(info.model_uri) as loaded:
        answer = loaded.structured(loaded(example))
    found = pytree.flatten(answer)[1]
    assert list(found) == pytree.names(tree)
    for name, array in found.items():
        np.testing.assert_allclose(array, right[name].numpy(), rtol=1e-4, atol=1e-6)
    # The PyTorch model that was logged is exported again, as `mlflow run -e export` does.
    again = tracking.resolve(jobs.export(info.model_uri))
    assert again.tags["e2eai.stage"] == "export"
