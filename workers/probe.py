"""Whether a model's rows are independent: row i of every output comes from row i of the inputs alone.

Distinct rows are run together, one by one, and permuted; the three must agree. Rounding may differ, since kernels
choose other orders of summation for other batch sizes, so floats agree within a tolerance relative to the largest
value of the output: 1e-3 of float16, 1e-4 of float32, 1e-9 of float64. Everything else must be equal. Two spreads of
floats are tried, because a saturated output (a sigmoid of large values) looks independent whatever it comes from.

A probe cannot prove it: a model may mix rows for values that were not tried. `batching = "off"` is for those.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from shm.tensors import Array
from workers.samples import KINDS, Dice, Kind, sample
from workers.session import ModelFailed, Session

ROWS = 4
SCALES = (1.0, 0.05)
SLOW_NS = 250_000_000
"""A run of ROWS rows that takes longer is not repeated at the second scale."""

_TOLERANCES = {"float16": 1e-3, "float32": 1e-4, "float64": 1e-9}


def eligible(session: Session) -> str | None:
    """None when rows could be told apart at all, else why not."""
    required = [s for s in session.signature.inputs if not s.optional]
    if not required:
        return "the model has no input"
    for spec in required:
        if not spec.dims or not isinstance(spec.dims[0], str):
            return f"input {spec.name!r} has no free first dimension"
    return None


def independent_rows(session: Session) -> tuple[bool, str]:
    """The finding, and the reason for it as one line for the log."""
    reason = eligible(session)
    if reason is not None:
        return False, reason
    last = "no made-up input was accepted"
    for kind in KINDS:
        try:
            return _probe(session, kind)
        except ModelFailed as error:
            last = f"the probe's run failed: {' '.join(str(error).split())[:200]}"
    return False, last


def _probe(session: Session, kind: Kind) -> tuple[bool, str]:
    dice = Dice(20)
    for scale in SCALES:
        feed = sample(session.signature, ROWS, replace(kind, scale=scale), dice)
        if not any(_distinct(a) for a in feed.values()):
            # Rows that are alike cannot show a mix-up, so the next kind has to.
            raise ModelFailed("made-up rows are all alike")
        start = time.monotonic_ns()
        together = session.run(feed)
        took_ns = time.monotonic_ns() - start
        order = np.roll(np.arange(ROWS), 1)[::-1]
        permuted = session.run({name: a[order] for name, a in feed.items()})
        singly = [session.run({name: a[i : i + 1] for name, a in feed.items()}) for i in range(ROWS)]
        for index, name in enumerate(session.output_names):
            whole = together[index]
            if whole.ndim == 0 or whole.shape[0] != ROWS or any(s[index].shape[:1] != (1,) for s in singly):
                return False, f"output {name!r} has no row for each row of the inputs"
            if any(s[index].shape[1:] != whole.shape[1:] for s in singly):
                return False, f"output {name!r} has another shape in a batch"
            if not _agree(np.concatenate([s[index] for s in singly]), whole):
                return False, f"output {name!r} of a row changes with the rows beside it"
            if not _agree(permuted[index], whole[order]):
                return False, f"output {name!r} of a row changes with its place in the batch"
        if took_ns > SLOW_NS:
            break
    return True, "rows singly, together and permuted agree"


def _distinct(array: Array) -> bool:
    return any(not np.array_equal(array[0], array[i]) for i in range(1, len(array)))


def _agree(one: Array, other: Array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    tolerance = _TOLERANCES.get(one.dtype.name)
    if tolerance is None or one.size == 0:
        return bool(np.array_equal(one, other))
    finite = np.abs(other[np.isfinite(other)])
    largest = float(finite.max()) if finite.size else 0.0
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance * largest, equal_nan=True))
