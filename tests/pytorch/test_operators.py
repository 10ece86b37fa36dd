"""Operators of the user's own: kept by every exporter that can, refused by the one that cannot."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest
import torch
from negpos_model import LIBRARY, NegPos

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.errors import EngineBuildError, ExportError, InvalidInputError
from mlflow_e2eai.precision.stage import convert
from mlflow_e2eai.pytorch.operators.operator import Operator, load, save
from mlflow_e2eai.pytorch.stage import export
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, named_in, plan_from
from mlflow_e2eai.surgery.stage import clean

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]

N = Axis("N", min=1, opt=3, max=8)
KEEPING = ("dynamo", "trace")


class Foo(torch.autograd.Function):
    """One node with an attribute of each kind."""

    @staticmethod
    def symbolic(g, x, alpha):
        table = torch.tensor([1.0, 2.0])
        return g.op(
            "devtech::Foo",
            x,
            alpha_f=alpha,
            rank_i=x.type().dim(),
            axes_i=[0, 1],
            mode_s="a",
            table_t=table,
        ).setType(x.type())

    @staticmethod
    def forward(_ctx, x, alpha):
        return x * alpha


class Split(torch.autograd.Function):
    """Two outputs, context apart, with operators of ONNX itself and a constant before the node."""

    @staticmethod
    def symbolic(g, x, y):
        two = g.op("Constant", value_t=torch.tensor(2.0))
        return g.op("devtech::Split", g.op("Mul", x, two), y, outputs=2)

    @staticmethod
    def forward(x, y):
        return x * 2 + y, y.sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class Standard(torch.autograd.Function):
    """Operators of ONNX itself only, so that there is a runtime for it."""

    @staticmethod
    def symbolic(g, x):
        half = g.op("Constant", value_t=torch.tensor(0.5))
        return g.op("Relu", g.op("Sub", x, half))

    @staticmethod
    def forward(_ctx, x):
        return (x - 0.5).clamp(min=0)


class Around(torch.autograd.Function):
    """No symbolic of its own: what it computes is exported, Foo among it."""

    @staticmethod
    def forward(_ctx, x):
        return Foo.apply(x, 0.5) + 1


class Instead(torch.autograd.Function):
    """Symbolic says all: the Foo that forward applies is not to be seen."""

    @staticmethod
    def symbolic(g, x):
        return g.op("devtech::Instead", x).setType(x.type())

    @staticmethod
    def forward(_ctx, x):
        return Foo.apply(x, 0.5)


foo = Foo.apply  # bound before the export, as many do


class WithFoo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return foo(foo(self.linear(x), 0.5), 0.25) + 1


class WithSplit(torch.nn.Module):
    def forward(self, x):
        return Split.apply(x, x + 1)


class WithStandard(torch.nn.Module):
    def forward(self, x):
        return Standard.apply(x * 3)


class WithInstead(torch.nn.Module):
    def forward(self, x):
        return Instead.apply(x * 3)


class Unused(torch.nn.Module):
    def forward(self, x):
        Foo.apply(x, 0.5)
        return x + 1


class WithAround(torch.nn.Module):
    def forward(self, x):
        return Around.apply(x * 3)


def exported(module, tmp_path, exporter, **arguments):
    out = tmp_path / "model.onnx"
    arguments = {"dynamic_axes": {"x": {0: N}}, "deferred": ["Foo", "Split", "Instead"]} | arguments
    made, _ = export(module.eval(), torch.ones(2, 4), out=out, exporter=exporter, **arguments)
    return made, graphs.read(out)


def attributes(node):
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def custom(model):
    return [each for each in graphs.nodes(model) if each.domain == "devtech"]


@pytest.mark.parametrize("exporter", KEEPING)
def test_a_function_with_symbolic_is_a_node_with_its_attributes(exporter, tmp_path):
    made, model = exported(WithFoo(), tmp_path, exporter)

    first, second = custom(model)
    found = attributes(first)
    table = onnx.numpy_helper.to_array(found.pop("table"))
    assert found == {"alpha": 0.5, "rank": 2, "axes": [0, 1], "mode": b"a"}
    assert table.tolist() == [1.0, 2.0]
    assert attributes(second)["alpha"] == 0.25
    assert second.input == first.output
    assert made.outputs[0].shape == ("N", 4)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "devtech": 1}


@pytest.mark.parametrize("exporter", KEEPING)
def test_several_outputs_constants_and_onnx_operators_within_symbolic(exporter, tmp_path):
    made, model = exported(WithSplit(), tmp_path, exporter)

    (node,) = custom(model)
    assert list(node.output) == [each.name for each in made.outputs]
    writers = {name: each for each in model.graph.node for name in each.output}
    assert writers[node.input[0]].op_type == "Mul"
    assert writers[node.input[1]].op_type == "Add"
    assert [each.shape[0] for each in made.outputs] == ["N", "N"]


@pytest.mark.parametrize("exporter", KEEPING)
def test_what_symbolic_says_computes_what_forward_does(exporter, tmp_path):
    _, model = exported(WithStandard(), tmp_path, exporter)

    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    (found,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, np.maximum(x * 3 - 0.5, 0), atol=1e-6)
    assert [each.op_type for each in graphs.nodes(model)].count("Relu") == 1


def test_the_classes_are_as_they_were_when_the_export_ends(tmp_path):
    before = dict(vars(Foo)), dict(vars(Split))

    exported(WithFoo(), tmp_path, "dynamo")
    exported(WithFoo(), tmp_path, "trace")
    with pytest.raises(ExportError):
        exported(WithFoo(), tmp_path, "script")

    assert (dict(vars(Foo)), dict(vars(Split))) == before


@pytest.mark.parametrize("wrap", [lambda module: module, torch.jit.script])
def test_the_script_exporter_says_that_it_cannot_keep_it(wrap, tmp_path):
    with pytest.raises(ExportError, match="script exporter cannot keep Foo, which is Python"):
        exported(wrap(WithFoo()), tmp_path, "script")

    assert not (tmp_path / "model.onnx").exists()


def test_a_later_opset_than_torchscripts_keeps_a_node_of_its_own(tmp_path):
    _, model = exported(WithFoo(), tmp_path, "dynamo", opset=21)

    assert len(custom(model)) == 2


def test_a_later_opset_than_torchscripts_is_refused_for_operators_of_onnx(tmp_path):
    with pytest.raises(ExportError, match=r"symbolic of Standard uses .* up to opset 20"):
        exported(WithStandard(), tmp_path, "dynamo", opset=21)


@pytest.mark.parametrize("exporter", KEEPING)
def test_what_a_kept_function_applies_inside_is_its_own_affair(exporter, tmp_path):
    _, model = exported(WithInstead(), tmp_path, exporter)

    assert [each.op_type for each in custom(model)] == ["Instead"]


@pytest.mark.parametrize("exporter", KEEPING)
def test_it_is_kept_within_a_function_without_symbolic(exporter, tmp_path):
    _, model = exported(WithAround(), tmp_path, exporter)

    assert [each.op_type for each in custom(model)] == ["Foo"]


class Once(Foo):
    @staticmethod
    def forward(_ctx, x, _alpha):
        return x * 1  # PyTorch's own export of such a function fails


def test_a_forward_that_the_torchscript_exporter_fails_on_is_no_matter(tmp_path):
    class WithOnce(torch.nn.Module):
        def forward(self, x):
            return Once.apply(x + 1, 0.5)

    _, model = exported(WithOnce(), tmp_path, "dynamo")

    assert [each.op_type for each in custom(model)] == ["Foo"]


def test_an_operator_that_the_exporter_never_asked_for_is_named(tmp_path):
    with pytest.raises(ExportError, match="forward applies Foo, which defines symbolic"):
        exported(Unused(), tmp_path, "trace")

    assert not (tmp_path / "model.onnx").exists()


SCALE = """<domain: "devtech", opset_import: ["": 18]>
Scale <alpha> (x) => (y) { a = Constant <value_float: float = @alpha> () y = Mul (x, a) }"""


class Scale(torch.autograd.Function):
    @staticmethod
    def symbolic(g, x, alpha):
        return g.op("devtech::Scale", x, alpha_f=alpha).setType(x.type())

    @staticmethod
    def forward(_ctx, x, alpha):
        return x * alpha


class WithScale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return Scale.apply(self.linear(x), 0.5) + 1


def scale(form, text=SCALE):
    proto = onnx.parser.parse_function(text)
    return Operator(name="devtech::Scale", function=text if form == "text" else proto)


def error_of(artifact, module):
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    wanted = module(torch.from_numpy(x)).detach().numpy()
    with onnxruntime_runner(artifact.path) as infer:
        return np.abs(infer({"x": x})["output"] - wanted).max()


@pytest.mark.parametrize("form", ["text", "proto"])
@pytest.mark.parametrize("exporter", KEEPING)
def test_an_operator_carries_its_meaning_through_every_stage(exporter, form, tmp_path):
    module = WithScale()
    raw, model = exported(module, tmp_path, exporter, operators=[scale(form)])
    cleaned, _ = clean(raw, DEFAULT_PLAN, out=tmp_path / "clean.onnx")
    half, _ = convert(cleaned, "fp16", out=tmp_path / "fp16.onnx")

    assert [each.name for each in model.functions] == ["Scale"]
    assert [each.op_type for each in custom(graphs.read(cleaned.path))] == ["Scale"]
    assert error_of(raw, module) < 1e-6
    assert error_of(cleaned, module) < 1e-6
    assert error_of(half, module) < 5e-3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_builds_what_an_operator_means(precision, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    bare, _ = exported(WithScale(), tmp_path, "trace", deferred=["Scale"])
    with pytest.raises(EngineBuildError, match="devtech::Scale"):
        compile(bare, "sm86", out=tmp_path / "refused.engine")

    raw, _ = exported(WithScale(), tmp_path, "trace", operators=[scale("text")])
    graph, _ = convert(raw, precision, out=tmp_path / "converted.onnx")

    assert compile(graph, "sm86", out=tmp_path / "built.engine").size_bytes > 0


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("devtech::Scale", "Scale (x) => ", InvalidInputError, "devtech::Scale is not valid"),
        ("devtech::Scale", 3, InvalidInputError, "devtech::Scale is not valid"),
        ("devtech::Other", SCALE, InvalidInputError, "devtech::Other is named devtech::Scale"),
        (
            "devtech::Scale",
            SCALE.replace("18", "17"),
            InvalidInputError,
            "for opset 17, but the graph is of opset 18",
        ),
        (
            "devtech::Gone",
            SCALE.replace("Scale", "Gone"),
            ExportError,
            "devtech::Gone was given, but the graph has no such node",
        ),
    ],
)
def test_a_function_that_cannot_be_meant_is_refused(name, text, error, said, tmp_path):
    with pytest.raises(error, match=said):
        exported(WithScale(), tmp_path, "trace", operators=[Operator(name=name, function=text)])

    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("exporter", ["auto", *KEEPING])
def test_an_operator_that_nothing_implements_is_found_with_the_ways_out(exporter, tmp_path):
    with pytest.raises(ExportError) as caught:
        exported(WithFoo(), tmp_path, exporter, deferred=["devtech::Other"])

    error = caught.value
    assert error.operator == "devtech::Foo"
    assert error.node
    said = str(error)
    assert said.startswith(f"Nothing implements devtech::Foo, the operator of node {error.node!r}")
    assert all(way in said for way in ("function", "surgery plan", "library", "plugin"))
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("name", ["Foo", "devtech::Foo"])
def test_an_operator_that_is_deferred_is_named_on_the_report(name, tmp_path):
    out = tmp_path / "model.onnx"

    _, report = export(WithFoo().eval(), torch.ones(2, 4), out=out, deferred=[name])

    assert report.unverified == "ONNX Runtime does not have devtech::Foo"


class Gelu(torch.autograd.Function):
    @staticmethod
    def symbolic(g, x):
        return g.op("com.microsoft::Gelu", x).setType(x.type())

    @staticmethod
    def forward(_ctx, x):
        return torch.nn.functional.gelu(x)


class Nope(Gelu):
    @staticmethod
    def symbolic(g, x):
        return g.op("com.microsoft::Nope", x).setType(x.type())


class Applies(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x * 1.5)


@pytest.mark.parametrize("exporter", KEEPING)
def test_an_operator_that_onnxruntime_has_beside_onnx_is_run_and_compared(exporter, tmp_path):
    out = tmp_path / "model.onnx"

    _, report = export(Applies(Gelu).eval(), torch.ones(2, 4), out=out, exporter=exporter)

    assert report.unverified is None
    with pytest.raises(ExportError, match=r"implements com\.microsoft::Nope"):
        export(Applies(Nope).eval(), torch.ones(2, 4), out=out, exporter=exporter)


def test_an_operator_within_a_function_needs_an_implementation_too(tmp_path):
    text = SCALE.replace('["": 18]', '["": 18, "other": 1]').replace("Mul (", "other.Times (")

    with pytest.raises(ExportError, match="Nothing implements other::Times"):
        exported(WithScale(), tmp_path, "trace", operators=[scale("text", text)])


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ([{"bypass": {"op_type": "Foo", "domain": "devtech"}}], True),
        ([{"rename": {"inputs": {"x": "y"}}}, {"remove": {"op_type": "Foo"}}], True),
        ([{"bypass": {"op_type": "FooOp"}}, "drop_unused"], False),
    ],
)
def test_a_plan_names_the_operators_that_it_edits(plan, named):
    assert ("Foo" in named_in(plan_from(plan))) is named


class Swapped(NegPos):
    @staticmethod
    def forward(_ctx, x):
        return x.clamp(min=0), x.clamp(max=0)


@pytest.fixture
def library():
    return Path(LIBRARY)


@pytest.mark.parametrize("exporter", KEEPING)
def test_an_operator_of_a_library_is_run_and_compared(exporter, library, tmp_path):
    out, x = tmp_path / "model.onnx", torch.linspace(-1, 1, 8).reshape(2, 4)
    arguments = {"out": out, "exporter": exporter}

    with pytest.raises(ExportError, match=r"Nothing implements ai\.onnx\.contrib::NegPos"):
        export(Applies(NegPos).eval(), x, **arguments)
    made, report = export(Applies(NegPos).eval(), x, **arguments, operator_libraries=[library])

    assert report.unverified is None
    with onnxruntime_runner(made.path, libraries=describe_libraries([library])) as infer:
        np.testing.assert_allclose(infer({"x": x.numpy()})["output_0"], (x * 1.5).clamp(max=0))
    with pytest.raises(ExportError, match="does not match PyTorch"):
        export(Applies(Swapped).eval(), x, **arguments, operator_libraries=[library])


def test_a_library_that_is_not_there_or_is_none_is_named(tmp_path):
    text = tmp_path / "lib.so"
    text.write_text("no library")

    for path, said in [
        (tmp_path / "gone.so", r"There is no library .*gone\.so; give the path"),
        (text, r"lib\.so cannot be loaded: .*"),
    ]:
        with pytest.raises(InvalidInputError, match=said):
            exported(Applies(Gelu), tmp_path, "trace", operator_libraries=[path])

    assert not (tmp_path / "model.onnx").exists()


@torch.library.custom_op("mlflow_e2eai_tests::scaled", mutates_args=())
def scaled(
    x: torch.Tensor, alpha: float, axes: list[int], mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return x * alpha, x + alpha


@scaled.register_fake
def _(x, alpha, axes, mode):
    return torch.empty_like(x), torch.empty_like(x)


class WithScaled(torch.nn.Module):
    def forward(self, x):
        low, high = torch.ops.mlflow_e2eai_tests.scaled(x * 3, 0.5, [0, 1], "a")
        return low + high


SCALED = """<domain: "devtech", opset_import: ["": 18]>
Scaled <alpha, axes, mode> (x) => (low, high) {
    a = Constant <value_float: float = @alpha> ()
    low = Mul (x, a)
    high = Add (x, a)
}"""
TORCH_NAME = "mlflow_e2eai_tests::scaled"


@pytest.mark.parametrize("exporter", ["dynamo", "trace", "script"])
def test_an_operator_of_torch_library_is_a_node_by_one_declaration(exporter, tmp_path):
    operator = Operator(name="devtech::Scaled", torch_name=TORCH_NAME, function=SCALED)
    made, model = exported(WithScaled(), tmp_path, exporter, operators=[operator])

    (node,) = [each for each in model.graph.node if each.domain == "devtech"]
    assert attributes(node) == {"alpha": 0.5, "axes": [0, 1], "mode": b"a"}
    assert made.outputs[0].shape[0] == "N"  # of a script, no other size is known
    assert error_of(made, WithScaled()) < 1e-6


def test_pytorch_forgets_the_operator_when_the_export_ends(tmp_path):
    from torch.onnx._internal.torchscript_exporter.registration import registry

    operator = Operator(name="devtech::Scaled", torch_name=TORCH_NAME)
    exported(WithScaled(), tmp_path, "trace", operators=[operator], deferred=["Scaled"])

    assert not registry.is_registered_op(TORCH_NAME, 18)


def test_an_operator_that_pytorch_has_not_is_named(tmp_path):
    operator = Operator(name="devtech::Scaled", torch_name="mlflow_e2eai_tests::gone")

    with pytest.raises(InvalidInputError, match="no operator 'mlflow_e2eai_tests::gone'"):
        exported(WithScaled(), tmp_path, "trace", operators=[operator])


def test_operators_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "operators.onnx"
    bare = Operator(name="devtech::Scaled", torch_name=TORCH_NAME)
    both = Operator(name="devtech::Scaled", torch_name=TORCH_NAME, function=SCALED)
    save([bare, both, scale("text")], path)

    read = load(path)
    assert read[0] == bare
    assert [each.torch_name for each in read] == [TORCH_NAME, TORCH_NAME, None]
    assert [each.function.name for each in read[1:]] == ["Scaled", "Scale"]
