"""A reply's outputs: the caller's own arrays, or read-only views for a lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from farm.client.inputs import ROW_COUNTS_KEPT_MAX
from farm.client.options import Outputs
from shm import tensors
from shm.client import Reply
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import DTYPES, STRING, RowPlan, Signature, Tensor, check_extent
from shm.tensors import NUMPY, Array, Buffer

Place = tuple[str, np.dtype[Any], tuple[int, ...], int]
Holder = Callable[[], Array]
"""Gives the array of bytes that views of a leased run are made from; they keep it, and it keeps the run."""


class OutputLayout:
    """Where outputs of one signature lie when a reply does not say it."""

    def __init__(self, signature: Signature) -> None:
        self.specs = signature.outputs
        self._plan = RowPlan(signature.outputs)
        self._by_rows: dict[int, tuple[int, list[Place]]] = {}

    def copy(self, reply: Reply, out: Buffer, base: int, room_bytes: int, overflow: Buffer | None) -> Outputs:
        """The caller's own arrays. `out`, `base`, `room_bytes`: the request's run of slots.

        Raises:
            TensorRefused: what the reply says lies outside of what it brought.
        """
        if reply.outputs is None:
            return {
                name: np.array(np.ndarray(dims, dtype, out, base + offset))
                for name, dtype, dims, offset in self._places(reply.rows, room_bytes)
            }
        buffer, base, room_bytes = _source(reply, out, base, room_bytes, overflow)
        outputs = {}
        for tensor in reply.outputs:
            name = self._checked_name(tensor, room_bytes)
            if tensor.dtype == STRING:
                outputs[name] = tensors.read_strings(
                    name, buffer, base + tensor.offset, tensor.payload_bytes, tensor.dims
                )
            else:
                outputs[name] = np.array(tensors.view(buffer, base + tensor.offset, tensor.dtype, tensor.dims))
        return outputs

    def view(self, reply: Reply, room_bytes: int, holder: Holder, overflow: Buffer | None) -> Outputs:
        """Read-only views: on the leased run, which `holder` gives, or on what came with the reply. Strings are
        copies, since numpy has no view of them."""
        if reply.outputs is None:
            held = holder()
            return {
                name: np.ndarray(dims, dtype, held, offset) if 0 in dims else _over(held, offset, dtype, dims)
                for name, dtype, dims, offset in self._places(reply.rows, room_bytes)
            }
        in_slots = reply.inline is None and not reply.overflow
        buffer = holder() if in_slots else _source(reply, b"", 0, room_bytes, overflow)[0]
        room_bytes = room_bytes if in_slots else len(buffer)
        outputs: Outputs = {}
        for tensor in reply.outputs:
            name = self._checked_name(tensor, room_bytes)
            if tensor.dtype == STRING:
                outputs[name] = tensors.read_strings(name, buffer, tensor.offset, tensor.payload_bytes, tensor.dims)
            elif in_slots and 0 not in tensor.dims:
                outputs[name] = _over(buffer, tensor.offset, NUMPY[tensor.dtype], tensor.dims)
            else:
                outputs[name] = tensors.view(buffer, tensor.offset, tensor.dtype, tensor.dims)
        return outputs

    def _places(self, rows: int, room_bytes: int) -> list[Place]:
        kept = self._by_rows.get(rows)
        if kept is None:
            kept = self._keep(rows)
        payload_bytes, places = kept
        if payload_bytes > room_bytes:
            raise TensorRefused(Reason.BYTE_LENGTH, f"outputs of {rows} rows pass the {room_bytes} bytes of the slots")
        return places

    def _keep(self, rows: int) -> tuple[int, list[Place]]:
        if not self._plan.fits:
            raise TensorRefused(Reason.BYTE_LENGTH, "a reply does not say where its outputs lie")
        offsets = self._plan.offsets(rows)
        places = [
            (spec.name, NUMPY[spec.dtype], self._plan.dims(index, rows), offsets[index])
            for index, spec in enumerate(self.specs)
        ]
        if len(self._by_rows) >= ROW_COUNTS_KEPT_MAX:
            self._by_rows.clear()
        kept = self._by_rows[rows] = self._plan.payload_bytes(rows), places
        return kept

    def _checked_name(self, tensor: Tensor, room_bytes: int) -> str:
        if tensor.index >= len(self.specs) or tensor.dtype not in DTYPES:
            raise TensorRefused(Reason.BYTE_LENGTH, f"a reply has output {tensor.index} of type {tensor.dtype}")
        name = self.specs[tensor.index].name
        check_extent(name, tensor, room_bytes)
        return name


def _over(held: Array, offset: int, dtype: np.dtype[Any], dims: tuple[int, ...]) -> Array:
    payload_bytes = dtype.itemsize
    for dim in dims:
        payload_bytes *= dim
    return held[offset : offset + payload_bytes].view(dtype).reshape(dims)


def _source(reply: Reply, out: Buffer, base: int, room_bytes: int, overflow: Buffer | None) -> tuple[Buffer, int, int]:
    if reply.inline is not None:
        return reply.inline, 0, len(reply.inline)
    if overflow is not None:
        return overflow, 0, len(overflow)
    return out, base, room_bytes
