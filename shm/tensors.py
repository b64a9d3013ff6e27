"""Numpy arrays into slots and out of them. The only module of this layer that imports numpy.

Arrays are built here, from a table of dtypes, never from a string that a peer sent: ONNX Runtime reads an array of
foreign byte order as if it were native, without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import CODES, DTYPES, STRING, TensorSpec, check_tensor

Array = npt.NDArray[Any]
Buffer = Any  # mmap, bytes, bytearray or memoryview

NUMPY: Final[dict[int, np.dtype[Any]]] = {
    code: np.dtype(name) for code, (name, _, _) in DTYPES.items() if code != STRING
}
_OFFSET: Final = np.dtype(np.int64)


def code_of(array: Array) -> int | None:
    """The wire's code of an array's dtype, None where there is none. Byte order does not count."""
    kind = array.dtype.kind
    if kind in "OUST":
        return STRING
    return CODES.get(array.dtype.newbyteorder("=").name)


def as_array(spec: TensorSpec, value: object) -> Array:
    """What a caller passed as an array that agrees with the declaration; any layout and byte order.

    Numpy arrays must have the declared dtype. Python scalars and lists have none, so they take the declared one
    where that loses nothing.

    Raises:
        TensorRefused: it does not fit; the message names the input, what was expected and what came.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
    else:
        array = _from_python(spec, value)
    code = code_of(array)
    if code is None:
        raise TensorRefused(Reason.DTYPE, f"input {spec.name!r}: expected {DTYPES[spec.dtype][0]}, got {array.dtype}")
    check_tensor(spec, code, array.shape)
    return array


def _from_python(spec: TensorSpec, value: object) -> Array:
    try:
        array = np.asarray(value)
        if spec.dtype == STRING:
            return array
        want = NUMPY[spec.dtype]
        if array.dtype != want:
            if array.size == 0 or np.can_cast(array.dtype, want, "same_kind"):
                array = array.astype(want)
            elif array.dtype.kind in "iu" and want.kind in "iuf":
                cast = array.astype(want)
                if not np.array_equal(cast, array):
                    raise ValueError(f"a value does not fit {want.name}")
                array = cast
        return array
    except (ValueError, TypeError, OverflowError) as error:
        raise TensorRefused(
            Reason.DTYPE, f"input {spec.name!r}: expected something that makes a {spec}, got {error}"
        ) from error


def payload_bytes(array: Array, code: int, encoded: Sequence[bytes] | None = None) -> int:
    """Bytes that the array takes in a slot. Strings need `encoded`, from `encode_strings`."""
    if code == STRING:
        assert encoded is not None
        return 8 * (len(encoded) + 1) + sum(map(len, encoded))
    return prod(array.shape) * NUMPY[code].itemsize


def encode_strings(name: str, array: Array) -> list[bytes]:
    """UTF-8 of each element, in C order.

    Raises:
        TensorRefused: an element is neither str nor bytes, or cannot be encoded.
    """
    encoded = []
    for element in array.ravel(order="C").tolist():
        if isinstance(element, str):
            try:
                encoded.append(element.encode())
            except UnicodeEncodeError as error:
                raise TensorRefused(Reason.STRING, f"input {name!r}: {error}") from error
        elif isinstance(element, bytes):
            encoded.append(element)
        else:
            raise TensorRefused(Reason.STRING, f"input {name!r}: expected str elements, got {type(element).__name__}")
    return encoded


def write(buffer: Buffer, offset: int, array: Array, code: int, encoded: Sequence[bytes] | None = None) -> None:
    """Copy an array of any layout and byte order to C order and native bytes at `offset`."""
    if code == STRING:
        assert encoded is not None
        write_strings(buffer, offset, encoded)
        return
    view(buffer, offset, code, array.shape, writable=True)[...] = array


def write_strings(buffer: Buffer, offset: int, encoded: Sequence[bytes]) -> None:
    """int64 offsets[n + 1], then the bytes that they point into (from the end of the offsets)."""
    offsets = np.zeros(len(encoded) + 1, _OFFSET)
    np.cumsum([len(e) for e in encoded], out=offsets[1:])
    raw = offsets.tobytes() + b"".join(encoded)
    memoryview(buffer)[offset : offset + len(raw)] = raw


def view(buffer: Buffer, offset: int, code: int, dims: Sequence[int], *, writable: bool = False) -> Array:
    """An array over memory that stays where it is; it keeps the buffer alive. Not for strings."""
    count = prod(dims)
    dtype = NUMPY[code]
    if count == 0:
        array: Array = np.empty(tuple(dims), dtype)
    else:
        array = np.frombuffer(buffer, dtype, count, offset).reshape(tuple(dims))
    if not writable:
        array.flags.writeable = False
    return array


def read_strings(name: str, buffer: Buffer, offset: int, payload_bytes: int, dims: Sequence[int]) -> Array:
    """Strings out of a private copy of the bytes: the writer may still change the original.

    Returns: object array of str, shape `dims`.

    Raises:
        TensorRefused: offsets that fall, pass the end or do not start at 0, or bytes that are not UTF-8.
    """
    raw = bytes(memoryview(buffer)[offset : offset + payload_bytes])
    count = prod(dims)
    head = 8 * (count + 1)
    if len(raw) < head:
        raise TensorRefused(Reason.STRING, f"tensor {name!r}: {count} strings need {head} bytes of offsets")
    offsets = np.frombuffer(raw, _OFFSET, count + 1)
    bounds: list[int] = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] > len(raw) - head or bool(np.any(offsets[1:] < offsets[:-1])):
        raise TensorRefused(Reason.STRING, f"tensor {name!r}: string offsets are not rising from 0 to its length")
    array = np.empty(count, object)
    try:
        for i in range(count):
            array[i] = raw[head + bounds[i] : head + bounds[i + 1]].decode()
    except UnicodeDecodeError as error:
        raise TensorRefused(Reason.STRING, f"tensor {name!r}: element {i} is not UTF-8: {error}") from error
    return array.reshape(tuple(dims))


def address(array: Array) -> int:
    """Where an array's first element lies in this process."""
    return int(array.__array_interface__["data"][0])
