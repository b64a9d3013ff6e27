"""When a rule and the model say the same: equal, on one side, or near enough; whatever the dtype."""

from __future__ import annotations

import struct

import pytest

from router.agreement import VALUES_MAX, Agreement
from router.config import AgreeConfig
from shm.layout import Signature, Tensor, TensorSpec

F32, I64, STRING, BOOL = 1, 7, 8, 9


def agreement(dtype: int = F32, dims: tuple[int | str, ...] = ("N",), **how: float) -> Agreement:
    signature = Signature((), (TensorSpec("y", dtype, dims),))
    return Agreement({"y": AgreeConfig(**how)} if how else {}, signature)


def model_of(code: str, dtype: int, *values: object, dims: tuple[int, ...] | None = None):
    payload = struct.pack(f"={len(values)}{code}", *values)
    return (Tensor(0, dtype, dims or (len(values),), 0, len(payload)),), payload


def rows_of(code: str, *rows: object) -> list[list[bytes]]:
    return [[struct.pack("=" + code, row)] for row in rows]


@pytest.mark.parametrize(
    ("how", "model", "rule", "agrees"),
    [
        ({}, 0.3, 0.2, True),
        ({}, 0.31, 0.2, False),
        ({}, float("inf"), float("inf"), True),
        ({}, float("nan"), float("nan"), False),
        ({"tolerance": 0.0}, 0.5, 0.5, True),
        ({"tolerance": 0.5}, 0.1, 0.7, False),
        ({"threshold": 0.5}, 0.5, 0.9, True),
        ({"threshold": 0.5}, 0.49, 0.5, False),
        ({"threshold": 0.5}, float("nan"), 0.1, False),
        ({"threshold": 0.7}, 0.8, 0.7, True),
        ({"threshold": 1e300}, 0.8, 0.7, True),
    ],
)
def test_floats(how, model, rule, agrees):
    assert agreement(**how).compare(model_of("f", F32, model), rows_of("f", rule)) is agrees


@pytest.mark.parametrize(("dtype", "code", "one", "other"), [(I64, "q", 3, 4), (BOOL, "?", True, False)])
def test_what_is_no_float_is_equal_or_not(dtype, code, one, other):
    assert agreement(dtype).compare(model_of(code, dtype, one), rows_of(code, one)) is True
    assert agreement(dtype).compare(model_of(code, dtype, one), rows_of(code, other)) is False


def test_integers_may_be_near_enough():
    assert agreement(I64, tolerance=1).compare(model_of("q", I64, 3), rows_of("q", 4)) is True


def test_strings():
    payload = struct.pack("=3q", 0, 2, 6) + b"ja" + b"nein"
    tensors = (Tensor(0, STRING, (2,), 0, len(payload)),)
    assert agreement(STRING).compare((tensors, payload), [[b"ja"], [b"nein"]]) is True
    assert agreement(STRING).compare((tensors, payload), [[b"ja"], [b"ja"]]) is False


def test_an_output_without_rows_is_compared_once():
    one = agreement(F32, (2,))
    row = [[struct.pack("=2f", 1, 2)]]
    assert one.compare(model_of("f", F32, 1.0, 2.0), row * 3) is True


@pytest.mark.parametrize(
    "made",
    [
        model_of("f", F32, 1.0, 2.0),
        model_of("d", 11, 1.0),
        model_of("f", F32, *[1.0] * (VALUES_MAX + 1)),
        ((), b""),
    ],
    ids=["other_rows", "other_dtype", "too_many", "none"],
)
def test_what_cannot_be_compared_is_not_counted(made):
    one = agreement()
    assert one.compare(made, rows_of("f", 1.0)) is None
    assert (one.compared, one.agreed) == (0, 0)
