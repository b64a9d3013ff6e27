"""Models that are not what they say, each a function from a path to that path: for tests that serve them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests import models

LEAST = np.iinfo(np.int64).min


def truncated(path: Path) -> Path:
    whole = models.mlp(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def custom_operator(path: Path) -> Path:
    """Asks for an operator of a domain that nobody registers."""
    graph = helper.make_graph(
        [helper.make_node("Evil", ["x"], ["y"], domain="evil")],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 2))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


def external(path: Path, location: str | os.PathLike[str], offset: int = 0) -> Path:
    """y = x + w, with the four floats of w in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": os.fspath(location), "offset": str(offset), "length": "16"}.items():
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [models.node("Add", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 4))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def other_dtype(path: Path) -> Path:
    """Declares y int64, and computes float32."""
    return models.save(
        path,
        [models.node("Identity", ["x"], ["y"])],
        [("x", "float32", ("N", 2))],
        [("y", "int64", ("N", 2))],
        checked=False,
    )


def other_width(path: Path) -> Path:
    """Declares y float32[N, 1]; returns x float32[N, 2] as rows as wide as k int64[2] says: [N, k]."""
    return models.save(
        path,
        [models.node("Expand", ["x", "k"], ["y"])],
        [("x", "float32", ("N", 1)), ("k", "int64", (2,))],
        [("y", "float32", ("N", 1))],
        checked=False,
    )


def endless(path: Path, *, grows: bool = False, above: float = 1000) -> Path:
    """y = x float32[N, 2], unless a value of x is `above`: then a Loop begins that never ends, and that takes twice
    the memory each time when it `grows`."""
    turn = models.node("Concat", ["s", "s"], ["next"], axis=0) if grows else models.node("Sin", ["s"], ["next"])
    body = helper.make_graph(
        [models.node("Identity", ["go"], ["go_on"]), turn],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        models.node("ReduceMax", ["x"], ["top"], keepdims=0),
        models.node("Greater", ["top", "most"], ["begin"]),
        models.node("Loop", ["", "begin", "x"], ["y"], body=body),
    ]
    signature = [("x", "float32", ("N", 2))], [("y", "float32", ("N", 2))]
    return models.save(path, nodes, *signature, {"most": np.array(above, np.float32)}, checked=False)


def endless_always(path: Path) -> Path:
    """The same with any x, so already at the warm-up."""
    return endless(path, above=-np.inf)


def crashing(path: Path) -> Path:
    """y = x / -1, int64[N, 2]: the least int64 has no quotient, and the processor's division ends the process by SIGFPE
    (ONNX Runtime looks for a zero only)."""
    signature = [("x", "int64", ("N", 2))], [("y", "int64", ("N", 2))]
    return models.save(path, [models.node("Div", ["x", "by"], ["y"])], *signature, {"by": np.array([-1])})


def crashing_at_load(path: Path) -> Path:
    """The same division of constants, which the optimiser folds."""
    nodes = [models.node("Div", ["least", "by"], ["q"]), models.node("Add", ["x", "q"], ["y"])]
    signature = [("x", "int64", ("N", 2))], [("y", "int64", ("N", 2))]
    return models.save(path, nodes, *signature, {"by": np.array([-1]), "least": np.array([LEAST])})
