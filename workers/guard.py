"""The guard: what an answer of the model must be, else the request fails with reason `guard` and its table decides.

`min` and `max` of an array say at once whether it is finite (NaN and infinity come through them) and whether it is in
its range: 0.4 us for one value, 1.5 for a few, 7 for 65,536. Which value is wrong is looked for only when one is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from shm.layout import CODES, STRING, Signature
from shm.tensors import NUMPY, Array
from workers.config import GuardConfig

FLOATS: Final = frozenset(CODES[name] for name in ("float16", "float32", "float64"))


# `array.min()` is this behind a layer of Python that takes as long again.
_least: Final = np.minimum.reduce
_most: Final = np.maximum.reduce


class GuardRefused(ValueError):
    """The guard does not fit the model; the message begins with the key."""


class Guard:
    """The guard of one model.

    Raises:
        GuardRefused: a range names an output that the model does not have, or one that holds no numbers.
    """

    def __init__(self, config: GuardConfig, signature: Signature) -> None:
        known = {spec.name: spec for spec in signature.outputs}
        for name in config.ranges:
            if name not in known:
                raise GuardRefused(f"ranges.{name}: the model has no such output; it has {', '.join(known)}")
            if known[name].dtype in (STRING, CODES["bool"]):
                raise GuardRefused(f"ranges.{name}: {known[name]} holds no numbers")
        self._checks: list[tuple[int, str, bool, float, float]] = []
        for index, spec in enumerate(signature.outputs):
            finite = config.finite and spec.dtype in FLOATS
            low, high = config.ranges.get(spec.name, (-math.inf, math.inf))
            if spec.dtype in FLOATS:
                # As the output has them: 0.1 in float32 is a little more than 0.1.
                with np.errstate(over="ignore"):
                    low, high = (float(NUMPY[spec.dtype].type(bound)) for bound in (low, high))
            if finite or spec.name in config.ranges:
                self._checks.append((index, spec.name, finite, low, high))

    def refuse(self, outputs: Sequence[Array]) -> str | None:
        """What is wrong with one member's outputs (or a whole batch's), None when nothing is."""
        for index, name, finite, low, high in self._checks:
            array = outputs[index]
            if array.size == 1:
                least = most = array.item()
            elif array.size:
                least, most = _least(array, None), _most(array, None)
            else:
                continue
            if finite and not (math.isfinite(least) and math.isfinite(most)):
                return _tell(name, array, np.isfinite(array), "it must be finite")
            # NaN is in no range.
            if not (low <= least and most <= high):
                return _tell(name, array, (array >= low) & (array <= high), f"it must be from {low:g} to {high:g}")
        return None


def _tell(name: str, array: Array, well: Array, must: str) -> str:
    """Name the first value that is not well."""
    place = tuple(int(axis) for axis in np.argwhere(~np.asarray(well))[0])
    row = f" in row {place[0]}" if place else ""
    column = f", place {list(place[1:])}" if len(place) > 1 and array.size > array.shape[0] else ""
    return f"output {name!r} is {array[place]:g}{row}{column}; {must} (guard)"
