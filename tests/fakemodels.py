"""The models that the fake router serves: their signatures, and what they answer, as numpy functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shm import client as wire
from shm.layout import CODES, Signature, TensorSpec

Arrays = dict[str, np.ndarray]


def spec(name: str, dtype: str, *dims: int | str, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, CODES[dtype], dims, optional)


def model(
    index: int,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    version: int = 1,
    deadline_ms: float = 5000,
    ready: bool = True,
    aliases: tuple[str, ...] = (),
) -> wire.Model:
    signature = Signature(tuple(inputs), tuple(outputs)) if ready else None
    return wire.Model(index, name, version, ready, int(deadline_ms * 1e6), 32, signature, aliases)


DOUBLE = model(0, "double", [spec("x", "float32", "N", 4)], [spec("y", "float32", "N", 4)], aliases=("live",))
MODELS = [
    DOUBLE,
    model(1, "shout", [spec("t", "string", "N")], [spec("u", "string", "N")]),
    model(2, "many", [spec("n", "int64")], [spec("y", "float32", "M")]),
    model(
        3,
        "sum",
        [spec("a b", "float64", "N", 2), spec("k", "int64", "N"), spec("bias", "float64", "N", optional=True)],
        [spec("s", "float64", "N")],
    ),
    model(4, "pair", [spec("a", "float32", "N", 2), spec("k", "int64", "N")], [spec("s", "float32", "N")]),
    model(5, "nothing", [], [spec("y", "float32", 2)]),
    model(6, "late", [spec("x", "float32", "N", 4)], [spec("y", "float32", "N", 4)], ready=False),
    model(7, "point", [spec("n", "int64")], [spec("y", "int64")]),
    model(8, "brief", [spec("x", "float32", "N", 4)], [spec("y", "float32", "N", 4)], deadline_ms=30),
]
LATE = model(6, "late", [spec("x", "float32", "N", 4)], [spec("y", "float32", "N", 4)])

FUNCTIONS: dict[str, Callable[[Arrays], list[np.ndarray]]] = {
    "double": lambda i: [i["x"] * 2],
    "late": lambda i: [i["x"] * 2],
    "brief": lambda i: [i["x"] * 2],
    "shout": lambda i: [np.array([t.upper() for t in i["t"].tolist()], object)],
    "many": lambda i: [np.arange(int(i["n"]), dtype=np.float32)],
    "sum": lambda i: [i["a b"].sum(axis=1) + i["k"] + i.get("bias", 0.0)],
    "pair": lambda i: [(i["a"].sum(axis=1) + i["k"]).astype(np.float32)],
    "nothing": lambda i: [np.array([1, 2], np.float32)],
    "point": lambda i: [i["n"] + 1],
}
