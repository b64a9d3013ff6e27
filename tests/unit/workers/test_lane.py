"""The flat path answers what is usual as the runner would, and passes everything else on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shm import seqpacket
from shm.errors import FrameRefused, PeerGone
from shm.worker import RAN, SKIPPED, TERMINATED, Done, Inspect, Member, Run, done_codec, run_codec
from tests import models
from workers.lane import Lane
from workers.session import Session

FAR_NS = 2**62


class Post:
    """A rig behind a lane: the router's end is `router`."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.router, self.worker = seqpacket.pair()
        self.lane = Lane(self.worker, rig.session, rig.arenas, rig.runner)

    def tell(self, *messages: Any, fds: tuple[int, ...] = ()) -> None:
        for message in messages:
            assert seqpacket.send(self.router, run_codec.encode(message), fds)

    def dones(self) -> list[Done]:
        heard = []
        while (got := seqpacket.receive(self.router)) is not None:
            heard.append(done_codec.decode(got[0]))
        return heard

    def close(self) -> None:
        self.router.close()
        self.worker.close()


@pytest.fixture
def post(rig, tmp_path) -> Iterator[Post]:
    made = Post(rig(models.mlp(tmp_path / "m.onnx")))
    yield made
    made.close()


def test_prepared_run_is_answered_as_the_runner_answers_it(post, rng):
    r = post.rig
    client = r.client()
    x = rng.standard_normal((2, 64)).astype(np.float32)
    member = client.rows(r.session, 3, x)
    first = r.run(member)
    want = client.declared(r.session, member)[0]
    y = rng.standard_normal((2, 64)).astype(np.float32)
    client.rows(r.session, 3, y)
    post.tell(Run(50, FAR_NS, [member]), Run(51, FAR_NS, [member]), Inspect(1))
    assert post.lane.next() == (Inspect(1), [], False)
    dones = post.dones()
    assert [(d.run, d.status, d.members, d.copies) for d in dones] == [(n, RAN, [], first.copies) for n in (50, 51)]
    assert all(0 < d.started_ns <= d.finished_ns for d in dones)
    have = client.declared(r.session, member)[0]
    assert have.tobytes() == r.session.run({"x": y})[0].tobytes() != want.tobytes()
    facts = r.runner.facts()
    base = r.arenas.facts()[0]["in_address"]
    assert facts["run_count"] == 3 and facts["last_run"]["run"] == 51
    assert facts["last_run"]["input_addresses"] == [base + 3 * client.slot_bytes]
    assert r.current.run is None


def test_what_is_not_usual_is_passed_on(post):
    r = post.rig
    client = r.client()
    x = np.ones((5, 64), np.float32)
    member = client.rows(r.session, 0, x, slot_count=2)
    other = client.rows(r.session, 4, x, slot_count=2)
    assert r.run(member).members == []
    for run in (
        Run(60, FAR_NS, [other]),
        Run(60, FAR_NS, [member, other]),
        Run(60, FAR_NS, []),
        Run(60, FAR_NS, [member], [], True),
        Run(60, FAR_NS, [member], [client.opened]),
        Run(60, 1, [member]),
        Run(60, FAR_NS, [Member(member.session, 0, 1, 5)]),
        Run(60, FAR_NS, [Member(99, 0, 2, 5)]),
        Run(60, FAR_NS, [client.described(r.session, 0, {"x": x}, slot_count=2)]),
    ):
        post.tell(run)
        assert post.lane.next() == (run, [], False)
    assert post.dones() == [] and r.runner.run_count == 1


def test_terminated_run_does_not_start_in_the_flat_path(post):
    r = post.rig
    member = r.client().rows(r.session, 0, np.ones((1, 64), np.float32))
    r.run(member)
    r.current.terminate(70)
    post.tell(Run(70, FAR_NS, [member]), Run(71, FAR_NS, [member]), Inspect(1))
    run, _, was_bound = post.lane.next()
    assert r.runner.run(run, was_bound=was_bound)[0].status == TERMINATED
    assert post.lane.next()[0] == Inspect(1)
    assert [d.run for d in post.dones()] == [71] and r.runner.run_count == 2


def test_failed_run_is_passed_on_and_a_terminate_with_it(post, monkeypatch):
    r = post.rig
    member = r.client().rows(r.session, 0, np.ones((1, 64), np.float32))
    r.run(member)

    def fails(binding: Any, options: Any) -> None:
        if r.current.run == 81:
            r.current.terminate(81)
        raise RuntimeError("no")

    monkeypatch.setattr(r.session, "run_binding", fails)
    post.tell(*(Run(number, FAR_NS, [member]) for number in (80, 81)))
    for status in (RAN, TERMINATED):
        run, _, was_bound = post.lane.next()
        assert was_bound
        assert r.runner.run(run, was_bound=True)[0].status == status
        assert r.current.run is None and not r.session.options.terminate


def test_late_run_leaves_nothing_going_on(post):
    r = post.rig
    member = r.client().rows(r.session, 0, np.ones((1, 64), np.float32))
    assert r.run(member, not_after_ns=1).status == SKIPPED
    assert r.current.run is None and r.runner.run_count == 0


def test_nothing_is_kept_from_an_arena_that_outputs_may_no_longer_be_bound_to(post):
    r = post.rig
    member = r.client().rows(r.session, 0, np.ones((1, 64), np.float32))
    r.run(member)
    r.session.unbind_outputs()
    post.tell(Run(90, FAR_NS, [member]))
    assert type(post.lane.next()[0]) is Run


def test_descriptors_come_with_their_frame_and_go_when_it_is_refused(post):
    post.tell(Inspect(1), fds=(post.router.fileno(), post.router.fileno()))
    _, fds, _ = post.lane.next()
    assert len(fds) == 2
    seqpacket.close_all(fds)
    assert seqpacket.send(post.router, b"\xc1", ())
    with pytest.raises(FrameRefused):
        post.lane.next()
    post.router.close()
    with pytest.raises(PeerGone):
        post.lane.next()


def test_session_without_the_inner_names_is_run_the_public_way(rig, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    known = r.session._inference

    class Public:
        io_binding = staticmethod(known.io_binding)
        run_with_iobinding = staticmethod(known.run_with_iobinding)

    x, y = np.ones((1, 64), np.float32), np.zeros((1, 1), np.float32)
    session = Session(Public(), r.session.signature)
    assert session.run_binding == known.run_with_iobinding
    session.run_bound(session.bind([x], [y]))
    assert y.tobytes() == r.session.run({"x": x})[0].tobytes()
