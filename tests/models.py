"""Small ONNX models for tests, each a function from a path to that path. Weights come from fixed seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None] | None

ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "string": TensorProto.STRING,
}

Value = tuple[str, str, Dims]
"""(name, dtype, dims) of an input or output."""


def save(
    path: str | os.PathLike[str],
    nodes: list[NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    checked: bool = True,
    opset: int = 17,
) -> Path:
    """A model file of these nodes."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, ELEMENTS[dtype], dims) for name, dtype, dims in inputs],
        [helper.make_tensor_value_info(name, ELEMENTS[dtype], dims) for name, dtype, dims in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if checked:
        onnx.checker.check_model(model)
    path = Path(path)
    path.write_bytes(model.SerializeToString())
    return path


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def identity(path: str | os.PathLike[str], dtype: str, dims: Dims = ("N", 3)) -> Path:
    """y = x, of one dtype (a key of ELEMENTS)."""
    return save(path, [node("Identity", ["x"], ["y"])], [("x", dtype, dims)], [("y", dtype, dims)])


def identity_all_dtypes(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """A model for each dtype: `identity_<dtype>.onnx`, float[N, 3] to the same."""
    return {dtype: identity(Path(folder) / f"identity_{dtype}.onnx", dtype) for dtype in ELEMENTS}


def mlp(path: str | os.PathLike[str], seed: int = 7) -> Path:
    """float32[N, 64] to a float32[N, 1] between 0 and 1, through 128 and 64. Rows are independent."""
    rng = np.random.default_rng(seed)
    sizes = [(64, 128), (128, 64), (64, 1)]
    constants = {f"w{i}": (rng.standard_normal(s) * 0.2).astype(np.float32) for i, s in enumerate(sizes)}
    constants |= {f"b{i}": (rng.standard_normal(s[1]) * 0.1).astype(np.float32) for i, s in enumerate(sizes)}
    nodes = []
    for i, last in enumerate(["a0", "a1", "y"]):
        before = "x" if i == 0 else f"a{i - 1}"
        nodes += [node("Gemm", [before, f"w{i}", f"b{i}"], [f"h{i}"])]
        nodes += [node("Sigmoid" if last == "y" else "Relu", [f"h{i}"], [last])]
    return save(path, nodes, [("x", "float32", ("N", 64))], [("y", "float32", ("N", 1))], constants)


def row_dependent(path: str | os.PathLike[str]) -> Path:
    """y = softmax of x over the batch: float32[N, 4] to the same. Must never be batched."""
    return save(
        path,
        [node("Softmax", ["x"], ["y"], axis=0)],
        [("x", "float32", ("N", 4))],
        [("y", "float32", ("N", 4))],
    )


def place_dependent(path: str | os.PathLike[str]) -> Path:
    """y = x + running sum over the batch: the first row is right alone, the others are not."""
    return save(
        path,
        [node("CumSum", ["x", "axis"], ["y"])],
        [("x", "float32", ("N", 4))],
        [("y", "float32", ("N", 4))],
        {"axis": np.array(0, np.int64)},
    )


def two_in_two_out(path: str | os.PathLike[str]) -> Path:
    """a float32[N, 3] and k int64[N] to sum = a + k float32[N, 3] and twice int64[N]."""
    nodes = [
        node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["kf", "axes"], ["ku"]),
        node("Add", ["a", "ku"], ["sum"]),
        node("Add", ["k", "k"], ["twice"]),
    ]
    return save(
        path,
        nodes,
        [("a", "float32", ("N", 3)), ("k", "int64", ("N",))],
        [("sum", "float32", ("N", 3)), ("twice", "int64", ("N",))],
        {"axes": np.array([1], np.int64)},
    )


def two_free_dims(path: str | os.PathLike[str]) -> Path:
    """x float32[N, T] to y = x + 1 float32[N, T] and mean float32[N, 1] over T. Rows are independent."""
    nodes = [node("Add", ["x", "one"], ["y"]), node("ReduceMean", ["x"], ["mean"], axes=[1])]
    return save(
        path,
        nodes,
        [("x", "float32", ("N", "T"))],
        [("y", "float32", ("N", "T")), ("mean", "float32", ("N", 1))],
        {"one": np.array(1, np.float32)},
    )


def scalar(path: str | os.PathLike[str]) -> Path:
    """x float32[] to y = 2x float32[] and pair float32[1]."""
    nodes = [node("Add", ["x", "x"], ["y"]), node("Reshape", ["x", "shape"], ["pair"])]
    return save(
        path,
        nodes,
        [("x", "float32", ())],
        [("y", "float32", ()), ("pair", "float32", (1,))],
        {"shape": np.array([1], np.int64)},
    )


def no_input(path: str | os.PathLike[str]) -> Path:
    """No input; y is the constant float32[2, 2] 0..3."""
    value = numpy_helper.from_array(np.arange(4, dtype=np.float32).reshape(2, 2), "value")
    return save(path, [node("Constant", [], ["y"], value=value)], [], [("y", "float32", (2, 2))])


def optional_input(path: str | os.PathLike[str]) -> Path:
    """y = x * factor; factor float32[1] is an input with the default 10."""
    return save(
        path,
        [node("Mul", ["x", "factor"], ["y"])],
        [("x", "float32", ("N", 3)), ("factor", "float32", (1,))],
        [("y", "float32", ("N", 3))],
        {"factor": np.array([10], np.float32)},
    )


def odd_names(path: str | os.PathLike[str]) -> Path:
    """Names that are no identifiers: `in put/0:0` float32[N, 2] to `out-put:0` float32[N, 2], negated."""
    return save(
        path,
        [node("Neg", ["in put/0:0"], ["out-put:0"])],
        [("in put/0:0", "float32", ("N", 2))],
        [("out-put:0", "float32", ("N", 2))],
    )


def other_shape(path: str | os.PathLike[str]) -> Path:
    """Declares y float32[N, 2], returns the rows of x float32[N, 2] whose first value is above 0: fewer than N."""
    nodes = [
        node("Slice", ["x", "start", "end", "axis"], ["first"]),
        node("Greater", ["first", "zero"], ["above"]),
        node("Reshape", ["above", "flat"], ["keep"]),
        node("Compress", ["x", "keep"], ["y"], axis=0),
    ]
    constants = {
        "start": np.array([0], np.int64),
        "end": np.array([1], np.int64),
        "axis": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
        "flat": np.array([-1], np.int64),
    }
    return save(path, nodes, [("x", "float32", ("N", 2))], [("y", "float32", ("N", 2))], constants)


def big_output(path: str | os.PathLike[str]) -> Path:
    """x float32[N, 1] to y float32[N, 4096], each row its x: 16 KiB a row."""
    return save(
        path,
        [node("Expand", ["x", "shape"], ["y"])],
        [("x", "float32", ("N", 1))],
        [("y", "float32", ("N", 4096))],
        {"shape": np.array([1, 4096], np.int64)},
    )


def grown_output(path: str | os.PathLike[str]) -> Path:
    """n int64[1] to y float32[?] of n ones: of a size that no signature tells."""
    one = numpy_helper.from_array(np.array([1], np.float32), "one")
    return save(
        path,
        [node("ConstantOfShape", ["n"], ["y"], value=one)],
        [("n", "int64", (1,))],
        [("y", "float32", (None,))],
    )


def slow(path: str | os.PathLike[str], nodes: int = 400, size: int = 256) -> Path:
    """x float32[N, size] to y float32[N, size] through `nodes` matrix products: with the defaults about 0.1 s for 64
    rows of one thread. A run can be terminated between nodes."""
    weights = np.random.default_rng(3).standard_normal((size, size)).astype(np.float32) / np.sqrt(size)
    chain = [
        node("MatMul", ["x" if i == 0 else f"h{i - 1}", "w"], ["y" if i == nodes - 1 else f"h{i}"])
        for i in range(nodes)
    ]
    return save(
        path,
        chain,
        [("x", "float32", ("N", size))],
        [("y", "float32", ("N", size))],
        {"w": weights.astype(np.float32)},
        checked=False,
    )


def gather(path: str | os.PathLike[str]) -> Path:
    """index int64[N] to y float32[N, 2], row `index` of a table of 10: an index past it raises at the run."""
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    return save(
        path,
        [node("Gather", ["table", "index"], ["y"])],
        [("index", "int64", ("N",))],
        [("y", "float32", ("N", 2))],
        {"table": table},
    )


def shape_only(path: str | os.PathLike[str]) -> Path:
    """x float32[N, M] to y int64[2], its shape: the run touches no element of x."""
    return save(path, [node("Shape", ["x"], ["y"])], [("x", "float32", ("N", "M"))], [("y", "int64", (2,))])


def strings(path: str | os.PathLike[str]) -> Path:
    """s string[N] to loud = s + "!" string[N] and itself string[N]. Rows are independent."""
    return save(
        path,
        [node("StringConcat", ["s", "mark"], ["loud"]), node("Identity", ["s"], ["itself"])],
        [("s", "string", ("N",))],
        [("loud", "string", ("N",)), ("itself", "string", ("N",))],
        {"mark": np.array(["!"], object)},
        opset=20,
    )


def fixed(path: str | os.PathLike[str]) -> Path:
    """No free dimension: x float32[2, 3] to y = x + x."""
    return save(path, [node("Add", ["x", "x"], ["y"])], [("x", "float32", (2, 3))], [("y", "float32", (2, 3))])


def sequence(path: str | os.PathLike[str]) -> Path:
    """Returns a sequence of tensors, which the farm does not serve."""
    graph = helper.make_graph(
        [node("SequenceConstruct", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 2))],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(path)
    path.write_bytes(model.SerializeToString())
    return path


def bfloat16(path: str | os.PathLike[str]) -> Path:
    """x float32[N, 2] to y bfloat16[N, 2], which the farm does not serve."""
    graph = helper.make_graph(
        [node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 2))],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ("N", 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(path)
    path.write_bytes(model.SerializeToString())
    return path


def broken(path: str | os.PathLike[str]) -> Path:
    """No model at all."""
    path = Path(path)
    path.write_bytes(b"not a model")
    return path


def slow_score(path: str | os.PathLike[str], nodes: int = 400, size: int = 256) -> Path:
    """As `slow`, with one small output: x float32[N, size] to y float32[N, 1], the mean of what `slow` gives."""
    weights = np.random.default_rng(3).standard_normal((size, size)).astype(np.float32) / np.sqrt(size)
    chain = [node("MatMul", ["x" if i == 0 else f"h{i - 1}", "w"], [f"h{i}"]) for i in range(nodes)]
    chain.append(node("ReduceMean", [f"h{nodes - 1}"], ["y"], axes=[1]))
    return save(
        path,
        chain,
        [("x", "float32", ("N", size))],
        [("y", "float32", ("N", 1))],
        {"w": weights.astype(np.float32)},
        checked=False,
    )
