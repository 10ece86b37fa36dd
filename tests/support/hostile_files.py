"""ONNX files that are broken or made to do harm, each written into a folder as ``m.onnx``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT


def model_of(nodes, *, inputs=None, outputs=None, weights=(), functions=(), opset=18):
    """A model that is not checked."""
    inputs = [helper.make_tensor_value_info("x", FLOAT, [3, 4])] if inputs is None else inputs
    outputs = [helper.make_tensor_value_info("y", FLOAT, [3, 4])] if outputs is None else outputs
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid("f", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


def times_w(weight: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Mul", ["x", "w"], ["y"], "mul")], weights=[weight])


def external(location: str, **more: object) -> onnx.ModelProto:
    """A model whose weight of four numbers lies in another file."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 0, "length": 16, **more}.items():
        weight.external_data.add(key=key, value=str(value))
    return times_w(weight)


def _secret(folder: Path) -> Path:
    """A file outside the folder, which must not be read."""
    path = folder.parent / "outside" / "secret"
    path.parent.mkdir(exist_ok=True)
    np.full(4, 42, np.float32).tofile(path)
    return path


def _absolute(folder):
    return external(str(_secret(folder)))


def _upwards(folder):
    _secret(folder)
    return external("../outside/secret")


def _windows(folder):
    _secret(folder)
    return external("..\\outside\\secret")


def _drive(folder):
    return external("C:\\outside\\secret")


def _link(folder):
    (folder / "w.bin").symlink_to(_secret(folder))
    return external("w.bin")


def _linked_folder(folder):
    (folder / "there").symlink_to(_secret(folder).parent)
    return external("there/secret")


def _own(folder, **more):
    np.ones(4, np.float32).tofile(folder / "w.bin")
    return external("w.bin", **more)


def _pipe(folder):
    os.mkfifo(folder / "w.bin")
    return external("w.bin")


def _device(folder):
    (folder / "w.bin").symlink_to("/dev/zero")
    return external("w.bin")


def _sparse_file(folder):
    with (folder / "w.bin").open("wb") as file:
        file.truncate(8 << 30)
    weight = external("w.bin", length=8 << 30).graph.initializer[0]
    weight.dims[:] = [2 << 30]
    return model_of([helper.make_node("Identity", ["w"], ["y"])], weights=[weight])


def _raw(array) -> TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(array, np.float32), "w")


def _claims(folder):
    weight = TensorProto(name="w", data_type=FLOAT, dims=[10**6, 10**6])
    weight.raw_data = b"\0" * 16
    return times_w(weight)


def _claims_in_constant(folder):
    value = TensorProto(name="v", data_type=FLOAT, dims=[10**12])
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("Mul", ["x", "w"], ["y"]),
    ]
    return model_of(nodes)


def _negative(folder):
    weight = TensorProto(name="w", data_type=FLOAT, dims=[-4])
    weight.raw_data = b"\0" * 16
    return times_w(weight)


def _sparse_claims(folder):
    values, indices = _raw([1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(values, indices, [10**6, 10**6])
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])])
    model.graph.sparse_initializer.append(sparse)
    return model


def _sparse_outside(folder):
    values, indices = _raw([1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [10**9])
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model


def _huge_axis(folder):
    values = [helper.make_tensor_value_info(name, FLOAT, [10**15, 4]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    return model_of([node], inputs=values[:1], outputs=values[1:])


def _large_input(folder):
    values = [helper.make_tensor_value_info(name, FLOAT, [10**5, 10**5]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    return model_of([node], inputs=values[:1], outputs=values[1:])


def _large_inside(folder):
    """A graph whose values in between are 10^12 numbers."""
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [10**6, 10**6])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"]),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return model_of(nodes, weights=[shape])


def _unknown_dtype(folder):
    inputs = [helper.make_tensor_value_info("x", 999, [4])]
    return model_of([helper.make_node("Relu", ["x"], ["y"])], inputs=inputs)


def _unknown_weight(folder):
    weight = TensorProto(name="w", data_type=999, dims=[4], raw_data=b"\0" * 16)
    return times_w(weight)


def _cycle(folder):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "two"),
        helper.make_node("Relu", ["b"], ["y"], "three"),
    ]
    return model_of(nodes)


def _own_input(folder):
    return model_of([helper.make_node("Add", ["x", "y"], ["y"], "self")])


def _twice_made(folder):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    return model_of(nodes)


def _missing_input(folder):
    return model_of([helper.make_node("Add", ["x", "nowhere"], ["y"])])


def _no_shape(folder):
    value = onnx.ValueInfoProto(name="x")
    value.type.tensor_type.elem_type = FLOAT
    return model_of([helper.make_node("Relu", ["x"], ["y"])], inputs=[value])


def _no_type(folder):
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"])], inputs=[onnx.ValueInfoProto(name="x")]
    )


def _nothing(folder):
    return onnx.ModelProto()


def _no_outputs(folder):
    return model_of([helper.make_node("Relu", ["x"], ["y"])], outputs=[])


def _no_opset(folder):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    del model.opset_import[:]
    return model


def _far_opset(folder):
    return model_of([helper.make_node("Relu", ["x"], ["y"])], opset=10**9)


def _far_version(folder):
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    model.ir_version = 2**62
    return model


def _unknown_operator(folder):
    return model_of([helper.make_node("Nothing", ["x"], ["y"])])


def _doubling(folder):
    """Functions that call one another twice, forty levels deep: 10^12 nodes when inlined."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function(
            "f", "F0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets
        )
    ]
    for at in range(1, 40):
        calls = [
            helper.make_node(f"F{at - 1}", ["a"], ["m"], domain="f"),
            helper.make_node(f"F{at - 1}", ["m"], ["b"], domain="f"),
        ]
        functions.append(helper.make_function("f", f"F{at}", ["a"], ["b"], calls, opsets))
    return model_of([helper.make_node("F39", ["x"], ["y"], domain="f")], functions=functions)


def _calls_itself(folder):
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    call = helper.make_node("F", ["a"], ["b"], domain="f")
    function = helper.make_function("f", "F", ["a"], ["b"], [call], opsets)
    return model_of([helper.make_node("F", ["x"], ["y"], domain="f")], functions=[function])


def _nested(depth):
    """Bytes of a graph with an If in an If in an If, written by hand: no library nests so deep."""

    def field(number: int, content: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    graph = field(2, b"g")
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(4, b"If") + field(5, attribute)) + field(2, b"g")
    opset = field(8, field(1, b"") + b"\x10\x12")
    return b"\x08\x09" + opset + field(7, graph)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _deep_graph(folder):
    return _nested(10_000)


def _deep_graph_that_is_read(folder):
    return _nested(30)


def _not_utf8(folder):
    data = model_of([helper.make_node("Relu", ["x"], ["y"], "node_name")]).SerializeToString()
    return data.replace(b"node_name", b"n\xff\xfe\xfd_name")


def _not_utf8_input(folder):
    data = model_of([helper.make_node("Relu", ["input_name"], ["y"])]).SerializeToString()
    return data.replace(b"input_name", b"in\xff\xfe_name").replace(b"\x01x", b"\x01\xff")


def _long_name(folder):
    return model_of([helper.make_node("Relu", ["x"], ["y"], "n" * (100 << 20))])


def _names_with_lines(folder):
    nodes = [helper.make_node("Nothing\n\x1b[2J\0", ["x"], ["y"], "a\nb\x1b[2J")]
    return model_of(nodes)


def _garbage(folder):
    return np.random.default_rng(0).integers(0, 256, 10_000, np.uint8).tobytes()


def _text(folder):
    return b"<html>404</html>"


def _no_order(folder):
    nodes = [
        helper.make_node("Relu", ["a"], ["y"], "same"),
        helper.make_node("Neg", ["x"], ["a"], "same"),
    ]
    return model_of(nodes)


HOSTILE: Mapping[str, Callable[[Path], onnx.ModelProto | bytes]] = {
    "external: absolute": _absolute,
    "external: upwards": _upwards,
    "external: Windows upwards": _windows,
    "external: Windows drive": _drive,
    "external: a link": _link,
    "external: a linked folder": _linked_folder,
    "external: a NUL": lambda _: external("w\0.bin"),
    "external: a line break": lambda _: external("w\n.bin"),
    "external: 300 characters": lambda _: external("w" * 300),
    "external: the folder itself": lambda _: external("."),
    "external: no file": lambda _: external("nothing.bin"),
    "external: offset beyond the end": lambda f: _own(f, offset=100),
    "external: offset below zero": lambda f: _own(f, offset=-1),
    "external: offset of 20 digits": lambda f: _own(f, offset=10**20),
    "external: offset of 5,000 digits": lambda f: _own(f, offset="9" * 5000),
    "external: offset in words": lambda f: _own(f, offset="one"),
    "external: length beyond the end": lambda f: _own(f, length=1 << 40),
    "external: length below zero": lambda f: _own(f, length=-16),
    "external: a pipe": _pipe,
    "external: a device": _device,
    "external: a sparse file of 8 GiB": _sparse_file,
    "a tensor that claims 10^12 elements": _claims,
    "a constant that claims 10^12 elements": _claims_in_constant,
    "a tensor of a size below zero": _negative,
    "a sparse tensor that claims 10^12 elements": _sparse_claims,
    "a sparse tensor with an index outside": _sparse_outside,
    "an axis of 10^15": _huge_axis,
    "an input of 40 GB": _large_input,
    "a value in between of 4 TB": _large_inside,
    "an unknown dtype of an input": _unknown_dtype,
    "an unknown dtype of a weight": _unknown_weight,
    "a cycle": _cycle,
    "a node that reads itself": _own_input,
    "a value that is made twice": _twice_made,
    "a value that nobody makes": _missing_input,
    "an input without shape": _no_shape,
    "an input without type": _no_type,
    "an empty model": _nothing,
    "no outputs": _no_outputs,
    "no opset": _no_opset,
    "an opset of 10^9": _far_opset,
    "an IR version of 2^62": _far_version,
    "an operator that there is not": _unknown_operator,
    "functions that double 40 times": _doubling,
    "a function that calls itself": _calls_itself,
    "graphs nested 10,000 deep": _deep_graph,
    "graphs nested 30 deep": _deep_graph_that_is_read,
    "a node name that is not UTF-8": _not_utf8,
    "an input name that is not UTF-8": _not_utf8_input,
    "names with line breaks and escapes": _names_with_lines,
    "an input name with a NUL": lambda _: model_of(
        [helper.make_node("Relu", ["a\0b"], ["y"])],
        inputs=[helper.make_tensor_value_info("a\0b", FLOAT, [3, 4])],
    ),
    "a name of 100 MiB": _long_name,
    "garbage": _garbage,
    "a page of HTML": _text,
}
"""Writers by what is wrong with the file: none can be a model."""

HARMLESS: Mapping[str, Callable[[Path], onnx.ModelProto | bytes]] = {
    "no order, and names that are twice there": _no_order,
    "a weight in the model's own file": lambda _: external("m.onnx"),
}
"""Files that are odd, and may become a model."""


def write(what: str, folder: Path) -> Path:
    """Write a file, and what it refers to, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**HOSTILE, **HARMLESS}[what](folder)
    path = folder / "m.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path
