"""A caller's inputs, checked against the signature and laid out for a run of slots.

One `InputLayout` per model and session. The common request, one array of the declared dtype with a free row count,
takes a path of its own: a dict look-up, three comparisons, and offsets that were computed for that row count before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from farm.client.options import refused
from farm.errors import InvalidRequest
from shm import tensors
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import CODES, DTYPES, STRING, RowPlan, Signature, Tensor, check_tensor, place
from shm.tensors import NUMPY, Array, Buffer

ROW_COUNTS_KEPT_MAX: Final = 256
"""Layouts remembered per model: services send few different row counts; one that sends all of them starts anew."""


class Layout(NamedTuple):
    """Where the inputs of one request lie in its run of slots.

    payload_bytes: to the end of the last input. room_bytes: the same, or what the outputs need where that is more.
    """

    rows: int
    described: tuple[Tensor, ...] | None
    offsets: tuple[int, ...]
    payload_bytes: int
    room_bytes: int


class Packed(NamedTuple):
    """A request's inputs, checked, in the order of `layout.offsets`. `encoded`: of strings, else None."""

    layout: Layout
    arrays: Sequence[Array]
    encoded: Sequence[list[bytes] | None] | None


class InputLayout:
    """How inputs of one signature are laid out."""

    def __init__(self, model: str, signature: Signature) -> None:
        self.model = model
        self.specs = signature.inputs
        self._plan = RowPlan(signature.inputs)
        self._outputs = RowPlan(signature.outputs)
        self._names = {spec.name: index for index, spec in enumerate(self.specs)}
        self._by_rows: dict[int, Layout] = {}
        self._single = len(self.specs) == 1 and self._plan.fits
        if self._single:
            self._name = self.specs[0].name
            self._dtype = NUMPY[self.specs[0].dtype]
            self._tail = self._plan.tails[0]
            self._row_form = self._plan.row_form

    def pack(self, inputs: object) -> Packed:
        """Check what the caller gave.

        Raises:
            TensorRefused: an input is missing, unknown or not as declared.
        """
        if self._single:
            array = inputs
            if type(inputs) is dict and len(inputs) == 1:
                array = inputs.get(self._name)
            if type(array) is np.ndarray and array.dtype is self._dtype:
                shape = array.shape
                if self._row_form:
                    if shape and shape[1:] == self._tail:
                        layout = self._by_rows.get(shape[0])
                        return Packed(layout or self._rows_layout(shape[0]), (array,), None)
                elif shape == self._tail:
                    return Packed(self._by_rows.get(0) or self._rows_layout(0), (array,), None)
        return self._pack_any(inputs)

    def lay_out(self, shapes: Mapping[str, tuple[Sequence[int], Any]]) -> tuple[Layout, list[int]]:
        """The layout of inputs that are not there yet, and which inputs: for a lease.

        Raises:
            TensorRefused: they do not fit the signature, or are strings, whose bytes nobody knows before.
        """
        given: list[tuple[int, tuple[int, ...], int]] = []
        self._check_names(shapes)
        for index, spec in enumerate(self.specs):
            if spec.name not in shapes:
                continue
            shape, dtype = shapes[spec.name]
            code = CODES.get(np.dtype(dtype).newbyteorder("=").name)
            if spec.dtype == STRING or code is None:
                raise TensorRefused(
                    Reason.DTYPE, f"input {spec.name!r}: {np.dtype(dtype)} cannot be leased; use infer for strings"
                )
            dims = tuple(int(d) for d in shape)
            check_tensor(spec, code, dims)
            given.append((index, dims, _payload_bytes(code, dims)))
        return self._layout_of(given), [index for index, _, _ in given]

    def _pack_any(self, inputs: object) -> Packed:
        named = self._by_name(inputs)
        self._check_names(named)
        arrays: list[Array] = []
        encoded: list[list[bytes] | None] = []
        given: list[tuple[int, tuple[int, ...], int]] = []
        for index, spec in enumerate(self.specs):
            value = named.get(spec.name)
            if value is None and (spec.name not in named or spec.optional):
                continue
            array = tensors.as_array(spec, value)
            strings = tensors.encode_strings(spec.name, array) if spec.dtype == STRING else None
            arrays.append(array)
            encoded.append(strings)
            given.append((index, array.shape, tensors.payload_bytes(array, spec.dtype, strings)))
        return Packed(self._layout_of(given), arrays, encoded)

    def _by_name(self, inputs: object) -> Mapping[str, object]:
        if isinstance(inputs, Mapping):
            return inputs
        if len(self.specs) == 1:
            return {self.specs[0].name: inputs}
        raise TensorRefused(
            Reason.USAGE,
            f"one array was given, but {self.model} has {len(self.specs)} inputs: pass a dict with {self._expected()}",
        )

    def _check_names(self, named: Mapping[str, object]) -> None:
        for name in named:
            if name not in self._names:
                raise TensorRefused(Reason.EXTRA_INPUT, f"input {name!r} is unknown; expected {self._expected()}")
        for spec in self.specs:
            if spec.name not in named and not spec.optional:
                raise TensorRefused(Reason.MISSING_INPUT, f"input {spec.name!r} is missing; expected {spec}")

    def _expected(self) -> str:
        return "; ".join(map(str, self.specs)) or "no inputs"

    def _layout_of(self, given: Sequence[tuple[int, tuple[int, ...], int]]) -> Layout:
        """given: (index, dims, payload bytes) of each input that is there, in the order of the signature."""
        leading = {dims[0] if dims else -1 for _, dims, _ in given}
        rows = max(0, leading.pop()) if len(leading) == 1 else 0
        if self._plan.fits:
            if not self._plan.row_form:
                return self._by_rows.get(0) or self._rows_layout(0)
            if leading:
                raise TensorRefused(
                    Reason.DIMENSION,
                    "inputs differ in their number of rows: "
                    + ", ".join(f"{self.specs[index].name!r} has {dims[0]}" for index, dims, _ in given),
                )
            return self._by_rows.get(rows) or self._rows_layout(rows)
        offsets, payload_bytes = place([size for _, _, size in given])
        described = tuple(
            Tensor(index, self.specs[index].dtype, dims, offset, size)
            for (index, dims, size), offset in zip(given, offsets, strict=True)
        )
        return Layout(rows, described, offsets, payload_bytes, max(payload_bytes, self._output_bytes(rows)))

    def _rows_layout(self, rows: int) -> Layout:
        payload_bytes = self._plan.payload_bytes(rows)
        room_bytes = max(payload_bytes, self._output_bytes(rows))
        layout = Layout(rows, None, self._plan.offsets(rows), payload_bytes, room_bytes)
        if len(self._by_rows) >= ROW_COUNTS_KEPT_MAX:
            self._by_rows.clear()
        self._by_rows[rows] = layout
        return layout

    def _output_bytes(self, rows: int) -> int:
        return self._outputs.payload_bytes(rows) if self._outputs.fits else 0


def write(buffer: Buffer, base: int, packed: Packed) -> None:
    """Copy the arrays into the run that starts at byte `base`: C order, native bytes."""
    offsets = packed.layout.offsets
    for index, array in enumerate(packed.arrays):
        strings = packed.encoded[index] if packed.encoded is not None else None
        if strings is not None:
            tensors.write_strings(buffer, base + offsets[index], strings)
        elif array.size:
            dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
            np.ndarray(array.shape, dtype, buffer, base + offsets[index])[...] = array


def snapshot(inputs: object) -> object:
    """A copy of inputs that must outlive the caller's next step."""
    if isinstance(inputs, Mapping):
        return {name: _snapshot_value(value) for name, value in inputs.items()}
    return _snapshot_value(inputs)


def _snapshot_value(value: object) -> object:
    # Lists and scalars take their dtype from the signature, which may not be known yet: keep what they are.
    return np.array(value) if isinstance(value, np.ndarray | np.generic) else value


def _payload_bytes(code: int, dims: Sequence[int]) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count * DTYPES[code][1]


def invalid(error: TensorRefused, model: str, request_id: int | None) -> InvalidRequest:
    """The service's own error for inputs that do not fit."""
    found = refused(f"{model}: {error}", Reason(error.reason).code)
    found.model = model
    found.request_id = request_id
    return found
