"""Made-up inputs for probe and warm-up: what a model most likely accepts, from a signature and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

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


def sample(signature: Signature, rows: int, kind: Kind, rng: np.random.Generator) -> dict[str, Array]:
    """Every input that is not optional; a free first dimension, and every other of its name, is `rows`."""
    counts: set[int | str] = {spec.dims[0] for spec in signature.inputs if spec.dims and isinstance(spec.dims[0], str)}
    counts.discard("?")
    return {spec.name: _tensor(spec, rows, kind, rng, counts) for spec in signature.inputs if not spec.optional}


def _tensor(spec: TensorSpec, rows: int, kind: Kind, rng: np.random.Generator, counts: set[int | str]) -> Array:
    dims = [
        d if isinstance(d, int) else rows if axis == 0 or d in counts else kind.free for axis, d in enumerate(spec.dims)
    ]
    if spec.dtype == STRING:
        count = prod(dims)
        words = np.empty(count, object)
        words[:] = [str(i) for i in rng.permutation(count).tolist()]
        return words.reshape(dims)
    dtype = NUMPY[spec.dtype]
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(dims) * kind.scale, dtype)
    highest = min(kind.int_max, 1) if dtype.kind == "b" else kind.int_max
    return np.asarray(rng.integers(0, highest + 1, dims), dtype)
