"""Arrays into slots and out of them: what was passed is what is read, and what does not fit is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shm import tensors
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import CODES, DTYPES, STRING, TensorSpec
from shm.tensors import NUMPY, Array
from tests.unit.shm import strategies as draw
from tests.unit.shm.strategies import quick

FLOAT, INT64 = CODES["float32"], CODES["int64"]
GUARD = b"\xa5" * 64


def free_spec(code: int, array: Array) -> TensorSpec:
    return TensorSpec("x", code, ("?",) * array.ndim)


@quick
@given(draw.number_arrays())
@example(np.zeros((), ">f8"))
@example(np.zeros((0, 3), "<i2"))
@example(np.asfortranarray(np.arange(6, dtype=">u4").reshape(2, 3)))
def test_an_array_of_any_dtype_order_and_stride_comes_back_the_same(array: Array) -> None:
    code = tensors.code_of(array)
    assert code is not None
    taken = tensors.as_array(free_spec(code, array), array)
    size = tensors.payload_bytes(taken, code)
    buffer = bytearray(GUARD + bytes(size) + GUARD)
    tensors.write(buffer, 64, taken, code)
    seen = tensors.view(buffer, 64, code, array.shape)
    assert seen.dtype == NUMPY[code]
    assert seen.dtype.isnative
    assert seen.flags.c_contiguous
    assert not seen.flags.writeable, "nobody asked for that"
    # Bit for bit, not-a-number too.
    assert seen.tobytes() == np.ascontiguousarray(array.astype(NUMPY[code])).tobytes()
    assert seen.shape == array.shape
    assert (buffer[:64], buffer[64 + size :]) == (GUARD, GUARD), "bytes beside the tensor were touched"


@quick
@given(draw.string_arrays)
@example(np.array("", object))
@example(np.empty((0, 2), object))
@example(np.array(["\0", "é\U0001f600", ""], object))
def test_strings_of_any_shape_come_back_the_same(array: Array) -> None:
    spec = free_spec(STRING, array)
    taken = tensors.as_array(spec, array)
    encoded = tensors.encode_strings("x", taken)
    size = tensors.payload_bytes(taken, STRING, encoded)
    buffer = bytearray(GUARD + bytes(size) + GUARD)
    tensors.write(buffer, 64, taken, STRING, encoded)
    seen = tensors.read_strings("x", buffer, 64, size, array.shape)
    assert seen.shape == array.shape
    assert seen.tolist() == array.tolist()
    assert (buffer[:64], buffer[64 + size :]) == (GUARD, GUARD), "bytes beside the tensor were touched"


@quick
@given(st.binary(max_size=80), st.lists(st.integers(0, 3), max_size=3))
def test_any_bytes_are_strings_or_refused(raw: bytes, dims: list[int]) -> None:
    try:
        array = tensors.read_strings("x", raw, 0, len(raw), dims)
    except TensorRefused:
        return
    assert array.shape == tuple(dims)


@pytest.mark.parametrize(
    ("offsets", "payload"),
    [
        ([0, 2, 1], b"ab"),
        ([0, 1, 3], b"ab"),
        ([1, 1, 2], b"ab"),
        ([0, -1, 2], b"ab"),
        ([0, 2**62, 2], b"ab"),
        ([0, 1, 2], b"a\xff"),
        ([0, 1, 2], "é".encode()),
    ],
)
def test_offsets_that_fall_or_pass_the_end_and_bytes_that_are_no_utf8_are_refused(
    offsets: list[int], payload: bytes
) -> None:
    raw = np.array(offsets, np.int64).tobytes() + payload
    with pytest.raises(TensorRefused, match="tensor 'x'") as caught:
        tensors.read_strings("x", raw, 0, len(raw), (2,))
    assert caught.value.reason == Reason.STRING


def test_strings_are_read_from_a_copy() -> None:
    buffer = bytearray(64)
    tensors.write_strings(buffer, 0, [b"ab", b"c"])
    seen = tensors.read_strings("x", buffer, 0, 27, (2,))
    buffer[24:27] = b"xyz"
    assert seen.tolist() == ["ab", "c"]


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bc"]),
        np.array([b"a", b"bc"]),
        np.array(["a", b"bc"], object),
        np.array(["a", "bc"], np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else np.array(["a", "bc"]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_every_kind_of_string_array_is_taken(array: Array) -> None:
    assert tensors.code_of(array) == STRING
    assert tensors.encode_strings("x", tensors.as_array(free_spec(STRING, array), array)) == [b"a", b"bc"]


def test_elements_that_are_no_strings_are_refused() -> None:
    with pytest.raises(TensorRefused, match="input 'x': expected str elements, got int"):
        tensors.encode_strings("x", np.array(["a", 3], object))
    with pytest.raises(TensorRefused, match="surrogates"):
        tensors.encode_strings("x", np.array(["\ud800"], object))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((2, 4), np.float64), Reason.DTYPE),
        (np.zeros((2, 4), np.complex64), Reason.DTYPE),
        (np.zeros((2, 4), "M8[s]"), Reason.DTYPE),
        (np.zeros((2, 4), [("a", "f4")]), Reason.DTYPE),
        (np.array([["a"] * 4]), Reason.DTYPE),
        (np.zeros(4, np.float32), Reason.RANK),
        (np.float32(1), Reason.RANK),
        (np.zeros((2, 5), np.float32), Reason.DIMENSION),
        ([[1, 2, 3]], Reason.DIMENSION),
        ([[1, 2, 3, "a"]], Reason.DTYPE),
        ([[1, 2], [3]], Reason.DTYPE),
        ([[1j, 2, 3, 4]], Reason.DTYPE),
        (None, Reason.DTYPE),
    ],
)
def test_what_does_not_fit_the_declaration_is_refused_by_name(value: Any, reason: Reason) -> None:
    with pytest.raises(TensorRefused, match="input 'x'") as caught:
        tensors.as_array(TensorSpec("x", FLOAT, ("N", 4)), value)
    assert Reason(caught.value.reason) is reason


@pytest.mark.parametrize(
    ("code", "value", "want"),
    [
        ("float32", [1.5, 2], np.array([1.5, 2], np.float32)),
        ("float32", [1, 2], np.array([1, 2], np.float32)),
        ("float16", [], np.array([], np.float16)),
        ("int64", [1, 2], np.array([1, 2])),
        ("uint8", [0, 255], np.array([0, 255], np.uint8)),
        ("uint64", [2**64 - 1], np.array([2**64 - 1], np.uint64)),
        ("bool", [True, False], np.array([True, False])),
        ("string", ["a", "b"], np.array(["a", "b"])),
    ],
)
def test_python_values_take_the_declared_dtype_where_nothing_is_lost(code: str, value: Any, want: Array) -> None:
    taken = tensors.as_array(TensorSpec("x", CODES[code], ("N",)), value)
    assert taken.dtype == want.dtype
    assert taken.tolist() == want.tolist()


@pytest.mark.parametrize(
    ("code", "value"),
    [("uint8", [256]), ("uint8", [-1]), ("int64", [1.5]), ("bool", [2]), ("int64", [2**64]), ("string", [[1], [2, 3]])],
)
def test_python_values_that_would_lose_something_are_refused(code: str, value: Any) -> None:
    with pytest.raises(TensorRefused):
        tensors.as_array(TensorSpec("x", CODES[code], ("N",)), value)


def test_every_dtype_of_the_wire_has_its_numpy_twin() -> None:
    assert set(NUMPY) == set(DTYPES) - {STRING}
    for code, dtype in NUMPY.items():
        assert tensors.code_of(np.empty(0, dtype)) == tensors.code_of(np.empty(0, dtype.newbyteorder("S"))) == code


def test_a_view_lies_in_the_buffer_and_keeps_it_alive() -> None:
    buffer = bytearray(256)
    array = tensors.view(buffer, 64, FLOAT, (2, 4), writable=True)
    array[1, 3] = 7
    assert np.frombuffer(buffer, np.float32)[16 + 7] == 7
    start = tensors.address(np.frombuffer(buffer, np.uint8))
    assert tensors.address(array) == start + 64
    del buffer
    assert array[1, 3] == 7


def test_a_view_past_the_buffer_is_an_error() -> None:
    with pytest.raises(ValueError):
        tensors.view(bytearray(64), 32, FLOAT, (9,))
