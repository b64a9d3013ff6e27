"""Where tensors lie in a run of slots, and what a model takes and gives: pure, no numpy, no memory.

Tensors lie back to back in the order of the signature, each at a multiple of `ALIGNMENT` from the start of the
run. For a model of fixed shapes the signature alone gives every offset, so a request carries none; such a model
is in *row form* when the first dimension of every input is one free dimension, the row count, which the request
names. Any other request carries a `Tensor` for each input.

The router checks requests with this module and is kept free of numpy (20 MB of memory).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

import msgspec

from shm.endings import Reason
from shm.errors import TensorRefused
from shm.limits import NAME_BYTES_MAX, RANK_MAX, TENSORS_MAX

ALIGNMENT = 64
"""A cache line, and the widest vector that ONNX Runtime's kernels load."""

# Codes are those of onnx.TensorProto.DataType: (name, bytes an element, struct format).
STRING = 8
DTYPES: dict[int, tuple[str, int, str]] = {
    1: ("float32", 4, "f"),
    2: ("uint8", 1, "B"),
    3: ("int8", 1, "b"),
    4: ("uint16", 2, "H"),
    5: ("int16", 2, "h"),
    6: ("int32", 4, "i"),
    7: ("int64", 8, "q"),
    STRING: ("string", 0, ""),
    9: ("bool", 1, "?"),
    10: ("float16", 2, "e"),
    11: ("float64", 8, "d"),
    12: ("uint32", 4, "I"),
    13: ("uint64", 8, "Q"),
}
CODES: dict[str, int] = {name: code for code, (name, _, _) in DTYPES.items()}

BYTES_MAX = 2**40
"""Above any arena: a shape whose product passes it is refused before it is multiplied out any further."""

Code = Annotated[int, msgspec.Meta(ge=1, le=16)]
Size = Annotated[int, msgspec.Meta(ge=0, le=BYTES_MAX)]


class Tensor(msgspec.Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """One tensor of one request or reply, in bytes from the start of its run of slots (or of its inline bytes).

    `index` is the place in the signature's inputs or outputs.
    """

    index: Annotated[int, msgspec.Meta(ge=0, lt=TENSORS_MAX)]
    dtype: Code
    dims: Annotated[tuple[Size, ...], msgspec.Meta(max_length=RANK_MAX)]
    offset: Size
    payload_bytes: Size


class TensorSpec(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A declared input or output. A dimension is a size, or the name of a free one (`"?"` when it has none)."""

    name: Annotated[str, msgspec.Meta(max_length=NAME_BYTES_MAX)]
    dtype: Code
    dims: Annotated[tuple[int | str, ...], msgspec.Meta(max_length=RANK_MAX)]
    optional: bool = False

    def __str__(self) -> str:
        dims = ", ".join(str(d) for d in self.dims)
        return f"{self.name}: {DTYPES[self.dtype][0]}[{dims}]"


Specs = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=TENSORS_MAX)]


class Signature(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a model takes and gives. `independent_rows`: row i of every output depends on row i of the inputs only,
    so rows of several requests may run as one batch."""

    inputs: Specs
    outputs: Specs
    independent_rows: bool = False


class RowPlan:
    """The offsets of a signature's tensors for every row count, where the signature alone decides them.

    Made once per model and side. `fits` is False where requests must carry their tensors: an optional input, a
    string, a free dimension that is not a shared first one.

    >>> plan = RowPlan((TensorSpec("x", 1, ("N", 30)), TensorSpec("k", 7, ("N",))))
    >>> plan.row_form, plan.offsets(2), plan.payload_bytes(2)
    (True, (0, 256), 272)
    """

    __slots__ = ("fits", "row_bytes", "row_form", "specs", "tails")

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        self.row_form = bool(specs) and all(s.dims and isinstance(s.dims[0], str) for s in specs)
        if self.row_form:
            names = {s.dims[0] for s in specs}
            self.row_form = len(names) == 1 and (len(specs) == 1 or names != {"?"})
        first = 1 if self.row_form else 0
        self.fits = all(
            not s.optional and s.dtype != STRING and all(isinstance(d, int) for d in s.dims[first:]) for s in specs
        )
        self.tails = tuple(tuple(d for d in s.dims[first:] if isinstance(d, int)) for s in specs)
        # Bytes of one row of each tensor in row form, of the whole tensor otherwise.
        self.row_bytes = tuple(DTYPES[s.dtype][1] * prod(tail) for s, tail in zip(self.specs, self.tails, strict=True))

    def sizes(self, rows: int) -> tuple[int, ...]:
        """Bytes of each tensor. `rows` is ignored outside the row form."""
        return tuple(n * rows for n in self.row_bytes) if self.row_form else self.row_bytes

    def offsets(self, rows: int) -> tuple[int, ...]:
        return place(self.sizes(rows))[0]

    def payload_bytes(self, rows: int) -> int:
        """Bytes from the start of the run to the end of the last tensor."""
        return place(self.sizes(rows))[1]

    def dims(self, index: int, rows: int) -> tuple[int, ...]:
        return (rows, *self.tails[index]) if self.row_form else self.tails[index]


def place(sizes: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Offsets of tensors laid back to back at `ALIGNMENT`, and the end of the last one.

    >>> place([120, 8])
    ((0, 128), 136)
    """
    offsets = []
    end = 0
    for size in sizes:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(start)
        end = start + size
    return tuple(offsets), end


def slots_for(payload_bytes: int, slot_bytes: int) -> int:
    """Slots that hold so many bytes; at least one, since a request without input bytes still needs a place."""
    return max(1, -(-payload_bytes // slot_bytes))


def check_tensor(spec: TensorSpec, dtype: int, dims: Sequence[int]) -> None:
    """Compare what came with what the model declares.

    Raises:
        TensorRefused: dtype, rank or a fixed dimension differs; the message names input, expected and given.
    """
    if dtype != spec.dtype:
        given = DTYPES[dtype][0] if dtype in DTYPES else f"code {dtype}"
        raise TensorRefused(Reason.DTYPE, f"input {spec.name!r}: expected {DTYPES[spec.dtype][0]}, got {given}")
    if len(dims) != len(spec.dims):
        raise TensorRefused(
            Reason.RANK,
            f"input {spec.name!r}: expected rank {len(spec.dims)} {list(spec.dims)}, got rank {len(dims)} {list(dims)}",
        )
    for axis, (want, have) in enumerate(zip(spec.dims, dims, strict=True)):
        if isinstance(want, int) and want != have:
            raise TensorRefused(
                Reason.DIMENSION,
                f"input {spec.name!r}: expected dimension {axis} to be {want}, got {have} in {list(dims)}",
            )


def check_described(specs: Sequence[TensorSpec], tensors: Sequence[Tensor], room_bytes: int) -> None:
    """Check every tensor of a described request against signature and room, in integers that cannot overflow.

    Raises:
        TensorRefused: a tensor is unknown, twice there, missing, not as declared, misplaced or past the room.
    """
    seen = set()
    for tensor in tensors:
        if tensor.index >= len(specs):
            raise TensorRefused(
                Reason.EXTRA_INPUT, f"input {tensor.index} was given; the model has {len(specs)} inputs"
            )
        spec = specs[tensor.index]
        if tensor.index in seen:
            raise TensorRefused(Reason.EXTRA_INPUT, f"input {spec.name!r} was given twice")
        seen.add(tensor.index)
        check_tensor(spec, tensor.dtype, tensor.dims)
        check_extent(spec.name, tensor, room_bytes)
    for index, spec in enumerate(specs):
        if index not in seen and not spec.optional:
            raise TensorRefused(Reason.MISSING_INPUT, f"input {spec.name!r} is missing; expected {spec}")


def check_extent(name: str, tensor: Tensor, room_bytes: int) -> None:
    """The tensor's bytes agree with its shape and lie inside the room, at an aligned offset."""
    # A dimension of zero does not hide the others: numpy refuses an empty array whose strides would overflow.
    extent = 1
    for dim in tensor.dims:
        extent *= dim or 1
        if extent > BYTES_MAX:
            raise TensorRefused(Reason.TOO_LARGE, f"tensor {name!r}: shape {list(tensor.dims)} is too large")
    count = 0 if 0 in tensor.dims else extent
    if tensor.dtype == STRING:
        least = 8 * (count + 1)
        if tensor.payload_bytes < least:
            raise TensorRefused(
                Reason.BYTE_LENGTH,
                f"tensor {name!r}: {count} strings need at least {least} bytes of offsets, got {tensor.payload_bytes}",
            )
    else:
        want = count * DTYPES[tensor.dtype][1]
        if tensor.payload_bytes != want:
            raise TensorRefused(
                Reason.BYTE_LENGTH,
                f"tensor {name!r}: shape {list(tensor.dims)} takes {want} bytes, got {tensor.payload_bytes}",
            )
    if tensor.offset % ALIGNMENT:
        raise TensorRefused(
            Reason.BYTE_LENGTH, f"tensor {name!r}: offset {tensor.offset} is no multiple of {ALIGNMENT}"
        )
    if tensor.offset + tensor.payload_bytes > room_bytes:
        raise TensorRefused(
            Reason.BYTE_LENGTH,
            f"tensor {name!r}: bytes {tensor.offset}..{tensor.offset + tensor.payload_bytes} pass the "
            f"{room_bytes} bytes of its slots",
        )
