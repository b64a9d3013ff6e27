"""The models that are served while measuring, made here from fixed seeds: what they compute means nothing.

Each is written once into a directory of the caller's and is the same bytes on every machine. Sizes are chosen so that
the cases differ in what they cost: a few microseconds, a large matrix, a long convolution, a large input.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.target import Model, TargetFailed

Weights = dict[str, npt.NDArray[Any]]
Graph = tuple[list[Any], Weights]
OPSET = 17
IR_VERSION = 9

PAYLOADS = (256, 4096, 65_536, 1_048_576, 16_777_216)
"""Bytes of the models `payload-N`."""


def make(name: str, directory: str) -> Model:
    """The model of that name, written into the directory unless it is there.

    Raises:
        TargetFailed: there is no such model, or no `onnx` to write it with.
    """
    if name.startswith("payload-") and name[8:].isdigit() and int(name[8:]) % 4 == 0:
        row: tuple[int, ...] = (int(name[8:]) // 4,)
        maker, dtype, outputs = _payload, "float32", 1
    elif name in MAKERS:
        maker, row, dtype, outputs = MAKERS[name]
    else:
        raise TargetFailed(f"no model {name!r}; known are {', '.join(MAKERS)} and payload-BYTES")
    path = Path(directory) / f"{name}.onnx"
    if not path.exists():
        write(path, maker(), row, dtype)
    return Model(
        name=name,
        path=str(path),
        input="x",
        row=row,
        dtype=dtype,
        output_bytes=4 * outputs,
        batched=not name.startswith("payload-"),
    )


def write(path: Path, graph: Graph, row: tuple[int, ...], dtype: str) -> None:
    """A model file with input `x` [n, *row] and output `y`; whole or not at all."""
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise TargetFailed("the harness makes its models with onnx: pip install 'shmfarm[bench]'") from error
    element = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}[dtype]
    nodes, weights = graph
    model = helper.make_model(
        helper.make_graph(
            nodes,
            path.stem,
            [helper.make_tensor_value_info("x", element, ["n", *row])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(model.SerializeToString())
    partial.replace(path)


class Builder:
    """A chain of nodes from `x` to `y`."""

    def __init__(self, seed: int) -> None:
        from onnx import helper

        self._make = helper.make_node
        self._random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: Weights = {}
        self.at = "x"

    def then(self, kind: str, *more: str, **attributes: Any) -> Builder:
        out = f"v{len(self.nodes)}"
        self.nodes.append(self._make(kind, [self.at, *more], [out], **attributes))
        self.at = out
        return self

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Random, of a scale that keeps activations near one."""
        name = f"w{len(self.weights)}"
        fan_in = int(np.prod(shape[1:])) if len(shape) != 2 else shape[0]
        factor = 1 / np.sqrt(max(fan_in, 1)) if scale is None else scale
        self.weights[name] = (self._random.standard_normal(shape) * factor).astype(np.float32)
        return name

    def dense(self, width_in: int, width_out: int, *, relu: bool = True) -> Builder:
        self.then("Gemm", self.weight(width_in, width_out), self.weight(width_out, scale=0.01))
        return self.then("Relu") if relu else self

    def conv(self, wide_in: int, wide_out: int, kernel: tuple[int, ...], stride: int) -> Builder:
        weight = self.weight(wide_out, wide_in, *kernel)
        pads = [size // 2 for size in kernel] * 2
        self.then("Conv", weight, kernel_shape=kernel, strides=[stride] * len(kernel), pads=pads)
        return self.then("Relu")

    def end(self) -> Graph:
        self.nodes[-1].output[0] = "y"
        return self.nodes, self.weights


def _bidding() -> Graph:
    return Builder(1).dense(64, 128).dense(128, 64).dense(64, 1, relu=False).end()


def _text() -> Graph:
    build = Builder(2)
    for _ in range(3):
        build.dense(1024, 1024)
    return build.dense(1024, 1024, relu=False).end()


def _audio() -> Graph:
    """2.3 million weights; some 5 ms on one thread of a server CPU."""
    build = Builder(3).then("Unsqueeze", "axis1")
    build.weights["axis1"] = np.array([1], np.int64)
    build.conv(1, 40, (9,), 4).conv(40, 64, (9,), 4).conv(64, 128, (9,), 4).conv(128, 256, (9,), 4)
    build.conv(256, 384, (9,), 4).conv(384, 384, (7,), 4)
    return build.then("GlobalAveragePool").then("Flatten").dense(384, 64).dense(64, 10, relu=False).end()


def _vision() -> Graph:
    """A camera frame as it comes, [224, 224, 3] bytes."""
    build = Builder(4).then("Cast", to=1).then("Transpose", perm=[0, 3, 1, 2])
    build.conv(3, 8, (3, 3), 4).conv(8, 16, (3, 3), 2).conv(16, 32, (3, 3), 2).conv(32, 64, (3, 3), 2)
    return build.then("GlobalAveragePool").then("Flatten").dense(64, 10, relu=False).end()


def _payload() -> Graph:
    """Looks at its input's shape and at nothing else: what is left is the cost of moving the tensor."""
    build = Builder(5)
    build.weights["zero"] = np.array([0], np.int64)
    build.weights["one"] = np.array([1], np.int64)
    build.then("Shape").then("Slice", "zero", "one").then("Cast", to=1).then("Unsqueeze", "one")
    return build.end()


def _steady() -> Graph:
    """A row costs as much alone as in a batch, so that capacity is one figure, and little enough of it is asked for
    that a generator can offer five times as much."""
    build = Builder(6).then("Unsqueeze", "axis1")
    build.weights["axis1"] = np.array([1], np.int64)
    build.conv(1, 32, (9,), 1).conv(32, 64, (9,), 2).conv(64, 128, (9,), 2)
    return build.then("GlobalAveragePool").then("Flatten").dense(128, 1, relu=False).end()


MAKERS: dict[str, tuple[Callable[[], Graph], tuple[int, ...], str, int]] = {
    "bidding": (_bidding, (64,), "float32", 1),
    "text": (_text, (1024,), "float32", 1024),
    "audio": (_audio, (48_000,), "float32", 10),
    "vision": (_vision, (224, 224, 3), "uint8", 10),
    "steady": (_steady, (2048,), "float32", 1),
}
"""Name to how it is made, its row, its input's type and how many numbers it answers a row with."""
