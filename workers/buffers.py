"""Warm private memory for batches: rows are gathered here, run once, and scattered to their members.

For each row count there is a `Batch`: views of one set of buffers and a run prepared on them, so that a batch of a size
that has occurred before allocates nothing. Only for models in row form (`RowPlan.row_form` and `fits`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shm.tensors import Array, address
from workers.session import Bound, ModelFailed, Session, empty

KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Buffers of a larger batch are made for that run and dropped."""

BATCHES_MAX: Final = 256


class Batch:
    """Memory for `rows` rows. `bound` is None where outputs cannot be bound; then `feed` is run."""

    __slots__ = ("addresses", "bound", "feed", "inputs", "outputs", "rows")

    def __init__(self, session: Session, inputs: list[Array], outputs: list[Array] | None, rows: int) -> None:
        self.rows = rows
        self.inputs = inputs
        self.outputs = outputs
        self.addresses = tuple(address(array) for array in inputs)
        self.feed = dict(zip(session.input_names, inputs, strict=True))
        self.bound: Bound | None = None if outputs is None else session.bind(inputs, outputs)

    def run(self, session: Session) -> list[Array]:
        """The outputs, valid until the next run. Raises ModelFailed."""
        if self.bound is None or self.outputs is None:
            return [np.asarray(output) for output in session.run(self.feed)]
        try:
            session.run_bound(self.bound)
        except ModelFailed:
            # Another shape, the model's own error or a terminate, which also ends the next run at once.
            outputs = [np.asarray(output) for output in session.run(self.feed)]
            if any(have.shape != want.shape for have, want in zip(outputs, self.outputs, strict=True)):
                session.unbind_outputs()
            return outputs
        return self.outputs


class Buffers:
    """The batches of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._capacity = 0
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []
        self._batches: dict[int, Batch] = {}
        self._row_bytes = sum(session.input_plan.row_bytes) + sum(session.output_plan.row_bytes)

    def batch(self, rows: int) -> Batch:
        """Memory for so many rows, at least one. Valid until the next call."""
        batch = self._batches.get(rows)
        if batch is None or (batch.bound is not None and not self._session.outputs_bound):
            batch = self._make(rows)
        return batch

    def _make(self, rows: int) -> Batch:
        if rows * self._row_bytes > KEPT_BYTES_MAX:
            return self._over(*self._allocate(rows), rows)
        if rows > self._capacity:
            # The next power of two: a model whose batches grow row by row must not allocate at each.
            self._capacity = 1 << (rows - 1).bit_length()
            self._batches.clear()
            self._inputs, self._outputs = self._allocate(self._capacity)
        if len(self._batches) >= BATCHES_MAX:
            self._batches.clear()
        batch = self._over(self._inputs, self._outputs, rows)
        self._batches[rows] = batch
        return batch

    def _allocate(self, rows: int) -> tuple[list[Array], list[Array]]:
        signature = self._session.signature
        plans = (self._session.input_plan, self._session.output_plan)
        inputs = [empty(s.dtype, plans[0].dims(i, rows)) for i, s in enumerate(signature.inputs)]
        outputs = []
        if self._session.outputs_bound and plans[1].row_form:
            outputs = [empty(s.dtype, plans[1].dims(i, rows)) for i, s in enumerate(signature.outputs)]
        return inputs, outputs

    def _over(self, inputs: list[Array], outputs: list[Array], rows: int) -> Batch:
        bind = bool(outputs) and self._session.outputs_bound and rows > 0 and all(self._session.input_plan.row_bytes)
        return Batch(self._session, [a[:rows] for a in inputs], [a[:rows] for a in outputs] if bind else None, rows)
