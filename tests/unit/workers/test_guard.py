"""The guard: which outputs pass, what is said of the others, and that only the bad member of a run fails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shm import seqpacket
from shm.endings import Reason
from shm.layout import Signature, TensorSpec
from shm.worker import RAN, Inspect, Run, done_codec, run_codec
from tests import models
from workers.config import GuardConfig
from workers.guard import Guard, GuardRefused
from workers.lane import Lane

F32, I64, STRING, BOOL, F16 = 1, 7, 8, 9, 10
FAR_NS = 2**62


def guard(dtype: int = F32, dims: tuple[int | str, ...] = ("N", 2), **config: Any) -> Guard:
    return Guard(GuardConfig(**config), Signature((), (TensorSpec("y", dtype, dims),)))


def array(*values: float, dtype: str = "float32") -> list[np.ndarray[Any, Any]]:
    return [np.array(values, dtype).reshape(-1, 2)]


@pytest.mark.parametrize(
    ("config", "values", "said"),
    [
        ({}, (1, 2, 3, 4), None),
        ({}, (1, 2, math.nan, 4), "output 'y' is nan in row 1, place [0]; it must be finite (guard)"),
        ({}, (1, -math.inf), "output 'y' is -inf in row 0, place [1]; it must be finite (guard)"),
        ({"finite": False}, (1, math.inf), None),
        ({"finite": False, "ranges": {"y": (0, 1)}}, (0, math.nan), "output 'y' is nan in row 0, place [1]; it must"),
        ({"ranges": {"y": (0, 1)}}, (0, 1, 0.5, 1), None),
        ({"ranges": {"y": (0, 1)}}, (0, 1, 0.5, 1.5), "output 'y' is 1.5 in row 1, place [1]; it must be from 0 to 1"),
        ({"ranges": {"y": (0, 1)}}, (-0.25, 1), "output 'y' is -0.25 in row 0, place [0]; it must be from 0 to 1"),
        ({"ranges": {"y": (0, 1)}}, (), None),
    ],
)
def test_values_that_may_be_and_those_that_may_not(config, values, said):
    refused = guard(**config).refuse(array(*values))
    assert refused is None if said is None else refused is not None and refused.startswith(said)


@pytest.mark.parametrize(("dtype", "name"), [(F16, "float16"), (11, "float64")])
def test_every_float_is_looked_at(dtype, name):
    assert guard(dtype).refuse(array(1, math.nan, dtype=name)) is not None


def test_whole_numbers_have_ranges_and_are_always_finite():
    assert guard(I64).refuse(array(1, 2, dtype="int64")) is None
    assert guard(I64, ranges={"y": (0, 3)}).refuse(array(1, 4, dtype="int64")) is not None


def test_one_value_and_none_with_dimensions():
    one = guard(F32, (), ranges={"y": (0, 1)})
    assert one.refuse([np.array(0.5, np.float32)]) is None
    assert one.refuse([np.array(7, np.float32)]) == "output 'y' is 7; it must be from 0 to 1 (guard)"


@pytest.mark.parametrize(("dtype", "name"), [(F16, "float16"), (F32, "float32"), (11, "float64")])
def test_the_ends_of_a_range_are_in_it_as_the_dtype_has_them(dtype, name):
    ends = guard(dtype, ranges={"y": (-0.1, 0.1)})
    assert ends.refuse(array(-0.1, 0.1, dtype=name)) is None
    assert ends.refuse([np.array([[0.1]], name)]) is None
    assert guard(dtype, ranges={"y": (0.0, 1e300)}).refuse(array(1, 60_000, dtype=name)) is None


def test_strings_and_bools_are_left_alone():
    assert guard(STRING).refuse([np.array([["a", "b"]], object)]) is None
    assert guard(BOOL).refuse([np.array([[True, False]])]) is None


@pytest.mark.parametrize(("name", "dtype"), [("z", F32), ("y", STRING), ("y", BOOL)])
def test_a_range_that_fits_no_output_is_refused_by_name(name, dtype):
    with pytest.raises(GuardRefused, match=rf"ranges\.{name}: "):
        guard(dtype, ranges={name: (0, 1)})


# In a run


def bad_rows(*bad: int, rows: int = 1) -> list[np.ndarray[Any, Any]]:
    """Inputs of eight members; those that are named hold a NaN in their last row."""
    inputs = [np.full((rows, 3), n, np.float32) for n in range(8)]
    for n in bad:
        inputs[n][-1, 1] = math.nan
    return inputs


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("described", [False, True])
def test_only_the_bad_member_of_a_batch_fails(rig, tmp_path, described, rows, private):
    r = rig(models.identity(tmp_path / "m.onnx", "float32"), guard=GuardConfig())
    client = r.client()
    inputs = bad_rows(2, 5, rows=rows)
    members = [
        client.described(r.session, n, {"x": x}) if described else client.rows(r.session, n, x)
        for n, x in enumerate(inputs)
    ]
    done = r.run(*members, private=private)
    assert [end.reason for end in done.members] == [Reason.GUARD if n in (2, 5) else 0 for n in range(8)]
    assert done.members[2].message == f"output 'y' is nan in row {rows - 1}, place [1]; it must be finite (guard)"
    for n, member in enumerate(members):
        if n not in (2, 5):
            np.testing.assert_array_equal(r.outputs(client, member, done, n)[0], inputs[n])
    assert r.run(*(m for n, m in enumerate(members) if n not in (2, 5)), private=private).members == []


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("described", [False, True])
def test_a_member_alone_fails(rig, tmp_path, described, private):
    r = rig(models.identity(tmp_path / "m.onnx", "float32"), guard=GuardConfig())
    client = r.client()
    for x, reason in ((bad_rows(0)[0], Reason.GUARD), (bad_rows()[0], 0)):
        member = client.described(r.session, 0, {"x": x}) if described else client.rows(r.session, 0, x)
        for _ in range(2):
            done = r.run(member, private=private)
            assert [end.reason for end in done.members] == ([reason] if reason else [])


def test_large_outputs_that_are_bound_for_one_run_are_guarded(rig, tmp_path):
    r = rig(models.two_free_dims(tmp_path / "m.onnx"), guard=GuardConfig(ranges={"mean": (0, 1)}))
    r2 = rig(models.big_output(tmp_path / "b.onnx"), guard=GuardConfig(ranges={"y": (0, 1)}))
    client = r2.client(64, 16 * 1024)
    x = np.zeros((20, 1), np.float32)
    x[7] = 3
    member = client.described(r2.session, 0, {"x": x}, slot_count=20)
    (end,) = r2.run(member).members
    assert (end.reason, end.message) == (
        Reason.GUARD,
        "output 'y' is 3 in row 7, place [0]; it must be from 0 to 1 (guard)",
    )
    other = r.client()
    member = other.described(r.session, 0, {"x": np.full((2, 5), 7, np.float32)})
    (end,) = r.run(member).members
    assert end.message == "output 'mean' is 7 in row 0; it must be from 0 to 1 (guard)"


def test_the_flat_path_is_guarded_too(rig, tmp_path):
    r = rig(models.identity(tmp_path / "m.onnx", "float32"), guard=GuardConfig())
    client = r.client()
    member = client.rows(r.session, 3, bad_rows()[0])
    assert r.run(member).members == []
    router, worker = seqpacket.pair()
    try:
        lane = Lane(worker, r.session, r.arenas, r.runner)
        for x in (bad_rows()[0], bad_rows(0)[0], bad_rows()[0]):
            client.rows(r.session, 3, x)
            assert seqpacket.send(router, run_codec.encode(Run(50, FAR_NS, [member])))
            assert seqpacket.send(router, run_codec.encode(Inspect(1)))
            lane.next()
        ends = []
        while (got := seqpacket.receive(router)) is not None:
            done = done_codec.decode(got[0])
            assert done.status == RAN
            ends.append([end.reason for end in done.members])
        assert ends == [[], [Reason.GUARD], []]
    finally:
        router.close()
        worker.close()
