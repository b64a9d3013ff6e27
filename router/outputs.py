"""Copies of what the model answered, for those in the router who look at it: `last_good` and the rules' agreement."""

from __future__ import annotations

from typing import Final

from router.answers import Made
from router.arena import Arena
from shm.client import Reply
from shm.layout import RowPlan, Signature, Tensor
from shm.limits import INLINE_BYTES_MAX

ROW_COUNTS_KEPT: Final = 1024
"""Layouts of so many row counts; clients use a few, and who uses more has them worked out anew each time."""


class ModelOutputs:
    """Reads the outputs of replies of one model."""

    def __init__(self, signature: Signature) -> None:
        self._plan = RowPlan(signature.outputs)
        self._by_rows: dict[int, tuple[tuple[Tensor, ...], int]] = {}

    def copy(self, reply: Reply, arena: Arena, slot: int) -> Made | None:
        """The outputs of a reply that was not sent yet; None when they are larger than a reply may hold.

        Nobody but workers can write to `out`, and the slots are not given back before the reply, so the copy is true.
        """
        if reply.overflow:
            return None
        if reply.outputs is None:
            tensors, end = self._declared(reply.rows)
        else:
            tensors = reply.outputs
            end = max((tensor.offset + tensor.payload_bytes for tensor in tensors), default=0)
        if end > INLINE_BYTES_MAX:
            return None
        payload = reply.inline if reply.inline is not None else arena.read_out(slot, end)
        return (tensors, payload) if len(payload) >= end else None

    def _declared(self, rows: int) -> tuple[tuple[Tensor, ...], int]:
        known = self._by_rows.get(rows)
        if known is None:
            plan = self._plan
            tensors = tuple(
                Tensor(index, spec.dtype, plan.dims(index, rows), offset, size)
                for index, (spec, offset, size) in enumerate(
                    zip(plan.specs, plan.offsets(rows), plan.sizes(rows), strict=True)
                )
            )
            known = tensors, plan.payload_bytes(rows)
            if len(self._by_rows) < ROW_COUNTS_KEPT:
                self._by_rows[rows] = known
        return known
