"""Generic simplification: what it folds, what it leaves, and who takes the result."""

from __future__ import annotations

import shutil
import signal
from functools import partial

import crashing_simplifier
import numpy as np
import onnx
import onnx.parser
import onnxsim
import onnxslim
import pytest
import torch
from crashing_graphs import reproduce

from mlflow_e2eai import clean, export
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.report.page import surgery_html
from mlflow_e2eai.runtime.crashes import crashes_saved
from mlflow_e2eai.surgery import simplify as libraries
from mlflow_e2eai.surgery.plan import Step

pytestmark = pytest.mark.usefixtures("on_threads")

N = Axis("N", min=1, opt=2, max=4)
HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]>'
ONLY = (Step(rule="simplify"),)

# What leads from a shape to the same shape goes, whatever is around it.
ROUND = "s = Shape(x) r = Reshape(x, s)"

GIANT = f"""
main (float[N, 1024] x) => (float[N, 1024] y)
<int64[2] sizes = {{1024, 1024}}, float one = {{1.0}}>
{{
    {ROUND}
    zeros = ConstantOfShape(sizes)
    ones = Expand(one, sizes)
    matrix = Add(zeros, ones)
    y = MatMul(r, matrix)
}}"""

BRANCHES = f"""
main (float[N, 4] x) => (float[N, 4] y)
<float[4] one = {{1.0, 1.0, 1.0, 1.0}}>
{{
    {ROUND}
    total = ReduceSum <keepdims = 0> (r)
    zero = Constant <value = float {{0.0}}> ()
    positive = Greater(total, zero)
    y = If (positive) <
        then_branch = then () => (float[N, 4] a) {{
            two = Add(one, one)
            a = Mul(r, two)
        }},
        else_branch = otherwise () => (float[N, 4] b) {{ b = Neg(r) }}
    >
}}"""

FUNCTION = f"""
main (float[N, 4] x) => (float[N, 4] y)
<float[4] one = {{1.0, 1.0, 1.0, 1.0}}>
{{
    {ROUND}
    two = Add(one, one)
    f = devtech.Twice(r)
    y = Mul(f, two)
}}
<domain: "devtech", opset_import: ["" : 18]>
Twice (a) => (b) {{ b = Add(a, a) }}
"""


def artifact(body, folder, axes=(N,)):
    model = onnx.parser.parse_model(HEADER + body)
    path = folder / "raw.onnx"
    graphs.write(model, path)
    return graphs.describe(path, stage="export", precision="fp32", axes=axes, parent_sha256=None)


def samples(width):
    generator = np.random.default_rng(0)
    return [
        {"x": sign * generator.uniform(0.5, 1, (size, width)).astype(np.float32)}
        for size in (1, 2, 4)
        for sign in (1, -1)
    ]


def operators(path):
    return sorted(node.op_type for node in graphs.nodes(graphs.read(path)))


def test_a_giant_tensor_is_not_written_out_and_the_rest_is_simplified(tmp_path):
    raw = artifact(GIANT, tmp_path)
    written_out = onnxslim.slim(onnxsim.simplify(onnx.load(raw.path))[0])
    assert written_out.ByteSize() > 4 << 20

    made, report = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=samples(1024))

    assert report.size_after_bytes < report.size_before_bytes + (1 << 20)
    assert not {"Shape", "Reshape"} & set(operators(made.path))
    assert report.edits["simplify"] >= 2


def test_a_small_tensor_is_written_out(tmp_path):
    raw = artifact(GIANT.replace("1024", "64"), tmp_path)
    made, _ = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=samples(64))
    assert operators(made.path) == ["MatMul"]


def test_both_branches_of_an_if_stay_and_give_their_numbers(tmp_path):
    raw = artifact(BRANCHES, tmp_path)
    made, report = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=samples(4))
    assert {"If", "Mul", "Neg"} <= set(operators(made.path))
    assert "Reshape" not in operators(made.path)
    assert report.max_abs_error == 0


def test_a_local_function_is_still_called_by_name(tmp_path):
    raw = artifact(FUNCTION, tmp_path)
    made, _ = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=samples(4))
    model = graphs.read(made.path)
    assert [node.op_type for node in model.graph.node] == ["Twice", "Mul"]
    assert [function.name for function in model.functions] == ["Twice"]


class TestWeights:
    """Tables and matrices stay out of the libraries' sight, and come back as they were."""

    def large(self, folder):
        generator = np.random.default_rng(0)
        table, matrix = (generator.standard_normal((400, 64)).astype(np.float32) for _ in range(2))
        model = onnx.parser.parse_model(
            HEADER
            + """
main (int64[N] x) => (float[N, 400] y, float[N, 64] z) {
    rows = Gather(table, x)
    s = Shape(rows)
    z = Reshape(rows, s)
    turned = Transpose <perm = [1, 0]> (turn)
    a = MatMul(z, matrix)
    b = MatMul(z, turned)
    y = Add(a, b)
}"""
        )
        for name, values in (("table", table), ("matrix", matrix.T.copy()), ("turn", matrix)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        path = folder / "raw.onnx"
        graphs.write(model, path)
        return graphs.describe(
            path, stage="export", precision="fp32", axes=(N,), parent_sha256=None
        )

    def test_they_are_there_again_and_the_numbers_too(self, tmp_path):
        raw = self.large(tmp_path)
        asked = [{"x": np.arange(size) * 90} for size in (1, 4)]
        made, report = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=asked)
        # The Transpose is folded: its weight is not one that only a MatMul reads.
        assert {"Shape", "Transpose"}.isdisjoint(operators(made.path))
        assert [spec.name for spec in made.inputs] == ["x"]
        assert report.max_abs_error == 0

    def test_the_libraries_are_given_the_others_only(self, tmp_path, monkeypatch):
        seen = []
        simplified = libraries._run_simplifiers

        def watch(model, *rest):
            seen.append({tensor.name for tensor in model.graph.initializer})
            return simplified(model, *rest)

        monkeypatch.setattr(libraries, "_run_simplifiers", watch)
        clean(self.large(tmp_path), ONLY, out=tmp_path / "clean.onnx")
        assert {name for names in seen for name in names} == {"turn"}

    def test_three_that_one_tensor_is_multiplied_by_become_one(self, tmp_path):
        names = ("query", "key", "value")
        model = onnx.parser.parse_model(
            HEADER
            + """
main (float[N, 128] x) => (float[N, 128] q, float[N, 128] k, float[N, 128] v) {
    h = Relu(x)
    q = MatMul(h, query)
    k = MatMul(h, key)
    v = MatMul(h, value)
}"""
        )
        generator = np.random.default_rng(0)
        for name in names:
            values = generator.standard_normal((128, 128)).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        graphs.write(model, tmp_path / "raw.onnx")
        raw = graphs.describe(
            tmp_path / "raw.onnx", stage="export", precision="fp32", axes=(N,), parent_sha256=None
        )
        _, report = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=samples(128))
        assert report.operators_after == {"Relu": 1, "MatMul": 1, "Split": 1}

    def test_a_table_whose_rows_are_known_by_then_is_folded_at_once(self, tmp_path):
        model = onnx.parser.parse_model(
            HEADER
            + """
main (float[N, 128] x) => (float[N, 128] y)
<int64[1] one = {1}, int64[2] shape = {1, 1}> {
    zero = Sub(one, one)
    index = Reshape(zero, shape)
    row = Gather(table, index)
    flat = Squeeze(row, zero)
    y = Add(x, flat)
}"""
        )
        table = np.random.default_rng(0).standard_normal((512, 128)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
        graphs.write(model, tmp_path / "raw.onnx")
        raw = graphs.describe(
            tmp_path / "raw.onnx", stage="export", precision="fp32", axes=(N,), parent_sha256=None
        )
        made, report = clean(raw, ONLY, out=tmp_path / "clean.onnx", samples=samples(128))
        assert report.operators_after == {"Add": 1}
        assert clean(made, ONLY, out=tmp_path / "again.onnx")[1].edits == {"simplify": 0}

    def test_they_are_back_where_nothing_could_be_simplified(self, tmp_path, monkeypatch):
        monkeypatch.setattr(libraries, "_run_simplifiers", lambda model, *_: model)
        raw = self.large(tmp_path)
        made, report = clean(raw, ONLY, out=tmp_path / "clean.onnx")
        assert report.edits["simplify"] == 0
        names = {tensor.name for tensor in graphs.read(made.path).graph.initializer}
        assert names == {"table", "matrix", "turn"}


@pytest.mark.parametrize("body", [GIANT, BRANCHES, FUNCTION])
def test_tensorrt_rtx_builds_an_engine_of_what_comes_out(body, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    width = 1024 if body is GIANT else 4
    made, _ = clean(
        artifact(body, tmp_path), ONLY, out=tmp_path / "clean.onnx", samples=samples(width)
    )
    assert compile(made, "sm86", out=tmp_path / "engine").path.stat().st_size > 0


SMALL = """
main (float[N, 4] x) => (float[N, 4] y) <float[4] one = {1.0, 1.0, 1.0, 1.0}> {
    s = Shape(x)
    r = Reshape(x, s)
    two = Add(one, one)
    y = Mul(r, two)
}"""


class TestFailures:
    """A library that fails, crashes or changes numbers is left out, and the report says so."""

    def fail(self, *_, **__):
        message = "assertion failed at ir.h:1857"
        raise RuntimeError(message)

    def cleaned(self, folder, body=SMALL):
        return clean(
            artifact(body, folder), ONLY, out=folder / "clean.onnx", samples=samples(4)[:2]
        )

    @pytest.mark.usefixtures("in_processes")
    def test_of_a_healthy_graph_there_is_nothing_to_say(self, tmp_path):
        _, report = self.cleaned(tmp_path, BRANCHES)
        assert (report.notes, report.edits["simplify"] > 0) == ((), True)

    @pytest.mark.parametrize(
        ("library", "function"), [("onnxsim", "simplify"), ("onnxslim", "slim")]
    )
    def test_the_other_library_goes_on_where_one_fails(
        self, library, function, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(f"{library}.{function}", self.fail)
        made, report = self.cleaned(tmp_path)
        (note,) = report.notes
        assert note.startswith(
            f"{library} was skipped by simplify, because it fails on this graph: "
        )
        assert note in surgery_html(report)
        assert "Add" not in operators(made.path)

    def test_the_graph_goes_on_as_it_is_where_both_fail(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnxsim, "simplify", self.fail)
        monkeypatch.setattr(onnxslim, "slim", self.fail)
        made, report = self.cleaned(tmp_path)
        assert operators(made.path) == ["Add", "Mul", "Reshape", "Shape"]
        assert len(report.notes) == 2

    @pytest.mark.usefixtures("in_processes")
    def test_a_library_that_ends_its_process_is_left_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr(libraries, "_simplify", crashing_simplifier.simplify)
        made, report = self.cleaned(tmp_path)
        (note,) = report.notes
        assert note.startswith("onnxsim was skipped by simplify")
        assert "crashed" in note
        assert operators(made.path) == ["Mul"]

    @pytest.mark.usefixtures("in_processes")
    @pytest.mark.parametrize("name", ["onnxsim", "onnxslim"])
    def test_the_graph_that_it_died_on_is_kept_with_a_script_for_it(
        self, name, tmp_path, monkeypatch
    ):
        simplify = partial(crashing_simplifier.simplify_or_die, name)
        monkeypatch.setattr(libraries, "_simplify", simplify)

        def keep(folder):
            shutil.copytree(folder, tmp_path / "crash")
            return "the folder of this test"

        with crashes_saved(keep):
            _, report = self.cleaned(tmp_path)
        (note,) = report.notes
        assert "reproduction are in the folder of this test." in note
        assert "sample.npz" not in {path.name for path in (tmp_path / "crash").iterdir()}
        script = tmp_path / "crash" / "reproduce.py"
        assert reproduce(script.parent).returncode == 0  # the library itself is sound
        (script.parent / f"{name}.py").write_text("import os\nos.abort()\n")
        script.write_text(
            f"import sys; sys.path.insert(0, '{script.parent}')\n{script.read_text()}"
        )
        assert reproduce(script.parent).returncode == -signal.SIGABRT

    @pytest.mark.parametrize("what", ["a weight", "an output's name", "a node"])
    def test_a_library_that_makes_another_graph_is_left_out(self, what, tmp_path, monkeypatch):
        simplified = onnxsim.simplify

        def spoil(model):
            made, is_same = simplified(model)
            if what == "a weight":
                wrong = np.full(4, 3, np.float32)
                for weight in made.graph.initializer:
                    weight.CopyFrom(onnx.numpy_helper.from_array(wrong, weight.name))
            elif what == "an output's name":
                made.graph.output[0].name = made.graph.node[-1].output[0] = "renamed"
            else:
                made.graph.node[-1].op_type = "Div"
            return made, is_same

        monkeypatch.setattr(onnxsim, "simplify", spoil)
        made, report = self.cleaned(tmp_path)
        assert len(report.notes) == 1
        assert "onnxsim" in report.notes[0] or "with onnxslim" in report.notes[0]
        assert report.max_abs_error == 0
        assert "Mul" in operators(made.path)

    def test_a_step_that_is_required_is_not_replaced(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnxsim, "simplify", lambda model: (swapped(model), True))
        plan = (Step(rule="simplify", required=True),)
        raw = artifact(SMALL, tmp_path)
        with pytest.raises(SurgeryError, match="changed the numbers"):
            clean(raw, plan, out=tmp_path / "clean.onnx", samples=samples(4)[:2])

    def test_a_library_that_there_is_not_is_refused(self, tmp_path):
        plan = (Step(rule="simplify", arguments={"libraries": ["onnxruntime"]}),)
        with pytest.raises(SurgeryError, match="no library 'onnxruntime' to simplify with"):
            clean(artifact(SMALL, tmp_path), plan, out=tmp_path / "clean.onnx")

    def test_a_branch_that_onnxsim_asserts_about_is_cleaned_by_onnxslim(self, tmp_path):
        x, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
        example = {"x": x, "mask": mask}
        raw, _ = export(Masked().eval(), example, out=tmp_path / "raw.onnx", exporter="script")
        mask[1, 2:] = False
        given = [{name: value.numpy() for name, value in example.items()}]
        made, report = clean(raw, out=tmp_path / "clean.onnx", samples=given)
        assert [note.partition(" ")[0] for note in report.notes] == ["onnxsim"]
        assert report.max_abs_error < 1e-6
        assert "If" in operators(made.path)


class Masked(torch.nn.Module):
    """Fills what is masked, where something is."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(4, 4)

    def forward(self, x, mask):
        y = self.line(x)
        if not bool(mask.all()):
            y = y.masked_fill(~mask.unsqueeze(-1), 0.0)
        return y.sum(1)


def swapped(model):
    """The model with another operator at its end."""
    model.graph.node[-1].op_type = "Div"
    del model.graph.node[:-1]
    model.graph.node[-1].input[:] = ["x", "one"]
    return model
