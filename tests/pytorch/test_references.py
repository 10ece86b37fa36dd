"""What a module is run on before a graph is believed, and that it is left as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from mlflow_e2eai import export
from mlflow_e2eai.artifacts.axes import axes_of, input_specs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.pytorch.flat_module import flatten_module
from mlflow_e2eai.pytorch.guards import telling_sizes
from mlflow_e2eai.pytorch.module import evaluation_mode
from mlflow_e2eai.pytorch.references import References, TriedSizes
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]

N, T = Axis("N", min=1, opt=2, max=4), Axis("T", min=2, opt=4, max=16)
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "model.onnx"


def references(module, example, axes=None):
    """The samples of a module, without an export."""
    module, given = flatten_module(module.eval(), example)
    specs = input_specs(given, axes or {})
    with evaluation_mode(module) as opened:
        found = References(
            module=module, example=given, specs=specs, axes=axes_of(axes or {}), state=opened.state
        )
        found.add_all()
    return found


def labels(found):
    return {each.label for each in found.samples}


def largest_error(artifact, module, **inputs):
    """Of a graph against the module it was made of, on inputs of any size."""
    with onnxruntime_runner(artifact.path) as infer:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        (answer,) = infer(given).values()
    return float(np.nanmax(np.abs(answer - module(**inputs).detach().numpy())))


# Sizes between the corners


class PadsOdd(torch.nn.Module):
    """Takes odd lengths another way: all corners are even."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] % 2 == 1:
            x = torch.nn.functional.pad(x, [0, 1]) * 2.0
        return x.reshape(x.shape[0], -1, 2).sum(2)


class Strides(torch.nn.Module):
    """Takes multiples of a number along its second axis, and not some number of items."""

    def __init__(self, multiple: int, odd: int = 0):
        super().__init__()
        self.multiple, self.odd = multiple, odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == self.odd:
            raise ValueError(x.shape)
        return x.reshape(len(x), -1, self.multiple).sum(2)


@pytest.mark.parametrize(
    ("multiple", "declared", "low", "high"),
    [(8, 1, 32, 128), (12, 1, 48, 96), (7, 1, 14, 28), (16, 8, 32, 64), (6, 1, 6, 12)],
)
def test_the_multiple_that_a_module_takes_is_found_and_compared_between_the_corners(
    multiple, declared, low, high
):
    length = Axis("T", min=low, opt=low, max=high, multiple=declared)
    found = references(Strides(multiple), torch.ones(2, low), {"x": {0: N, 1: length}})

    assert found.tried.multiples == {"T": multiple}
    assert f"declare Axis('T', ..., multiple={multiple})" in found.tried.advice
    inside = {sizes["T"] for sizes in found.tried.taken} - {low, high}
    assert bool(inside) == (high - low > multiple)
    assert all(sizes["T"] % multiple for sizes in found.tried.refused)


def test_no_multiple_is_named_where_it_does_not_explain_every_refusal():
    length = Axis("T", min=16, opt=16, max=64, multiple=8)
    found = references(Strides(8, odd=3), torch.ones(2, 16), {"x": {0: N, 1: length}})

    assert {sizes["N"] for sizes in found.tried.refused} == {3}
    assert found.tried.multiples == {}
    assert found.tried.advice.startswith("Narrow the axes, or declare Axis(")


@pytest.mark.parametrize("taken", [(), ({"H": 4},), ({"N": 0},)])
def test_sizes_that_say_nothing_of_an_axis_name_no_multiple_of_it(taken):
    found = TriedSizes(taken=taken, refused=({"N": 3},))

    assert found.multiples == {}
    assert found.advice.startswith("Narrow the axes, or declare Axis(")


def test_a_module_that_takes_all_sizes_has_no_refusals_and_no_more_samples():
    found = references(torch.nn.Linear(4, 3), X, {"input": {0: N}})

    assert (found.tried.refused, found.tried.multiples) == ((), {})
    assert found.tried.taken == ({"N": 2}, {"N": 1}, {"N": 4}, {"N": 3})


def test_a_graph_that_is_wrong_at_odd_sizes_alone_is_refused(out):
    axes = {"x": {1: T}}
    with pytest.raises(ExportError, match=r"on the sample '.*T=\d*[13579]'"):
        export(PadsOdd().eval(), {"x": X}, out=out, dynamic_axes=axes, exporter="trace")


def test_sizes_that_a_module_refuses_are_left_out_and_the_report_has_both(out):
    class Even(torch.nn.Module):
        def forward(self, x):
            return x.unflatten(1, (-1, 2)).sum(2)

    found = references(Even(), {"x": X}, {"x": {1: T}})
    assert {"opt", "min", "max"} <= labels(found)
    assert "the model fails on it" in found.left_out["T=3"]
    _, report = export(
        torch.nn.Tanh().eval(), {"input": X}, out=out, dynamic_axes={"input": {0: N}}
    )
    assert {"opt", "min", "max", "N=3", "fresh numbers"} <= set(report.samples)
    assert report.left_out == {}


def test_the_guards_of_a_program_point_at_sizes():
    class Guarded(torch.nn.Module):
        def forward(self, x):
            x = x * 2 if x.shape[1] % 3 else x
            return x if x.shape[1] > 11 else -x

    axes = {"x": {1: Axis("T", min=2, opt=4, max=64)}}
    program = torch.export.export(
        Guarded(), (X,), dynamic_shapes=({1: torch.export.Dim.AUTO},), strict=False
    )
    specs = input_specs({"x": X.numpy()}, axes)
    sizes = {each["T"] for each in telling_sizes(program, specs, axes_of(axes))}
    assert {11, 12} <= sizes
    assert {0, 1, 2} <= {size % 3 for size in sizes}


# Values that the example never varies


class MasksSome(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not bool(mask.all()):
            x = x.masked_fill(~mask, 0.0)
        return x.sum(1) / mask.sum(1)


class Skips(torch.nn.Module):
    """Counts what is not padding, if there is any padding."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        kept = (ids != 0).float()
        return kept.sum(1) if bool((ids == 0).any()) else kept.sum(1) * 3.0


class Repeats(torch.nn.Module):
    def forward(self, x: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        for _ in range(int(count)):
            x = x * 1.5
        return x + count


class Adds(torch.nn.Module):
    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.zeros(6, 4).index_add(0, index, x)


FROZEN: dict[str, tuple[type[torch.nn.Module], dict[str, Any], str]] = {
    "a mask that is all True": (MasksSome, {"x": X, "mask": torch.ones(2, 4).bool()}, "mask: one"),
    "tokens without padding": (Skips, {"ids": torch.tensor([[3, 1, 2], [4, 9, 5]])}, "ids: all 0|"),
    "a count of one": (Repeats, {"x": X, "count": torch.tensor(1)}, "count: one more"),
    "indices without duplicates": (Adds, {"x": X, "index": torch.tensor([3, 1])}, "index: "),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_what_was_frozen_on_the_example_is_refused_with_the_sample(kind, out):
    module, example, label = FROZEN[kind]
    with pytest.raises(ExportError, match=rf"on the sample '({label})"):
        export(module().eval(), example, out=out, exporter="trace", opset=17)


class AsksItself(torch.nn.Module):
    """The tracer warns of the question, whose answer is always the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool((x * 0 == 0).all()) else x


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_trace_that_froze_a_value_stands_behind_script(out):
    _, report = export(AsksItself().eval(), {"x": X}, out=out, opset=17)
    assert (report.exporter, report.frozen) == ("script", None)
    assert "is taken only if no other" in report.refused["trace"]


def test_a_trace_that_froze_a_value_is_taken_where_no_other_is_left_and_that_is_said(out):
    class Unscriptable(AsksItself):
        def forward(self, x, *others):
            return super().forward(x)

    _, report = export(Unscriptable().eval(), {"x": X}, out=out, opset=17)
    assert (report.exporter, list(report.refused)) == ("trace", ["script"])
    assert report.frozen.startswith("test_references.py:")


def test_a_trace_that_froze_a_value_is_refused_where_no_other_value_is_taken(out):
    class OnlyOnes(torch.nn.Module):
        def forward(self, x, flag):
            if not bool((flag == 5).all()):
                raise ValueError(flag)
            return x * flag.sum()

    example = {"x": X, "flag": torch.tensor([5, 5])}
    with pytest.raises(ExportError, match="may be wrong for other values of 'flag'"):
        export(OnlyOnes().eval(), example, out=out, exporter="trace")


def test_other_values_reach_the_padding_that_an_embedding_names():
    found = references(torch.nn.Embedding(9, 2, padding_idx=7), {"input": torch.tensor([[1, 2]])})
    assert "input: some 7" in labels(found)


def test_a_padded_encoder_is_healthy_and_its_fast_path_is_told_apart(out):
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.layers = torch.nn.TransformerEncoder(layer, 1)

        def forward(self, x, padding):
            return self.layers(x, src_key_padding_mask=padding)

    torch.manual_seed(0)
    module = Encoder().eval()
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    found = references(module, {"x": torch.randn(2, 4, 4), "padding": padding})
    assert "on the sample 'static'" in found.fast_path_difference(("output",))
    assert torch.backends.mha.get_fastpath_enabled()
    axes = {"x": {0: N}, "padding": {0: N}}
    example = {"x": torch.randn(2, 4, 4), "padding": padding}
    _, report = export(module, example, out=out, dynamic_axes=axes)
    assert (report.exporter, report.unverified) == ("dynamo", None)
    assert "the numbers without it" in report.fast_path
    assert "the graph gives NaN" in report.left_out["padding: all True"]


def test_a_row_that_is_masked_whole_refuses_no_graph_of_an_exporter_that_froze_nothing(out):
    class Attends(torch.nn.Module):
        def forward(self, x, mask):
            attend = torch.nn.functional.scaled_dot_product_attention
            x = x[:, None]
            return attend(x, x, x, attn_mask=mask[:, None, None, :])

    example = {"x": torch.randn(2, 4, 4), "mask": torch.ones(2, 4).bool()}
    _, report = export(Attends().eval(), example, out=out)
    assert (report.exporter, report.refused) == ("dynamo", {})
    assert "mask: one False" in report.samples
    assert "reduction may run over nothing" in report.left_out["mask: all False"]


# Answers that are not finite


class Bans(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2 + 1 if bool(x.sum() > 0) else x
        return x.masked_fill(torch.tensor([False, True, False, True]), float("-inf"))


def test_an_output_that_always_holds_an_infinity_is_compared_all_the_same(out):
    with pytest.raises(ExportError, match=r"froze a value .*'zeros'"):
        export(Bans().eval(), {"x": X.abs()}, out=out, exporter="trace")
    _, report = export(torch.nn.Threshold(0.0, float("-inf")).eval(), {"input": X}, out=out)
    assert report.unverified is None
    assert "negated" in report.samples


def test_nan_of_other_values_alone_decides_nothing():
    class Root(torch.nn.Module):
        def forward(self, x):
            return torch.sqrt(x)

    found = references(Root(), {"x": X.abs()})
    assert "not finite" in found.left_out["negated"]
    assert "static" in labels(found)


# State


class Moves(torch.nn.Module):
    """Moves all that a module can move, and gives the same outputs."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.register_buffer("load", torch.zeros(4))
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.tensor(0))
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.load.mul_(0.9).add_(x.mean(0))
        self.steps = self.steps + 1
        self.calls += 1
        self.seen.append(x.shape)
        self.last = x
        return self.layer(x)


def state_of(module):
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return buffers, module.calls, list(module.seen), module.training, hasattr(module, "last")


def generators():
    numbers = np.random.get_state()  # noqa: NPY002 - the caller's
    return random.getstate(), str(numbers), torch.get_rng_state().tolist()


def draw(*_):
    random.random()  # noqa: S311 - no secret
    np.random.rand()  # noqa: NPY002 - the caller's
    torch.rand(1)


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.filterwarnings("ignore:The model is in training mode")
def test_a_module_and_the_random_generators_are_as_before(fails, out):
    module = Moves().train()
    hook = module.register_forward_hook(draw)
    before, drawn, buffer = state_of(module), generators(), module.steps
    if fails:
        with pytest.raises(InvalidInputError):
            export(module, {"x": X[:, :3]}, out=out)
    else:
        export(module, {"x": X}, out=out, dynamic_axes={"x": {0: N}})
    assert str(state_of(module)) == str(before)
    assert generators() == drawn
    assert module.steps is buffer
    assert hook.id in module._forward_hooks


class Caches(torch.nn.Module):
    """Moves a parameter, and tensors and arrays inside of containers, in place."""

    def __init__(self):
        super().__init__()
        self.centre = torch.nn.Parameter(torch.zeros(4))
        self.layers = [{"keys": torch.zeros(4), "length": 0}]
        self.pair = (torch.zeros(4), np.zeros(4))

    def forward(self, x):
        with torch.no_grad():
            self.centre += 1
        self.layers[0]["keys"] += 1
        self.layers[0]["length"] += 1
        self.layers.append({})
        self.pair[0].mul_(2).sub_(1)
        self.pair[1][:] = 7
        return x * 2


def test_parameters_and_what_containers_hold_are_as_before_too(out):
    module = Caches().eval()
    layer, keys = module.layers[0], module.layers[0]["keys"]
    export(module, {"x": X}, out=out, exporter="trace")
    assert not module.centre.any()
    assert len(module.layers) == 1
    assert module.layers[0] is layer
    assert (layer["length"], layer["keys"] is keys, bool(keys.any())) == (0, True, False)
    assert not module.pair[0].any()
    assert not module.pair[1].any()


class Learns(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.inner = torch.nn.Linear(width, width)

    def forward(self, x):
        with torch.no_grad():
            self.inner.bias += 1
        return self.inner(x)


@pytest.mark.parametrize("width", [4, 2100])
def test_a_parameter_that_forward_moves_is_named_also_in_a_model_too_large_to_copy(width, out):
    module = Learns(width).eval()
    before = module.inner.bias.clone()
    with pytest.raises(
        InvalidInputError, match=r"forward changes 'inner\.bias', which is not an input"
    ):
        export(module, {"x": torch.ones(2, width)}, out=out)
    assert torch.equal(module.inner.bias, before) == (width == 4)


def test_a_runner_gives_the_state_back_after_each_call():
    module = Moves().eval()
    before = state_of(module)
    with torch_runner(module, inputs=["x"], outputs=["y"]) as infer:
        for _ in range(2):
            infer({"x": X.numpy()})
            assert (module.calls, int(module.steps)) == (0, 0)
    assert str(state_of(module)) == str(before)


class Steps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("position", torch.tensor(0.0))

    def forward(self, x):
        self.position += 1
        return x + self.position


class Counts(torch.nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Draws(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, training=True)


@pytest.mark.parametrize(
    ("module", "cause"),
    [(Steps, "changes 'position'"), (Counts, "changes 'calls'"), (Draws, "draws random numbers")],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_module_whose_second_output_differs_is_named_with_the_cause(module, cause, nested, out):
    example = {"x": X} if not nested else {"x": X, "scale": 2.0}
    inner = module().eval()
    if nested:
        inner.forward = lambda x, scale: type(inner).forward(inner, x) * scale
    with pytest.raises(
        InvalidInputError, match=f"two outputs for the same input.*: forward {cause}"
    ):
        export(inner, example, out=out)


# Modules and tensors of other kinds


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_module_is_exported_as_it_is_written(inside, out):
    def refuse(*_):
        msg = "compiled"
        raise AssertionError(msg)

    compiled = torch.compile(torch.nn.Linear(4, 3).eval(), backend=refuse)
    module = torch.nn.Sequential(compiled) if inside else compiled
    made, _ = export(module.eval(), {"input": X}, out=out, exporter="dynamo")
    assert made.outputs[0].shape == (2, 3)


class ToHalf(torch.nn.Module):
    def forward(self, x):
        return x.bfloat16()


META = torch.nn.Linear(4, 3, device="meta")
COMPLEX = torch.randn(2, 4, dtype=torch.complex64)
ODD = {
    "bfloat16": (torch.nn.Linear(4, 3), X.bfloat16(), "bfloat16, which NumPy does not have"),
    "bfloat16 out": (ToHalf(), X, "Output 'output' of the model is a Tensor of torch.bf"),
    "sparse": (torch.nn.Linear(4, 3), X.to_sparse(), "sparse_coo, but a dense tensor is expected"),
    "meta": (torch.nn.Linear(4, 3), X.to("meta"), "a meta tensor"),
    "meta module": (META, X, "'weight' has no values yet"),
    "lazy module": (torch.nn.LazyLinear(3), X, "'weight' has no values yet"),
    "complex": (torch.nn.Identity(), COMPLEX, "which ONNX Runtime does not have"),
    "nested": (
        torch.nn.Identity(),
        torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged),
        "nested, but a dense",
    ),
    "text": (torch.nn.Identity(), np.array(["text"]), "ndarray of <U4"),
    "long double": (torch.nn.Identity(), np.ones(2, np.longdouble), "ndarray of float"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_onnx_or_numpy_has_no_form_for_is_one_sentence(kind, out):
    module, example, found = ODD[kind]
    with pytest.raises(InvalidInputError, match=found):
        export(module.eval(), example, out=out)


@pytest.mark.parametrize(
    "example",
    [COMPLEX.conj().imag, np.ones((2, 4), ">f4"), torch.zeros(0, 4), X.t().contiguous().t()],
    ids=["negated", "big endian", "no rows", "strided"],
)
def test_views_and_byte_orders_go_through(example):
    found = references(torch.nn.Linear(4, 3), example)
    assert "static" in labels(found)


# Inputs that depend on each other


class Passes(torch.nn.Module):
    def forward(self, x, edge):
        return x.index_add(0, edge[1], x[edge[0]])


class Packs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.GRU(4, 5, batch_first=True)

    def forward(self, x, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.cell(packed)[1][-1]


def test_graphs_and_packed_sequences_take_every_sample_at_their_sizes():
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    nodes, pairs = Axis("V", min=2, opt=5, max=9), Axis("E", min=1, opt=5, max=12)
    graph = references(
        Passes(), {"x": torch.randn(5, 4), "edge": edges}, {"x": {0: nodes}, "edge": {1: pairs}}
    )
    packed = references(
        Packs(),
        {"x": torch.randn(3, 6, 4), "lengths": torch.tensor([6, 4, 2])},
        {"x": {0: Axis("N", min=1, opt=3, max=5)}, "lengths": {0: Axis("N", min=1, opt=3, max=5)}},
    )
    for found in (graph, packed):
        assert not [label for label in found.left_out if "=" in label]


def test_a_sample_that_was_made_here_and_is_refused_is_not_the_callers_mistake(out):
    class Whole(torch.nn.Module):
        def forward(self, x):
            return x.reshape(2, 4)

    with pytest.raises(
        InvalidInputError, match="that was made of the example at the min size"
    ) as e:
        export(Whole().eval(), {"x": X}, out=out, dynamic_axes={"x": {0: N}})
    assert "narrow the axes" in str(e.value)
    assert "dtypes and shapes" not in str(e.value)
