"""Layouts: what the signature alone decides, what a request must describe, and what no request may claim."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shm import layout
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import (
    ALIGNMENT,
    BYTES_MAX,
    CODES,
    DTYPES,
    STRING,
    RowPlan,
    Tensor,
    TensorSpec,
    check_described,
    place,
    slots_for,
)
from shm.limits import RANK_MAX
from shm.tensors import read_strings, view
from tests.unit.shm import strategies as draw
from tests.unit.shm.strategies import quick

FLOAT, INT64 = CODES["float32"], CODES["int64"]
ROOM = 4096


def spec(name: str, *dims: int | str, dtype: int = FLOAT, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, dtype, dims, optional)


def refusal(declared: list[TensorSpec], *tensors: Tensor, room_bytes: int = ROOM) -> TensorRefused:
    with pytest.raises(TensorRefused) as caught:
        check_described(declared, tensors, room_bytes)
    return caught.value


def test_examples_in_the_docstrings_hold() -> None:
    failed, tried = doctest.testmod(layout)
    assert (failed, tried > 0) == (0, True)


def test_sizes_of_dtypes_are_those_of_their_struct_format() -> None:
    for code, (name, size, _) in DTYPES.items():
        if code != STRING:
            assert np.dtype(name).itemsize == size


@pytest.mark.parametrize(
    ("declared", "row_form", "fits"),
    [
        ([spec("x", "N", 4)], True, True),
        ([spec("x", "?", 4)], True, True),
        ([spec("x", "N", 4), spec("y", "N")], True, True),
        ([spec("x", 2, 4)], False, True),
        ([spec("x")], False, True),
        ([], False, True),
        # Two free dimensions without a name may differ.
        ([spec("x", "?", 4), spec("y", "?")], False, False),
        ([spec("x", "N", 4), spec("y", "M")], False, False),
        ([spec("x", "N", 4), spec("y", 3)], False, False),
        ([spec("x", "N", "M")], True, False),
        ([spec("x", "N", "N")], True, False),
        ([spec("x", 4, "N")], False, False),
        ([spec("x", "N", 4, dtype=STRING)], True, False),
        ([spec("x", "N", 4, optional=True)], True, False),
    ],
)
def test_row_form_takes_one_shared_free_first_dimension_and_nothing_else_free(
    declared: list[TensorSpec], row_form: bool, fits: bool
) -> None:
    plan = RowPlan(declared)
    assert (plan.row_form, plan.fits) == (row_form, fits)


def test_rows_do_not_count_outside_the_row_form() -> None:
    plan = RowPlan([spec("x", 2, 3), spec("y")])
    assert plan.sizes(1) == plan.sizes(9) == (24, 4)
    assert plan.dims(0, 9) == (2, 3)
    assert plan.payload_bytes(9) == 64 + 4


@quick
@given(st.lists(st.integers(0, 1000), max_size=8))
def test_places_are_aligned_in_order_and_as_tight_as_that_allows(sizes: list[int]) -> None:
    offsets, end = place(sizes)
    before = 0
    for offset, size in zip(offsets, sizes, strict=True):
        assert offset % ALIGNMENT == 0
        assert before <= offset < before + ALIGNMENT
        before = offset + size
    assert end == before


@quick
@given(st.integers(0, 2**31), st.integers(1, 2**14).map(lambda n: n * 64))
def test_slots_hold_the_payload_and_one_fewer_would_not(payload_bytes: int, slot_bytes: int) -> None:
    count = slots_for(payload_bytes, slot_bytes)
    assert count >= 1
    assert count * slot_bytes >= payload_bytes
    assert count == 1 or (count - 1) * slot_bytes < payload_bytes


@quick
@given(draw.row_specs(), st.integers(0, 40))
def test_what_a_plan_lays_out_is_right_when_described(declared: list[TensorSpec], rows: int) -> None:
    plan = RowPlan(declared)
    assert plan.fits
    offsets, sizes, room = plan.offsets(rows), plan.sizes(rows), plan.payload_bytes(rows)
    described = [Tensor(i, s.dtype, plan.dims(i, rows), offsets[i], sizes[i]) for i, s in enumerate(plan.specs)]
    check_described(plan.specs, described, room)
    for tensor in described:
        array = view(bytearray(room), tensor.offset, tensor.dtype, tensor.dims)
        assert (array.shape, array.nbytes) == (tensor.dims, tensor.payload_bytes)
    last = [t for t in described if t.offset + t.payload_bytes == room and t.payload_bytes]
    if last:
        assert refusal(declared, *described, room_bytes=room - 1).reason == Reason.BYTE_LENGTH


@quick
@given(draw.specs(), st.lists(draw.tensors, max_size=6), st.integers(0, 2**30))
@example([spec("x", "a", "b", "c")], [Tensor(0, FLOAT, (0, 2**40, 2**40), 0, 0)], ROOM)
@example([spec("x", "a", "b", dtype=STRING)], [Tensor(0, STRING, (BYTES_MAX, 0), 0, 8)], ROOM)
def test_any_tensor_is_taken_or_refused_and_what_is_taken_can_be_read(
    declared: list[TensorSpec], tensors: list[Tensor], room_bytes: int
) -> None:
    try:
        check_described(declared, tensors, room_bytes)
    except TensorRefused as refused:
        Reason(refused.reason)
        return
    read_all(declared, tensors, room_bytes)


@quick
@given(st.data(), draw.specs(), st.integers(0, 64).map(lambda n: n * 64))
def test_tensors_that_are_nearly_right_are_taken_or_refused_too(
    data: st.DataObject, declared: list[TensorSpec], room_bytes: int
) -> None:
    tensors = data.draw(draw.nearly_right(declared))
    try:
        check_described(declared, tensors, room_bytes)
    except TensorRefused as refused:
        Reason(refused.reason)
        return
    assert {t.index for t in tensors} >= {i for i, s in enumerate(declared) if not s.optional}
    read_all(declared, tensors, room_bytes)


def read_all(declared: list[TensorSpec], tensors: list[Tensor], room_bytes: int) -> None:
    """As a worker does: nothing may fail but the bytes of strings."""
    buffer = bytearray(min(room_bytes, 2**20))
    for tensor in tensors:
        if tensor.offset + tensor.payload_bytes > len(buffer):
            continue
        if tensor.dtype == STRING:
            array = read_strings("x", buffer, tensor.offset, tensor.payload_bytes, tensor.dims)
        else:
            array = view(buffer, tensor.offset, tensor.dtype, tensor.dims)
        assert array.shape == tensor.dims


RIGHT: dict[str, Any] = {"index": 0, "dtype": FLOAT, "dims": (2, 4), "offset": 64, "payload_bytes": 32}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"index": 2}, Reason.EXTRA_INPUT),
        ({"dtype": INT64}, Reason.DTYPE),
        ({"dtype": 16}, Reason.DTYPE),
        ({"dims": (8,)}, Reason.RANK),
        ({"dims": ()}, Reason.RANK),
        ({"dims": (2, 5)}, Reason.DIMENSION),
        ({"dims": (2**40, 4)}, Reason.TOO_LARGE),
        ({"dims": (3, 4)}, Reason.BYTE_LENGTH),
        ({"payload_bytes": 31}, Reason.BYTE_LENGTH),
        ({"payload_bytes": 33}, Reason.BYTE_LENGTH),
        ({"offset": 60}, Reason.BYTE_LENGTH),
        ({"offset": ROOM}, Reason.BYTE_LENGTH),
        ({"offset": ROOM - 32}, Reason.BYTE_LENGTH),
        ({"offset": BYTES_MAX}, Reason.BYTE_LENGTH),
    ],
)
def test_a_tensor_that_is_wrong_in_one_field_is_refused_by_name(change: dict[str, Any], reason: Reason) -> None:
    declared = [spec("x", "N", 4), spec("k", dtype=INT64, optional=True)]
    check_described(declared, [Tensor(**RIGHT)], ROOM)
    refused = refusal(declared, Tensor(**(RIGHT | change)))
    assert Reason(refused.reason) is reason
    assert "input" in str(refused) or "'x'" in str(refused)


def test_the_last_byte_of_the_room_may_be_used() -> None:
    declared = [spec("x", 16)]
    tensor = Tensor(0, FLOAT, (16,), 64, 64)
    check_described(declared, [tensor], 128)
    assert refusal(declared, tensor, room_bytes=127).reason == Reason.BYTE_LENGTH


def test_an_input_twice_or_not_at_all_is_refused() -> None:
    tensor = Tensor(**RIGHT)
    assert "twice" in str(refusal([spec("x", "N", 4)], tensor, tensor))
    missing = refusal([spec("x", "N", 4), spec("k", dtype=INT64)], tensor)
    assert missing.reason == Reason.MISSING_INPUT
    assert "'k'" in str(missing)
    check_described([spec("x", "N", 4, optional=True)], [], ROOM)


def test_strings_need_room_for_their_offsets() -> None:
    declared = [spec("s", "N", dtype=STRING)]
    check_described(declared, [Tensor(0, STRING, (3,), 0, 32)], ROOM)
    assert refusal(declared, Tensor(0, STRING, (3,), 0, 31)).reason == Reason.BYTE_LENGTH
    check_described(declared, [Tensor(0, STRING, (0,), 0, 8)], ROOM)


@pytest.mark.parametrize("dims", [(0, 2**40, 2**40), (2**40, 2**40, 0), (2**21, 0, 2**21)])
@pytest.mark.parametrize(("dtype", "payload_bytes"), [(FLOAT, 0), (STRING, 8)])
def test_a_dimension_of_zero_does_not_hide_others_that_no_array_can_have(
    dims: tuple[int, ...], dtype: int, payload_bytes: int
) -> None:
    declared = [spec("x", "a", "b", "c", dtype=dtype)]
    refused = refusal(declared, Tensor(0, dtype, dims, 0, payload_bytes))
    assert refused.reason == Reason.TOO_LARGE


def test_the_highest_rank_can_be_read() -> None:
    declared = [spec("x", *["N"] * RANK_MAX)]
    tensor = Tensor(0, FLOAT, (1,) * RANK_MAX, 0, 4)
    check_described(declared, [tensor], 64)
    assert view(bytearray(64), 0, FLOAT, tensor.dims).ndim == RANK_MAX
