"""Every way through a run gives what the session gives, where the client looks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shm.endings import Reason
from tests import models

pytestmark = pytest.mark.filterwarnings("error")


def random(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    if dtype == "string":
        return np.array([f"ä{i}" for i in rng.integers(0, 99, shape).ravel()], object).reshape(shape)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


def same(one, other) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype.kind in "OU":
        return one.shape == other.shape and one.tolist() == other.tolist()
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (0, 3)])
@pytest.mark.parametrize("dtype", list(models.ELEMENTS))
def test_every_dtype_comes_back_bit_for_bit(rig, rng, tmp_path, dtype, shape, private):
    r = rig(models.identity(tmp_path / "m.onnx", dtype))
    client = r.client()
    x = random(dtype, shape, rng)
    if dtype == "string":
        member = client.described(r.session, 3, {"x": x})
    else:
        member = client.rows(r.session, 3, x)
    done = r.run(member, private=private)
    assert done.status == 0
    assert same(r.outputs(client, member, done)[0], x)


def test_run_of_one_equals_the_session(rig, rng, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    for rows in (1, 3):
        x = rng.standard_normal((rows, 64)).astype(np.float32)
        member = client.rows(r.session, 5, x)
        done = r.run(member)
        assert done.members == []
        assert same(client.declared(r.session, member)[0], r.session.run({"x": x})[0])


def test_batch_equals_the_session_on_the_same_batch(rig, rng, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    clients = [r.client(), r.client()]
    for _ in range(20):
        count = int(rng.integers(2, 20))
        members, whose, xs = [], [], []
        slots = rng.permutation(32)
        for i in range(count):
            client = clients[int(rng.integers(0, 2))]
            x = rng.standard_normal((int(rng.choice([1, 1, 1, 1, 2, 3])), 64)).astype(np.float32)
            members.append(client.rows(r.session, int(slots[i]), x))
            whose.append(client)
            xs.append(x)
        done = r.run(*members)
        assert done.members == []
        want = r.session.run({"x": np.concatenate(xs)})[0]
        have = np.concatenate([c.declared(r.session, m)[0] for c, m in zip(whose, members, strict=True)])
        assert same(have, want)
        assert done.copies.inputs == done.copies.outputs == count
        assert done.copies.input_bytes == want.shape[0] * 256


def test_single_run_reads_and_writes_in_place(rig, rng, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    member = client.rows(r.session, 7, rng.standard_normal((1, 64)).astype(np.float32))
    done = r.run(member)
    base = r.arenas.facts()[0]["in_address"]
    assert r.runner.facts()["last_run"]["input_addresses"] == [base + 7 * client.slot_bytes]
    assert (done.copies.inputs_in_place, done.copies.outputs_in_place) == (1, 1)
    assert done.copies.inputs == done.copies.outputs == 0


def test_described_inputs_are_read_in_place(rig, rng, tmp_path):
    r = rig(models.two_free_dims(tmp_path / "m.onnx"))
    client = r.client()
    x = rng.standard_normal((2, 5)).astype(np.float32)
    member = client.described(r.session, 2, {"x": x})
    done = r.run(member)
    base = r.arenas.facts()[0]["in_address"]
    assert r.runner.facts()["last_run"]["input_addresses"] == [base + 2 * client.slot_bytes]
    have = r.outputs(client, member, done)
    assert all(same(h, w) for h, w in zip(have, r.session.run({"x": x}), strict=True))
    assert done.copies.inputs_in_place == 1


def test_private_run_copies_every_input(rig, rng, tmp_path):
    for make in (models.mlp, models.fixed):
        r = rig(make(tmp_path / "m.onnx"))
        client = r.client()
        shape = (1, 64) if make is models.mlp else (2, 3)
        x = rng.standard_normal(shape).astype(np.float32)
        member = client.rows(r.session, 4, x)
        done = r.run(member, private=True)
        address = r.runner.facts()["last_run"]["input_addresses"][0]
        base = r.arenas.facts()[0]["in_address"]
        assert not base <= address < base + 64 * client.slot_bytes
        assert (done.copies.inputs_in_place, done.copies.inputs, done.copies.input_bytes) == (0, 1, x.nbytes)
        assert same(r.outputs(client, member, done)[0], r.session.run({"x": x})[0])


def test_a_later_request_in_the_same_slot_is_read_anew(rig, rng, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    for _ in range(3):
        x = rng.standard_normal((1, 64)).astype(np.float32)
        member = client.rows(r.session, 0, x)
        r.run(member)
        assert same(client.declared(r.session, member)[0], r.session.run({"x": x})[0])


def test_several_inputs_and_outputs_alone_and_together(rig, rng, tmp_path):
    r = rig(models.two_in_two_out(tmp_path / "m.onnx"))
    client = r.client()
    feeds, members = [], []
    for slot in range(9):
        a, k = rng.standard_normal((1, 3)).astype(np.float32), rng.integers(0, 9, 1)
        feeds.append((a, k))
        members.append(client.rows(r.session, slot, a, k))
    r.run(*members)
    for member, (a, k) in zip(members, feeds, strict=True):
        total, twice = client.declared(r.session, member)
        assert same(total, a + k[:, None].astype(np.float32)) and same(twice, k * 2)
    r.run(members[4])
    assert same(client.declared(r.session, members[4])[1], feeds[4][1] * 2)


def test_described_members_run_as_one_batch(rig, rng, tmp_path):
    r = rig(models.two_free_dims(tmp_path / "m.onnx"))
    client = r.client()
    xs = [rng.standard_normal((rows, 4)).astype(np.float32) for rows in (1, 2, 1)]
    members = [client.described(r.session, slot, {"x": x}) for slot, x in enumerate(xs)]
    done = r.run(*members)
    want = r.session.run({"x": np.concatenate(xs)})
    row = 0
    for i, (member, x) in enumerate(zip(members, xs, strict=True)):
        y, mean = r.outputs(client, member, done, i)
        assert same(y, want[0][row : row + len(x)]) and same(mean, want[1][row : row + len(x)])
        row += len(x)
    assert done.copies.inputs == 3 and done.copies.inputs_in_place == 0


def test_described_members_of_other_lengths_run_alone(rig, rng, tmp_path):
    r = rig(models.two_free_dims(tmp_path / "m.onnx"))
    client = r.client()
    xs = [rng.standard_normal((1, n)).astype(np.float32) for n in (4, 5)]
    members = [client.described(r.session, slot, {"x": x}) for slot, x in enumerate(xs)]
    done = r.run(*members)
    for i, x in enumerate(xs):
        assert same(r.outputs(client, members[i], done, i)[0], x + 1)


def test_zero_dimensional_and_constant_models(rig, tmp_path):
    r = rig(models.scalar(tmp_path / "s.onnx"))
    client = r.client()
    member = client.rows(r.session, 1, np.array(1.5, np.float32))
    done = r.run(member)
    y, pair = r.outputs(client, member, done)
    assert y.shape == () and y == 3.0 and pair.tolist() == [1.5]
    r = rig(models.no_input(tmp_path / "n.onnx"))
    client = r.client()
    member = client.rows(r.session, 0)
    assert r.outputs(client, member, r.run(member))[0].tolist() == [[0, 1], [2, 3]]
    assert r.outputs(client, member, r.run(member, private=True))[0].tolist() == [[0, 1], [2, 3]]


def test_optional_input_may_be_left_out_and_given(rig, rng, tmp_path):
    r = rig(models.optional_input(tmp_path / "m.onnx"))
    assert [s.optional for s in r.session.signature.inputs] == [False, True]
    client = r.client()
    x = rng.standard_normal((2, 3)).astype(np.float32)
    without = client.described(r.session, 0, {"x": x})
    given = client.described(r.session, 1, {"x": x, "factor": np.array([3], np.float32)})
    assert same(r.outputs(client, without, r.run(without))[0], x * np.float32(10))
    assert same(r.outputs(client, given, r.run(given))[0], x * np.float32(3))
    done = r.run(without, given, without)
    for i, (member, factor) in enumerate([(without, 10), (given, 3), (without, 10)]):
        assert same(r.outputs(client, member, done, i)[0], x * np.float32(factor))


def test_names_that_are_no_identifiers(rig, rng, tmp_path):
    r = rig(models.odd_names(tmp_path / "m.onnx"))
    client = r.client()
    x = rng.standard_normal((1, 2)).astype(np.float32)
    member = client.rows(r.session, 0, x)
    assert same(r.outputs(client, member, r.run(member))[0], -x)


def test_other_shape_than_declared_fails_by_name_and_touches_no_slot(rig, tmp_path):
    r = rig(models.other_shape(tmp_path / "m.onnx"))
    client = r.client()
    all_kept = np.array([[1, 2], [3, 4]], np.float32)
    one_kept = np.array([[1, 2], [-3, 4]], np.float32)
    none_kept = -all_kept
    for x in (all_kept, one_kept, none_kept, all_kept):
        member = client.rows(r.session, 0, x)
        before = bytes(client.outside)
        done = r.run(member)
        if x is all_kept:
            assert same(r.outputs(client, member, done)[0], x)
            continue
        (end,) = done.members
        kept = int((x[:, 0] > 0).sum())
        assert end.reason == Reason.MODEL_ERROR and end.outputs is None
        assert f"declares float32 [N, 2] with N = 2 and returned float32 [{kept}, 2]" in end.message
        assert bytes(client.outside) == before
    assert r.runner.facts()["outputs_bound"] is False
    assert done.members == []


def test_batch_whose_outputs_have_other_rows_is_run_one_by_one(rig, tmp_path):
    r = rig(models.other_shape(tmp_path / "m.onnx"))
    client = r.client()
    xs = [np.array([[sign, 2]], np.float32) for sign in (1, -1, 1)]
    members = [client.rows(r.session, i, x) for i, x in enumerate(xs)]
    done = r.run(*members)
    assert [end.reason for end in done.members] == [0, Reason.MODEL_ERROR, 0]
    for i in (0, 2):
        assert same(r.outputs(client, members[i], done, i)[0], xs[i])


def test_large_outputs_are_written_in_place(rig, tmp_path):
    r = rig(models.big_output(tmp_path / "m.onnx"))
    client = r.client(16, 32 * 1024)
    x = np.array([[3]], np.float32)
    member = client.rows(r.session, 2, x)
    done = r.run(member)
    assert done.members == [] and done.copies.outputs_in_place == 1 and done.copies.outputs == 0
    assert same(client.declared(r.session, member)[0], np.full((1, 4096), 3, np.float32))


def test_large_outputs_of_a_described_request_are_written_in_place(rig, rng, tmp_path):
    path = models.save(
        tmp_path / "m.onnx",
        [models.node("ReduceMean", ["x"], ["mean"], axes=[1]), models.node("Expand", ["mean", "shape"], ["y"])],
        [("x", "float32", ("N", "T"))],
        [("y", "float32", ("N", 100_000))],
        {"shape": np.array([1, 100_000], np.int64)},
    )
    r = rig(path)
    client = r.client(4, 2**20)
    member = client.described(r.session, 1, {"x": np.ones((2, 5), np.float32)})
    done = r.run(member)
    assert done.members == [] and (done.copies.outputs_in_place, done.copies.outputs) == (1, 0)
    assert same(client.declared(r.session, member)[0], np.ones((2, 100_000), np.float32))


@pytest.mark.parametrize(
    ("count", "where"), [(8, "slots"), (5_000, "inline"), (20_000, "file"), (100_000, "too large")]
)
def test_outputs_of_unknown_size_go_where_they_fit(rig, tmp_path, count, where):
    r = rig(models.grown_output(tmp_path / "m.onnx"), output_bytes_max=200_000)
    client = r.client()
    member = client.rows(r.session, 1, np.array([count]))
    done = r.run(member)
    (end,) = done.members
    if where == "too large":
        assert end.reason == 54 and "400000" in end.message and not r.fds
        return
    assert (end.inline is not None, end.overflow_bytes) == (where == "inline", count * 4 if where == "file" else 0)
    assert same(r.outputs(client, member, done)[0], np.ones(count, np.float32))


def test_a_frame_is_never_too_small_for_a_run(rig, tmp_path):
    from shm.worker import done_codec

    r = rig(models.grown_output(tmp_path / "m.onnx"))
    client = r.client(128)
    members = [client.rows(r.session, i, np.array([2_000])) for i in range(100)]
    done = r.run(*members)
    done_codec.encode_checked(done)
    assert sum(e.inline is not None for e in done.members) == 12
    assert len(r.fds) == 88
    assert same(r.outputs(client, members[99], done, 99)[0], np.ones(2_000, np.float32))


def test_one_bad_row_fails_alone(rig, tmp_path):
    r = rig(models.gather(tmp_path / "m.onnx"))
    client = r.client()
    indices = [1, 5, 99, 3, 2, 7, 8]
    members = [client.rows(r.session, i, np.array([index])) for i, index in enumerate(indices)]
    done = r.run(*members)
    for i, index in enumerate(indices):
        if index == 99:
            assert done.members[i].reason == 52 and "99" in done.members[i].message
        else:
            assert done.members[i].reason == 0
            assert client.declared(r.session, members[i])[0].tolist() == [[2 * index, 2 * index + 1]]
    alone = r.run(members[2])
    assert alone.members[0].reason == 52 and len(alone.members[0].message) <= 512
    assert r.run(members[0]).members == []


def test_strings_alone_and_together(rig, tmp_path):
    r = rig(models.strings(tmp_path / "m.onnx"))
    client = r.client()
    words = [["a", "ßé"], ["x"], []]
    members = [client.described(r.session, i, {"s": np.array(w, object)}) for i, w in enumerate(words)]
    done = r.run(*members)
    for i, word in enumerate(words):
        loud, itself = r.outputs(client, members[i], done, i)
        assert loud.tolist() == [w + "!" for w in word] and itself.tolist() == word
    done = r.run(members[0])
    assert r.outputs(client, members[0], done)[0].tolist() == ["a!", "ßé!"]
    assert done.copies.inputs == 1


def test_bad_string_fails_its_member_only(rig, tmp_path):
    r = rig(models.strings(tmp_path / "m.onnx"))
    client = r.client()
    members = [client.described(r.session, i, {"s": np.array(["abc"], object)}) for i in range(3)]
    client.inside[client.slot_bytes + 16] = 0xFF
    done = r.run(*members)
    assert [m.reason for m in done.members] == [0, 44, 0]
    assert "UTF-8" in done.members[1].message
    assert r.outputs(client, members[2], done, 2)[0].tolist() == ["abc!"]


def test_late_run_is_skipped(rig, rng, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    done = r.run(client.rows(r.session, 0, rng.standard_normal((1, 64)).astype(np.float32)), not_after_ns=1)
    assert done.status == 1 and r.runner.run_count == 0


def test_request_of_shape_touches_no_element(rig, tmp_path):
    r = rig(models.shape_only(tmp_path / "m.onnx"))
    client = r.client()
    member = client.described(r.session, 0, {"x": np.zeros((3, 7), np.float32)})
    assert r.outputs(client, member, r.run(member))[0].tolist() == [3, 7]


def test_declared_outputs_that_do_not_fit_the_slots_are_described(rig, tmp_path):
    r = rig(models.big_output(tmp_path / "m.onnx"))
    client = r.client()
    members = [client.rows(r.session, i, np.array([[i]], np.float32)) for i in range(3)]
    for some in (members[:1], members):
        done = r.run(*some)
        for i, member in enumerate(some):
            assert same(r.outputs(client, member, done, i)[0], np.full((1, 4096), i, np.float32))


def test_a_request_with_fewer_slots_writes_into_no_other(rig, tmp_path):
    r = rig(models.big_output(tmp_path / "m.onnx"))
    client = r.client(8, 8 * 1024)
    x = np.array([[3]], np.float32)
    roomy = client.rows(r.session, 2, x, slot_count=2)
    assert r.run(roomy).members == []
    assert r.run(client.rows(r.session, 3, -x, slot_count=2)).members == []
    tight = client.rows(r.session, 2, x + 1)
    done = r.run(tight)
    assert client.declared(r.session, roomy)[0][0, 2048] == -3
    assert same(r.outputs(client, tight, done)[0], np.full((1, 4096), 4, np.float32))


def test_batch_larger_than_what_buffers_keep(rig, tmp_path, monkeypatch):
    monkeypatch.setattr("workers.buffers.KEPT_BYTES_MAX", 1000)
    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    x = np.ones((1, 64), np.float32)
    members = [client.rows(r.session, i, x) for i in range(5)]
    r.run(*members)
    assert same(client.declared(r.session, members[4])[0], r.session.run({"x": np.repeat(x, 5, 0)})[0][4:])


def test_slots_outside_the_arena_are_refused(rig, tmp_path):
    from shm.errors import FrameRefused
    from shm.worker import Member

    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    good = client.rows(r.session, 0, np.ones((1, 64), np.float32))
    for members in ([Member(client.number, 64, 1, 1)], [good, Member(client.number, -1, 1, 1)], [Member(99, 0, 1, 1)]):
        with pytest.raises(FrameRefused):
            r.run(*members)
    assert r.run(good).members == []
