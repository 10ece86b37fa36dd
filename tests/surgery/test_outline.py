"""The graph before and after surgery, laid over each other."""

import itertools
import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.surgery import outline as module
from mlflow_e2eai.surgery.outline import outline_of


def graph(*nodes: str) -> onnx.ModelProto:
    """A graph of nodes such as ``b=Relu(a)``; a node has the name of what it writes."""
    made = []
    for text in nodes:
        out, _, call = text.partition("=")
        operator, _, inputs = call.rstrip(")").partition("(")
        read = [name for name in inputs.split(",") if name]
        domain, _, op_type = operator.rpartition("::")
        made.append(helper.make_node(op_type, read, [out], name=out, domain=domain))
    return helper.make_model(helper.make_graph(made, "g", [], []))


def states(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, str]:
    return {f"{n.name}={n.operator}": n.state for n in outline_of(before, after).nodes}


def named_edges(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, set[str]]:
    found = outline_of(before, after)
    names = [node.name for node in found.nodes]
    return {
        kind: {f"{names[writer]}>{names[reader]}" for writer, reader in getattr(found, kind)}
        for kind in ("kept", "removed", "added")
    }


CHAIN = graph("a=Conv(x)", "b=devtech::FooOp(a)", "c=Relu(b)")
BYPASSED = graph("a=Conv(x)", "c=Relu(a)")


def test_a_node_that_is_gone_is_removed_and_its_neighbours_are_kept():
    assert states(CHAIN, BYPASSED) == {
        "a=Conv": "kept",
        "b=devtech::FooOp": "removed",
        "c=Relu": "kept",
    }


def test_edges_say_who_read_whom_before_and_who_does_now():
    assert named_edges(CHAIN, BYPASSED) == {
        "kept": set(),
        "removed": {"a>b", "b>c"},
        "added": {"a>c"},
    }


def test_a_graph_against_itself_is_kept_whole():
    found = outline_of(CHAIN, CHAIN)

    assert {node.state for node in found.nodes} == {"kept"}
    assert found.kept == ((0, 1), (1, 2))
    assert (found.removed, found.added, dict(found.beyond)) == ((), (), {})


def test_a_name_with_another_operator_is_two_nodes():
    after = graph("a=Conv(x)", "b=Identity(a)", "c=Relu(b)")

    assert states(CHAIN, after) == {
        "a=Conv": "kept",
        "b=devtech::FooOp": "removed",
        "b=Identity": "added",
        "c=Relu": "kept",
    }


def with_attribute(value: object) -> onnx.ModelProto:
    node = helper.make_node("Op", ["x"], ["y"], name="n", value=value)
    return helper.make_model(helper.make_graph([node], "g", [], []))


RAW = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), name="one name")
LISTED = helper.make_tensor("another", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
OTHER = helper.make_tensor("another", onnx.TensorProto.FLOAT, [2], [1.0, 2.5])


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (1, 1, "kept"),
        (1, 2, "changed"),
        ([1, 2], [1, 2], "kept"),
        ([1, 2], [2, 1], "changed"),
        ("a", "a", "kept"),
        ("a", "b", "changed"),
        (RAW, LISTED, "kept"),
        (RAW, OTHER, "changed"),
    ],
)
def test_a_node_with_other_attributes_is_changed(before, after, state):
    found = outline_of(with_attribute(before), with_attribute(after))

    assert [node.state for node in found.nodes] == [state]


def test_what_a_branch_reads_from_outside_is_read_by_the_node_that_has_it():
    branch = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["inner"])],
        "then",
        [],
        [helper.make_empty_tensor_value_info("inner")],
    )
    nodes = [
        helper.make_node("Conv", ["x"], ["a"], name="a"),
        helper.make_node("If", ["p"], ["y"], name="y", then_branch=branch, else_branch=branch),
    ]
    found = helper.make_model(helper.make_graph(nodes, "g", [], []))

    assert outline_of(found, found).kept == ((0, 1),)
    assert [node.state for node in outline_of(found, found).nodes] == ["kept", "kept"]


def test_two_nodes_that_were_swapped_stand_as_before():
    before = graph("a=Relu(x)", "b=Neg(a)", "c=Exp(b)")
    after = graph("b=Neg(x)", "a=Relu(b)", "c=Exp(a)")
    found = outline_of(before, after)

    assert [node.name for node in found.nodes] == ["a", "b", "c"]
    assert (found.removed, found.added) == (((0, 1), (1, 2)), ((0, 2), (1, 0)))


def test_a_node_that_reads_a_later_one_now_moves_behind_it():
    before = graph("c=Relu(x)", "a=Neg(x)")
    after = graph("a=Neg(x)", "n=Exp(a)", "c=Relu(n)")

    assert [node.name for node in outline_of(before, after).nodes] == ["a", "n", "c"]


def test_of_a_large_graph_the_first_are_listed_and_the_rest_counted(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    before = graph(*(f"n{at}=Relu(n{at - 1})" for at in range(6)))
    after = graph(*(f"n{at}=Relu(n{at - 1})" for at in range(5)))
    found = outline_of(before, after)

    assert [node.name for node in found.nodes] == ["n0", "n1", "n2"]
    assert found.kept == ((0, 1), (1, 2))
    assert dict(found.beyond) == {"kept": 2, "removed": 1}


def test_the_largest_outline_is_small_beside_a_manifest():
    names = [f"/encoder/layer.{at}/attention/self/query/MatMul" for at in range(2 * module.MOST)]
    nodes = [
        helper.make_node("MatMul", [before], [after], name=after)
        for before, after in itertools.pairwise(names)
    ]
    found = outline_of(*2 * [helper.make_model(helper.make_graph(nodes, "g", [], []))])

    assert len(found.nodes) == module.MOST
    assert len(to_json(found)) < 300_000
    assert json.loads(to_json(found))["beyond"] == {"kept": module.MOST - 1}


SIZES = st.integers(1, 12)


@given(data=st.data(), count=SIZES)
def test_a_node_comes_after_all_that_it_reads_before_and_after(data, count):
    """Each graph is a random one whose nodes read earlier ones only."""

    def drawn() -> onnx.ModelProto:
        chosen: list[int] = []
        nodes = []
        for at in range(count):
            if data.draw(st.booleans()):
                read = [f"n{other}" for other in chosen if data.draw(st.booleans())]
                nodes.append(f"n{at}=Sum({','.join(read)})")
                chosen.append(at)
        return graph(*nodes)

    found = outline_of(drawn(), drawn())

    assert all(writer < reader for writer, reader in (*found.kept, *found.removed, *found.added))
    assert len({node.name for node in found.nodes}) == len(found.nodes)
