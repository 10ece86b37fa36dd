"""PyTorch -> ONNX: what was asked for is what was written, or the caller is told why not."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx
import pytest
import torch

from mlflow_e2eai import Operator, export
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis, TensorSpec
from mlflow_e2eai.errors import ArtifactError, ExportError, InvalidInputError
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]

N = Axis("N", min=1, opt=2, max=4)
EXPORTERS = ["dynamo", "trace", "script"]


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Difference(torch.nn.Module):
    """Tells its inputs apart."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first - 2 * second


class Split(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x - 1


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"up": x + 1, "down": x - 1}


class HardCodedBatch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(2, 3)


class IgnoresSecond(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * 2


class MaskedEmbedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.table(ids) * mask.unsqueeze(-1).to(torch.float32)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.drop = torch.nn.Dropout(0.5)
        self.norm.running_mean += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(x))


def two_rows():
    return np.arange(6, dtype=np.float32).reshape(2, 3)


def answer_of(artifact, **inputs):
    with onnxruntime_runner(artifact.path) as infer:
        return infer(inputs)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_each_exporter_writes_the_names_shapes_and_numbers_of_the_module(exporter, out):
    model = Linear().eval()
    made, _ = export(
        model, {"x": two_rows()}, out=out, dynamic_axes={"x": {0: N}}, exporter=exporter
    )
    assert made.inputs == (TensorSpec(name="x", dtype="float32", shape=("N", 3)),)
    assert made.outputs == (TensorSpec(name="output", dtype="float32", shape=("N", 2)),)
    assert (made.stage, made.precision, made.opset, made.axes) == ("export", "fp32", 18, (N,))
    assert made.parent_sha256 is None
    for size in (1, 2, 4):
        x = np.random.default_rng(size).standard_normal((size, 3), dtype=np.float32)
        right = model(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(answer_of(made, x=x)["output"], right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_exporting_twice_gives_the_same_bytes(exporter, tmp_path):
    model = Linear().eval()
    first, second = (
        export(model, two_rows(), out=tmp_path / name, exporter=exporter)[0] for name in "ab"
    )
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_report_has_the_largest_error_of_all_samples(exporter, out):
    _, report = export(Linear().eval(), two_rows(), out=out, exporter=exporter)
    assert report.max_abs_error is not None
    assert 0 <= report.max_abs_error < 1e-5


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_outputs_of_a_tuple_are_numbered(exporter, out):
    made, _ = export(Split().eval(), two_rows(), out=out, exporter=exporter)
    answer = answer_of(made, x=two_rows())
    assert [spec.name for spec in made.outputs] == ["output_0", "output_1"]
    np.testing.assert_array_equal(answer["output_0"] - answer["output_1"], np.full((2, 3), 2))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_outputs_of_a_mapping_are_named_by_its_keys(exporter, out):
    made, _ = export(Named().eval(), two_rows(), out=out, exporter=exporter)
    answer = answer_of(made, x=two_rows())
    assert [spec.name for spec in made.outputs] == ["up", "down"]
    np.testing.assert_array_equal(answer["up"] - answer["down"], np.full((2, 3), 2))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_caller_may_name_the_outputs(exporter, out):
    made, _ = export(
        Split().eval(), two_rows(), out=out, exporter=exporter, output_names=("p", "q")
    )
    assert [spec.name for spec in made.outputs] == ["p", "q"]


@pytest.mark.parametrize("names", [("p",), ("p", "q", "r"), ("p", "p")])
def test_output_names_that_are_not_one_for_each_output_are_refused(names, out):
    with pytest.raises(InvalidInputError, match="forward returns 2 outputs"):
        export(Split().eval(), two_rows(), out=out, output_names=names)


@pytest.mark.parametrize(
    "example",
    [
        two_rows(),
        (two_rows(),),
        [torch.from_numpy(two_rows())],
        {"x": torch.from_numpy(two_rows())},
    ],
    ids=["array", "tuple", "list of tensors", "mapping"],
)
def test_inputs_without_names_get_those_of_the_parameters(example, out):
    made, _ = export(Linear().eval(), example, out=out)
    assert [spec.name for spec in made.inputs] == ["x"]


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_a_name_that_forward_does_not_know_names_the_input_by_position(exporter, out):
    made, _ = export(Linear().eval(), {"features": two_rows()}, out=out, exporter=exporter)
    assert [spec.name for spec in made.inputs] == ["features"]
    assert answer_of(made, features=two_rows())["output"].shape == (2, 2)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_names_that_forward_knows_bind_in_whatever_order_they_come(exporter, out):
    first, second = two_rows(), two_rows() * 10
    example = {"second": second, "first": first}
    made, _ = export(Difference().eval(), example, out=out, exporter=exporter)
    answer = answer_of(made, first=first, second=second)
    np.testing.assert_array_equal(answer["output"], first - 2 * second)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_axes_belong_to_their_input_in_whatever_order_the_inputs_come(exporter, out):
    wide = Axis("W", min=1, opt=3, max=5)
    column = np.ones((2, 1), dtype=np.float32)
    example = {"second": two_rows(), "first": column}
    axes = {"first": {0: N}, "second": {0: N, 1: wide}}
    made, _ = export(Difference().eval(), example, out=out, dynamic_axes=axes, exporter=exporter)
    assert {spec.name: spec.shape for spec in made.inputs} == {
        "first": ("N", 1),
        "second": ("N", "W"),
    }
    assert made.outputs[0].shape == ("N", "W")


def test_names_of_which_only_some_are_parameters_are_refused(out):
    with pytest.raises(InvalidInputError, match=r"names \['other'\].*\['first', 'second'\]"):
        export(Difference().eval(), {"first": two_rows(), "other": two_rows()}, out=out)


def test_more_inputs_than_parameters_are_refused(out):
    with pytest.raises(InvalidInputError, match="has 2 inputs"):
        export(Linear().eval(), (two_rows(), two_rows()), out=out)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_integer_and_boolean_inputs_keep_their_types(exporter, out):
    model = MaskedEmbedding().eval()
    ids = np.array([[1, 2, 3]], dtype=np.int64)
    mask = np.array([[True, False, True]])
    length = Axis("L", min=1, opt=3, max=6)
    axes = {name: {0: N, 1: length} for name in ("ids", "mask")}
    made, _ = export(
        model, {"ids": ids, "mask": mask}, out=out, dynamic_axes=axes, exporter=exporter
    )
    assert [(spec.dtype, spec.shape) for spec in made.inputs] == [
        ("int64", ("N", "L")),
        ("bool", ("N", "L")),
    ]
    assert made.outputs[0].shape == ("N", "L", 4)
    right = model(torch.from_numpy(ids), torch.from_numpy(mask)).detach().numpy()
    np.testing.assert_allclose(answer_of(made, ids=ids, mask=mask)["output"], right, rtol=1e-6)


def test_an_exported_program_is_exported(out):
    program = torch.export.export(Linear().eval(), (torch.from_numpy(two_rows()),))
    made, _ = export(program, two_rows(), out=out)
    right = program.module()(torch.from_numpy(two_rows())).detach().numpy()
    np.testing.assert_allclose(answer_of(made, x=two_rows())["output"], right, rtol=1e-5)


def test_a_module_out_of_an_exported_program_is_exported_although_it_refuses_eval(out):
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch},)
    arguments = (torch.from_numpy(two_rows()),)
    program = torch.export.export(Normed().eval(), arguments, dynamic_shapes=shapes)
    module = program.module()
    with pytest.raises(NotImplementedError):
        module.eval()
    made, _ = export(module, {"x": two_rows()}, out=out, dynamic_axes={"x": {0: N}})
    assert made.inputs[0].shape == ("N", 3)
    np.testing.assert_allclose(
        answer_of(made, x=two_rows())["output"], module(*arguments).detach().numpy(), rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_script_module_is_exported_by_script_unasked(out):
    scripted = torch.jit.script(Linear().eval())
    made, _ = export(scripted, two_rows(), out=out, dynamic_axes={"x": {0: N}})
    right = scripted(torch.from_numpy(two_rows())).detach().numpy()
    np.testing.assert_allclose(answer_of(made, x=two_rows())["output"], right, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_script_module_is_not_for_dynamo(out):
    with pytest.raises(InvalidInputError, match="takes no ScriptModule"):
        export(torch.jit.script(Linear().eval()), two_rows(), out=out, exporter="dynamo")


def test_something_that_is_no_module_is_refused(out):
    with pytest.raises(InvalidInputError, match=r"is a function, but a torch\.nn\.Module"):
        export(two_rows, two_rows(), out=out)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_module_in_training_mode_is_exported_as_inference_with_a_warning(exporter, out):
    model = Normed().train()
    with pytest.warns(UserWarning, match="training mode"):
        made, _ = export(model, two_rows(), out=out, exporter=exporter)
    right = Normed().eval()(torch.from_numpy(two_rows())).detach().numpy()
    np.testing.assert_allclose(answer_of(made, x=two_rows())["output"], right, rtol=1e-5)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_each_part_of_a_module_gets_its_own_mode_back(exporter, out):
    model = Normed().train()
    model.norm.eval()  # frozen, as in fine-tuning
    with pytest.warns(UserWarning, match="training mode"):
        export(model, two_rows(), out=out, exporter=exporter)
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)


def test_a_module_gets_its_mode_back_when_the_export_fails(out):
    model = Normed().train()
    with (
        pytest.warns(UserWarning, match="training mode"),
        pytest.raises(InvalidInputError),
    ):
        export(model, np.ones((2, 5), dtype=np.float32), out=out)
    assert model.training
    assert model.norm.training


@pytest.mark.parametrize("exporter", ["trace", "script"])
def test_torchscript_writes_opset_13(exporter, out):
    made, _ = export(Linear().eval(), two_rows(), out=out, exporter=exporter, opset=13)
    assert made.opset == 13
    assert onnx.load(out).opset_import[0].version == 13


def test_an_opset_before_dynamo_starts_is_refused_with_the_way_out(out):
    with pytest.raises(InvalidInputError, match=r"Opset 13 .* starts at 18; use exporter='trace'"):
        export(Linear().eval(), two_rows(), out=out, exporter="dynamo", opset=13)


@pytest.mark.parametrize("exporter", ["trace", "script"])
def test_an_opset_that_torchscript_would_only_stamp_is_refused(exporter, out):
    with pytest.raises(InvalidInputError, match=r"Opset 21 .* ends at 20; use exporter='dynamo'"):
        export(Linear().eval(), two_rows(), out=out, exporter=exporter, opset=21)


def test_an_opset_that_no_runtime_has_yet_is_too_new_and_says_what_there_is(out):
    with pytest.raises(InvalidInputError, match=r"Opset 99 is too new: .* have 7 to 2\d; give one"):
        export(Linear().eval(), two_rows(), out=out, opset=99)


def test_dynamo_writes_a_later_opset(out):
    assert export(Linear().eval(), two_rows(), out=out, opset=21)[0].opset == 21


def test_an_unknown_exporter_is_refused_with_the_choices(out):
    with pytest.raises(InvalidInputError, match="auto, dynamo, trace, script"):
        export(Linear().eval(), two_rows(), out=out, exporter="onnx")


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("opt", [2, 3])
def test_a_batch_size_fixed_in_forward_is_refused_by_every_exporter(exporter, opt, out):
    axes = {"x": {0: Axis("N", min=1, opt=opt, max=4)}}
    with pytest.raises((InvalidInputError, ExportError)) as caught:
        export(HardCodedBatch().eval(), two_rows(), out=out, dynamic_axes=axes, exporter=exporter)
    assert re.search("'x'.*(size|dimension)", str(caught.value))
    assert not out.exists()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_batch_size_fixed_in_forward_is_fine_without_a_dynamic_axis(exporter, out):
    made, _ = export(HardCodedBatch().eval(), two_rows(), out=out, exporter=exporter)
    assert made.inputs[0].shape == (2, 3)


def test_a_dynamic_axis_of_an_unknown_input_is_refused(out):
    with pytest.raises(InvalidInputError, match=r"names \['y'\], but the inputs are \['x'\]"):
        export(Linear().eval(), two_rows(), out=out, dynamic_axes={"y": {0: N}})


@pytest.mark.parametrize("position", [2, -1])
def test_a_dynamic_axis_at_a_position_that_there_is_not_is_refused(position, out):
    with pytest.raises(InvalidInputError, match=f"axis {position} of 'x', which has 2 axes"):
        export(Linear().eval(), two_rows(), out=out, dynamic_axes={"x": {position: N}})


def test_one_axis_name_with_two_ranges_is_refused(out):
    axes = {"first": {0: N}, "second": {0: Axis("N", min=1, opt=2, max=8)}}
    with pytest.raises(InvalidInputError, match="given twice with different sizes"):
        export(Difference().eval(), (two_rows(), two_rows()), out=out, dynamic_axes=axes)


def test_an_axis_that_is_no_axis_is_refused(out):
    with pytest.raises(InvalidInputError, match=r"give an Axis\('N'"):
        export(Linear().eval(), two_rows(), out=out, dynamic_axes={"x": {0: "N"}})


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_an_axis_out_of_order_is_refused(sizes):
    low, best, high = sizes
    with pytest.raises(InvalidInputError, match="1 <= min <= opt <= max"):
        Axis("N", min=low, opt=best, max=high)


@pytest.mark.parametrize(
    ("sizes", "multiple"), [((1, 4, 8), 4), ((4, 6, 8), 4), ((4, 4, 9), 4), ((1, 2, 3), 0)]
)
def test_an_axis_whose_sizes_are_no_multiples_is_refused(sizes, multiple):
    low, best, high = sizes
    with pytest.raises(InvalidInputError, match=f"multiples of {multiple} are expected"):
        Axis("N", min=low, opt=best, max=high, multiple=multiple)


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_an_axis_may_be_a_multiple_and_keeps_its_name_in_the_graph(exporter, out):
    class Pools(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], x.shape[1] // 4, 4).sum(-1)

    length = Axis("L", min=4, opt=8, max=16, multiple=4)
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    made, report = export(
        Pools().eval(), x, out=out, dynamic_axes={"x": {0: N, 1: length}}, exporter=exporter
    )
    assert made.inputs[0].shape == ("N", "L")
    assert report.refused == {}
    wide = np.ones((3, 12), dtype=np.float32)
    np.testing.assert_array_equal(answer_of(made, x=wide)["output"], np.full((3, 3), 4))


@pytest.mark.parametrize(
    ("answer", "found"),
    [("text", "str"), (("text",), "str"), ({"a": 3}, "int"), (None, "NoneType"), ((), "nothing")],
)
def test_a_forward_that_returns_something_other_than_tensors_is_refused(answer, found, out):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return answer

    with pytest.raises(InvalidInputError, match=f"forward returned {found}"):
        export(Odd().eval(), two_rows(), out=out)


@pytest.mark.parametrize(
    "example",
    [np.ones((2, 5), dtype=np.float32), np.ones((2, 3), dtype=np.float64)],
    ids=["shape", "dtype"],
)
def test_an_example_that_does_not_fit_is_refused_with_what_was_given(example, out):
    given = rf"{example.dtype}\[2, {example.shape[1]}\]"
    with pytest.raises(InvalidInputError, match=f"does not accept the input example.*{given}"):
        export(Linear().eval(), example, out=out)
    assert not out.exists()


@pytest.mark.parametrize("example", [{}, (), None, ["text"], np.array(["text"])])
def test_an_example_of_something_other_than_numbers_is_refused(example, out):
    with pytest.raises(InvalidInputError, match="example"):
        export(Linear().eval(), example, out=out)


def test_an_input_that_forward_does_not_use_stays_where_the_exporter_keeps_it(out):
    made, _ = export(IgnoresSecond().eval(), (two_rows(), two_rows()), out=out, exporter="dynamo")
    assert [spec.name for spec in made.inputs] == ["x", "y"]


@pytest.mark.parametrize("exporter", ["trace", "script"])
def test_an_input_that_forward_does_not_use_is_refused_where_the_exporter_drops_it(exporter, out):
    with pytest.raises(ExportError, match="dropped input 'y': forward does not use it"):
        export(IgnoresSecond().eval(), (two_rows(), two_rows()), out=out, exporter=exporter)
    assert not out.exists()


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_the_callers_example_is_not_changed(exporter, out):
    class Overwrites(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(0) + 1

    array, tensor = two_rows(), torch.from_numpy(two_rows())
    export(Overwrites().eval(), {"x": array}, out=out, exporter=exporter)
    export(Overwrites().eval(), {"x": tensor}, out=out, exporter=exporter)
    np.testing.assert_array_equal(array, two_rows())
    np.testing.assert_array_equal(tensor.numpy(), two_rows())


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_failed_export_leaves_nothing_behind(exporter, tmp_path):
    class Inverse(torch.nn.Module):
        """Runs, but no exporter has a translation for what it does."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(ExportError, match=f"The {exporter} exporter failed"):
        export(
            Inverse().eval(),
            np.eye(3, dtype=np.float32),
            out=tmp_path / "m.onnx",
            exporter=exporter,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_file_that_was_there(out):
    made, _ = export(Linear().eval(), two_rows(), out=out)
    with pytest.raises(InvalidInputError):
        export(Linear().eval(), np.ones((2, 5), dtype=np.float32), out=out)
    assert onnx.load(made.path).graph.node


def test_the_example_may_be_smaller_than_the_opt_size(out):
    one_row = two_rows()[:1]
    axis = Axis("N", min=2, opt=8, max=16)
    made, _ = export(Linear().eval(), one_row, out=out, dynamic_axes={"x": {0: axis}})
    assert made.inputs[0].shape == ("N", 3)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_output_axis_that_only_happens_to_be_as_long_is_not_dynamic(exporter, out):
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)  # as wide as the batch is long

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    made, _ = export(
        Square().eval(), two_rows(), out=out, dynamic_axes={"x": {0: N}}, exporter=exporter
    )
    assert made.outputs[0].shape == ("N", 2)


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class CountsSteps(torch.nn.Module):
    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        for _ in range(int(steps)):
            x = x * 2
        return x + steps


class NormalisedRows(torch.nn.Module):
    """Divides 0 by 0 but for a constant that the dynamo optimizer drops."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.sum(-1, keepdim=True) + 1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_branch_on_the_data_climbs_to_script_with_the_reason_of_each_exporter(out):
    made, report = export(Branches().eval(), {"x": two_rows()}, out=out)
    assert report.exporter == "script"
    assert list(report.refused) == ["dynamo", "trace"]
    assert all(re.search(r"test_export\.py:\d+", why) for why in report.refused.values())
    assert "froze a value" in report.refused["trace"]
    assert report.unverified is None
    for x in (two_rows(), -two_rows()):
        right = Branches()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(answer_of(made, x=x)["output"], right, rtol=1e-6)


def test_a_trace_that_froze_a_branch_is_refused_with_the_line(out):
    with pytest.raises(ExportError, match=r"trace exporter, which froze a value at test_export"):
        export(Branches().eval(), {"x": two_rows()}, out=out, exporter="trace")
    assert not out.exists()


def test_a_trace_that_froze_the_length_of_a_loop_is_refused(out):
    with pytest.raises(ExportError, match=r"froze a value .* 'less one'"):
        export(
            CountsSteps().eval(),
            {"x": two_rows(), "steps": np.array(3)},
            out=out,
            exporter="trace",
        )


def test_numbers_that_the_optimizer_of_dynamo_changes_are_kept_without_it(out):
    made, report = export(NormalisedRows().eval(), {"x": two_rows() + 1}, out=out)
    assert report.exporter == "dynamo"
    assert list(report.refused) == ["dynamo"]
    assert "'zeros'" in report.refused["dynamo"]
    zeros = np.zeros((2, 3), dtype=np.float32)
    np.testing.assert_array_equal(answer_of(made, x=zeros)["output"], zeros)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_when_no_exporter_is_left_each_cause_is_said_once_and_nothing_is_printed(out, capfd):
    class Eigenvalues(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(ExportError, match=r"No exporter could export the model") as caught:
        export(Eigenvalues().eval(), np.eye(3, dtype=np.float32), out=out)
    _, dynamo, torchscript = str(caught.value).splitlines()
    assert re.match(r"  dynamo: ConversionError: .*_linalg_eigh", dynamo)
    assert re.match(r"  trace, script: Unsupported.*'aten::linalg_eigvalsh'", torchscript)
    assert capfd.readouterr() == ("", "")


def test_a_module_that_refuses_other_values_is_exported_all_the_same(out):
    class Picky(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sqrt(x)  # NaN for what is negative

    assert export(Picky().eval(), {"x": two_rows()}, out=out)[1].exporter == "dynamo"


def test_a_graph_of_operators_that_onnxruntime_lacks_is_not_verified_and_says_so(out):
    class Foo(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x * 2

        @staticmethod
        def symbolic(graph, x):
            return graph.op("devtech::FooOp", x).setType(x.type())

    class UsesFoo(torch.nn.Module):
        def forward(self, x):
            return Foo.apply(x)

    _, report = export(
        UsesFoo().eval(), {"x": two_rows()}, out=out, exporter="trace", deferred=["FooOp"]
    )
    assert report.unverified == "ONNX Runtime does not have devtech::FooOp"


@dataclasses.dataclass
class Tokens:
    ids: torch.Tensor
    mask: torch.Tensor | None = None


@dataclasses.dataclass
class Scored:
    score: torch.Tensor
    layers: tuple[torch.Tensor, ...]


class Reader(torch.nn.Module):
    """Nested in, nested out, with arguments that are not tensors."""

    def forward(self, tokens, weights, mode="sum", extra=None, *, power=1):
        values = tokens.ids.float() * weights["up"][0] ** power
        if tokens.mask is not None:
            values = values * tokens.mask
        if extra is not None:
            values = values + extra
        score = values.sum() if mode == "sum" else values.mean()
        return Scored(score=score, layers=({"first": values, "none": None}, values + 1))


def reading(**others):
    tokens = Tokens(ids=torch.arange(6).reshape(2, 3), mask=torch.ones(2, 3, dtype=torch.bool))
    return {"tokens": tokens, "weights": {"up": [torch.tensor(3.0)]}, **others}


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_nested_arguments_and_answers_get_their_paths_as_names(exporter, out):
    axes = {name: {0: N} for name in ("tokens.ids", "tokens.mask")}
    made, report = export(
        Reader().eval(),
        reading(mode="mean", power=2),
        out=out,
        dynamic_axes=axes,
        exporter=exporter,
    )
    assert made.inputs == (
        TensorSpec(name="tokens.ids", dtype="int64", shape=("N", 3)),
        TensorSpec(name="tokens.mask", dtype="bool", shape=("N", 3)),
        TensorSpec(name="weights.up.0", dtype="float32", shape=()),
    )
    assert [(spec.name, spec.shape) for spec in made.outputs] == [
        ("score", ()),
        ("layers.0.first", ("N", 3)),
        ("layers.1", ("N", 3)),
    ]
    ids = np.array([[1, 2, 3]])
    inputs = {"tokens.ids": ids, "tokens.mask": ids > 1, "weights.up.0": np.array(2, np.float32)}
    answer = pytree.unflatten(report.outputs, answer_of(made, **inputs))
    assert isinstance(answer, Scored)
    assert answer.score == pytest.approx(20 / 3)
    assert answer.layers[0]["none"] is None
    np.testing.assert_array_equal(answer.layers[1], [[1, 9, 13]])
    given = pytree.unflatten(report.inputs, inputs)
    assert (given["mode"], given["power"], type(given["tokens"])) == ("mean", 2, Tokens)


def test_an_optional_argument_that_is_none_is_no_input(out):
    example = {**reading(extra=None), "tokens": Tokens(ids=torch.arange(6).reshape(2, 3))}
    made, _ = export(Reader().eval(), example, out=out)
    assert [spec.name for spec in made.inputs] == ["tokens.ids", "weights.up.0"]


def test_the_only_argument_may_be_a_mapping_of_several_names(out):
    class TakesBatch(torch.nn.Module):
        def forward(self, batch):
            return batch["x"] + batch["y"]

    example = {"x": two_rows(), "y": two_rows()}
    for given in (example, (example,), {"batch": example}):
        made, _ = export(TakesBatch().eval(), given, out=out)
        assert [spec.name for spec in made.inputs] == ["batch.x", "batch.y"]


def test_keyword_arguments_of_any_name_are_given_by_name(out):
    class TakesKeywords(torch.nn.Module):
        def forward(self, x, **others):
            return x - others["y"]

    made, _ = export(TakesKeywords().eval(), {"y": two_rows(), "x": two_rows() * 2}, out=out)
    assert [spec.name for spec in made.inputs] == ["y", "x"]
    np.testing.assert_array_equal(
        answer_of(made, x=two_rows() * 2, y=two_rows())["output"], two_rows()
    )


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_an_output_with_the_name_of_an_input_is_set_apart(exporter, out):
    class Echo(torch.nn.Module):
        def forward(self, x):
            return {"x": x, "twice": x * 2, "same": x}

    made, report = export(Echo().eval(), two_rows(), out=out, exporter=exporter)
    assert [spec.name for spec in made.outputs] == ["output.x", "twice", "same"]
    answer = pytree.unflatten(report.outputs, answer_of(made, x=two_rows()))
    assert list(answer) == ["x", "twice", "same"]
    np.testing.assert_array_equal(answer["x"], two_rows())


def test_an_output_may_not_be_named_as_an_input(out):
    with pytest.raises(InvalidInputError, match=r"has \['x'\], which are names of inputs"):
        export(Linear().eval(), two_rows(), out=out, output_names=["x"])


def test_a_dataclass_that_cannot_be_found_by_its_name_is_refused(out):
    @dataclasses.dataclass
    class Local:
        ids: torch.Tensor

    with pytest.raises(InvalidInputError, match="define the class at the top level of a module"):
        export(Reader().eval(), {"tokens": Local(torch.ones(2, 3))}, out=out)


def test_model_outputs_of_hugging_face_go_in_and_come_out(out):
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Head(torch.nn.Module):
        def forward(self, given):
            hidden = given.last_hidden_state
            return outputs.BaseModelOutput(hidden * 2, hidden_states=(hidden, hidden + 1))

    example = outputs.BaseModelOutput(last_hidden_state=torch.from_numpy(two_rows()))
    made, report = export(Head().eval(), example, out=out)
    assert [spec.name for spec in made.inputs] == ["given.last_hidden_state"]
    assert [spec.name for spec in made.outputs] == [
        "last_hidden_state",
        "hidden_states.0",
        "hidden_states.1",
    ]
    answer = pytree.unflatten(
        report.outputs, answer_of(made, **{"given.last_hidden_state": two_rows()})
    )
    assert isinstance(answer, outputs.BaseModelOutput)
    np.testing.assert_array_equal(answer.hidden_states[1], two_rows() + 1)


class Largest(torch.nn.Module):
    """Says where the largest are: of zeros, each is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.topk(3, dim=-1).indices


class LargestOfPositive(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(-1) if bool(x.sum() > 0) else x.argmin(-1)


def test_a_tie_in_an_integer_output_refuses_no_graph(out):
    x = np.random.default_rng(0).standard_normal((2, 64), dtype=np.float32)
    made, report = export(Largest().eval(), x, out=out, dynamic_axes={"x": {0: N}})
    assert (report.exporter, report.refused, report.unverified) == ("dynamo", {}, None)
    zeros = np.zeros((2, 64), dtype=np.float32)
    right = Largest()(torch.from_numpy(zeros)).numpy()
    assert not np.array_equal(answer_of(made, x=zeros)["output"], right)  # either is right


def test_a_branch_that_only_an_integer_output_shows_is_not_taken_for_a_tie(out):
    with pytest.raises(ExportError, match="does not match PyTorch"):
        export(LargestOfPositive().eval(), {"x": two_rows()}, out=out, exporter="trace")


class BySize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 3:
            return x * 2
        return x - 1


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_an_axis_that_was_specialised_is_refused(exporter, out):
    with pytest.raises(ExportError, match=r"'max'|specialized|constraint|\[2, 3\]|Constraint"):
        export(BySize().eval(), two_rows(), out=out, dynamic_axes={"x": {0: N}}, exporter=exporter)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_branch_on_a_size_climbs_to_script(out):
    made, report = export(BySize().eval(), two_rows(), out=out, dynamic_axes={"x": {0: N}})
    assert (report.exporter, list(report.refused)[-1]) == ("script", "trace")
    for size in (1, 3, 4):
        x = np.ones((size, 3), dtype=np.float32)
        right = BySize()(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(answer_of(made, x=x)["output"], right)


def test_a_graph_whose_shapes_contradict_each_other_passes_only_the_plain_check(tmp_path):
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        for name, size in (("x", [2, 3]), ("output", [3, 3]))
    ]
    node = onnx.helper.make_node("Relu", ["x"], ["output"])
    graph = onnx.helper.make_graph([node], "wrong", values[:1], values[1:])
    imports = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "wrong.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    read = graphs.read(path)
    with pytest.raises(ArtifactError, match=r"does not pass ONNX's checker: .*Inferred shape"):
        graphs.check(read)


def test_every_result_is_checked_once(out, monkeypatch):
    checked, check = [], graphs.check
    monkeypatch.setattr(graphs, "check", lambda model: (checked.append(model), check(model)))
    export(Linear().eval(), two_rows(), out=out)
    assert len(checked) == 1


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 5, batch_first=True)

    def forward(self, x, state=None):
        return self.lstm(x, state)


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_a_recurrent_model_gives_its_nested_state(exporter, out):
    x = np.random.default_rng(0).standard_normal((2, 4, 3), dtype=np.float32)
    state = (torch.zeros(1, 2, 5), torch.ones(1, 2, 5))
    model = Recurrent().eval()
    made, report = export(model, {"x": x, "state": state}, out=out, exporter=exporter)
    assert [spec.name for spec in made.inputs] == ["x", "state.0", "state.1"]
    assert [spec.name for spec in made.outputs] == ["output_0", "output_1.0", "output_1.1"]
    given = {"x": x, "state.0": state[0].numpy(), "state.1": state[1].numpy()}
    _, (hidden, _) = pytree.unflatten(report.outputs, answer_of(made, **given))
    right = model(torch.from_numpy(x), state)[1][0].detach()
    np.testing.assert_allclose(hidden, right, rtol=1e-4, atol=1e-6)


class _Tripled(torch.autograd.Function):
    @staticmethod
    def symbolic(g, x):
        return g.op("devtech::Triple", x)  # without a type: PyTorch warns of that from C++

    @staticmethod
    def forward(_ctx, x):
        return 3 * x


def test_what_pytorch_prints_from_c_goes_to_the_log_and_not_to_the_screen(out, capfd, caplog):
    class Triples(torch.nn.Module):
        def forward(self, x):
            return _Tripled.apply(x) + 1

    function = """
        <opset_import: ["" : 18], domain: "devtech">
        Triple (x) => (y) { twice = Add(x, x) y = Add(twice, x) }
    """
    triple = Operator(name="devtech::Triple", function=function)
    with caplog.at_level("DEBUG", "mlflow_e2eai"):
        export(
            Triples().eval(),
            {"x": torch.ones(2, 3)},
            out=out,
            exporter="trace",
            operators=(triple,),
        )
    assert "shape_type_inference.cpp" in caplog.text
    assert "The shape inference of devtech::Triple type is missing" in caplog.text
    assert capfd.readouterr() == ("", "")
