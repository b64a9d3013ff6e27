"""Made-up inputs for probe and warm-up: what a model most likely accepts, from a signature and a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from shm.layout import STRING, Signature, TensorSpec
from shm.tensors import NUMPY, Array


@dataclass(frozen=True)
class Kind:
    """scale: spread of floats. int_max: integers are 0..int_max, since most are indices of some table.
    free: size of free dimensions other than the first."""

    scale: float = 1.0
    int_max: int = 2
    free: int = 8


KINDS = (Kind(), Kind(int_max=1), Kind(int_max=0), Kind(free=64), Kind(free=1), Kind(int_max=0, free=1))
"""Tried in this order until a model takes one: indices of small tables, images and sequences of least sizes."""


class Dice:
    """Seeded numbers. Not numpy's, whose generators cost each worker 2 MB and its start 10 ms for nothing else."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Above 0, at most 1."""
        drawn = np.frombuffer(self._random.randbytes(4 * count), np.uint32)
        return (drawn.astype(np.float64) + 1.0) / 2.0**32

    def normal(self, dims: Sequence[int]) -> npt.NDArray[np.float64]:
        """Mean 0, deviation 1 (G. E. P. Box and M. E. Muller, 1958)."""
        count = prod(dims)
        radius = np.sqrt(-2.0 * np.log(self._uniform(count)))
        return (radius * np.cos(2.0 * np.pi * self._uniform(count))).reshape(dims)

    def whole(self, highest: int, dims: Sequence[int]) -> npt.NDArray[np.int64]:
        """0 to `highest`, all as likely."""
        drawn = np.frombuffer(self._random.randbytes(4 * prod(dims)), np.uint32)
        return (drawn % np.uint32(highest + 1)).astype(np.int64).reshape(dims)

    def shuffled(self, count: int) -> list[int]:
        """0 to `count - 1` in some order."""
        return self._random.sample(range(count), count)


def sample(signature: Signature, rows: int, kind: Kind, dice: Dice) -> dict[str, Array]:
    """Every input that is not optional; a free first dimension, and every other of its name, is `rows`."""
    counts: set[int | str] = {spec.dims[0] for spec in signature.inputs if spec.dims and isinstance(spec.dims[0], str)}
    counts.discard("?")
    return {spec.name: _tensor(spec, rows, kind, dice, counts) for spec in signature.inputs if not spec.optional}


def _tensor(spec: TensorSpec, rows: int, kind: Kind, dice: Dice, counts: set[int | str]) -> Array:
    dims = [
        d if isinstance(d, int) else rows if axis == 0 or d in counts else kind.free for axis, d in enumerate(spec.dims)
    ]
    if spec.dtype == STRING:
        count = prod(dims)
        words = np.empty(count, object)
        words[:] = [str(i) for i in dice.shuffled(count)]
        return words.reshape(dims)
    dtype = NUMPY[spec.dtype]
    if dtype.kind == "f":
        return np.asarray(dice.normal(dims) * kind.scale, dtype)
    highest = min(kind.int_max, 1) if dtype.kind == "b" else kind.int_max
    return np.asarray(dice.whole(highest, dims), dtype)
