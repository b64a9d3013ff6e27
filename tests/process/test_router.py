"""A real router process against hand-made frames: what each message gets, what each violation gets, what death does."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.config import ModelConfig, RuleConfig, RulesConfig
from shm.client import Cancel
from shm.control import Drained, DrainStarted
from shm.endings import Ending, Reason
from shm.errors import PeerGone
from shm.layout import Tensor
from shm.segment import create_sealed
from shm.worker import ArenasClosed, Done, MemberDone
from tests.routerharness import RouterHarness, wait_for

Starter = Callable[..., RouterHarness]


@pytest.fixture(params=["zeromq", "direct"])
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    started: list[RouterHarness] = []

    def starter(*models: ModelConfig, **options: Any) -> RouterHarness:
        started.append(RouterHarness(tmp_path, *models, lane=request.param, **options))
        return started[-1]

    yield starter
    for harness in started:
        harness.close()


def test_a_request_travels_to_a_worker_and_its_reply_back(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.inputs[4096 : 4096 + 16] = struct.pack("4f", 1, 2, 3, 4)
    client.submit(client.request(11, slot=1))
    run = worker.next_run()
    assert [(m.session, m.slot, m.rows) for m in run.members] == [(client.attached.session, 1, 1)]
    in_fd, out_fd = worker.arenas[client.attached.session]
    assert struct.unpack("4f", os.pread(in_fd, 16, 4096)) == (1, 2, 3, 4)
    os.pwrite(out_fd, struct.pack("2f", 5, 6), 4096)
    worker.done(run)
    reply = client.reply(11)
    assert (reply.ending, reply.reason, reply.held, reply.rows) == (Ending.MODEL, Reason.OK, False, 1)
    assert struct.unpack("2f", client.outputs[4096 : 4096 + 8]) == (5, 6)
    assert reply.stages is not None
    assert reply.stages.to_worker_ns > 0
    assert (reply.run, reply.row, reply.run_rows) == (run.run, 0, 1)


def test_what_arrives_together_runs_together_and_comes_back_in_one_frame(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(*(client.request(n, slot=n, rows=2) for n in range(3)))
    run = worker.next_run()
    assert [m.rows for m in run.members] == [2, 2, 2]
    worker.done(run)
    client.pump(5)
    assert sorted(client.replies) == [0, 1, 2]
    assert [client.replies[n].row for n in range(3)] == [0, 2, 4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": 9}, Reason.UNKNOWN_MODEL),
        ({"slot": 7, "slot_count": 2}, Reason.SLOT_RANGE),
        ({"rows": 4096}, Reason.BYTE_LENGTH),
        ({"deadline_ms": 1e9}, Reason.DEADLINE_RANGE),
        ({"tensors": (Tensor(0, 7, (1, 4), 0, 32),)}, Reason.DTYPE),
        ({"tensors": (Tensor(0, 1, (4,), 0, 16),)}, Reason.RANK),
        ({"tensors": (Tensor(0, 1, (1, 5), 0, 20),)}, Reason.DIMENSION),
        ({"tensors": (Tensor(0, 1, (1, 4), 0, 20),)}, Reason.BYTE_LENGTH),
        ({"tensors": (Tensor(0, 1, (1, 4), 4090, 16),)}, Reason.BYTE_LENGTH),
        ({"tensors": (Tensor(0, 1, (2**39, 4), 0, 16),)}, Reason.TOO_LARGE),
        ({"tensors": ()}, Reason.MISSING_INPUT),
        ({"tensors": (Tensor(3, 1, (1, 4), 0, 16),)}, Reason.EXTRA_INPUT),
    ],
)
def test_a_wrong_request_is_invalid_by_name_and_costs_no_worker_anything(
    start: Starter, change: dict[str, Any], reason: Reason
) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(client.request(1, **change))
    reply = client.reply(1)
    assert (reply.ending, Reason(reply.reason)) == (Ending.INVALID, reason)
    assert reply.message
    client.submit(client.request(2))
    assert [m.slot for m in worker.next_run().members] == [0]


def test_slots_in_flight_and_ids_in_flight_are_refused(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(client.request(1, slot=3))
    run = worker.next_run()
    client.submit(client.request(2, slot=3))
    assert client.reply(2).reason == Reason.SLOT_BUSY
    client.submit(client.request(1, slot=4))
    wait_for(lambda: client.pump(0.01) or client.rejected)
    assert client.rejected[0].reason == Reason.DUPLICATE_ID
    worker.done(run)
    assert client.reply(1).ending == Ending.MODEL


@pytest.mark.parametrize("frame", [b"\xc1", b"garbage", b"\x93\x11\x07\xdd\xff\xff\xff\xff", bytes(131_000)])
def test_a_frame_that_is_no_message_is_rejected_and_nothing_else_notices(start: Starter, frame: bytes) -> None:
    router = start()
    worker, client, other = router.worker(), router.client(), router.client()
    client.send_frame(frame)
    wait_for(lambda: client.pump(0.01) or client.rejected)
    assert client.rejected[0].reason == Reason.FRAME
    for one in (client, other):
        one.submit(one.request(5))
        worker.done(worker.next_run())
        assert one.reply(5).ending == Ending.MODEL


def test_a_client_that_sends_too_many_bad_frames_is_cut(start: Starter) -> None:
    router = start(faults_max=3)
    client = router.client()
    for _ in range(5):
        try:
            client.send_frame(b"garbage")
        except PeerGone:
            break
    wait_for(lambda: not router.status()["sessions"])
    assert router.counter("clients_cut") == 1


def test_a_stale_epoch_is_rejected(start: Starter) -> None:
    router = start()
    router.worker()
    client = router.client()
    client.submit(client.request(1), epoch=6)
    wait_for(lambda: client.pump(0.01) or client.rejected)
    assert client.rejected[0].reason == Reason.STALE_EPOCH


def test_time_running_out_over_a_run_ends_held_and_the_release_comes_with_the_run(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(client.request(1, slot=2, deadline_ms=60))
    run = worker.next_run()
    reply = client.reply(1)
    assert (reply.ending, reply.reason, reply.held) == (Ending.EXPIRED, Reason.TIMEOUT, True)
    assert worker.terminated() == run.run
    client.submit(client.request(2, slot=2))
    assert client.reply(2).reason == Reason.SLOT_BUSY
    assert not client.released
    worker.done(run, status=2)
    wait_for(lambda: client.pump(0.01) or client.released)
    assert client.released == [1]
    client.submit(client.request(3, slot=2))
    worker.done(worker.next_run())
    assert client.reply(3).ending == Ending.MODEL


def test_a_worker_that_does_not_stop_is_killed_and_only_its_end_gives_slots_back(start: Starter) -> None:
    router = start(ModelConfig(name="m", hang_ms=50))
    worker, client = router.worker(), router.client()
    client.submit(client.request(1, deadline_ms=40))
    worker.next_run()
    assert client.reply(1).held
    worker.process.wait(10)
    wait_for(lambda: client.pump(0.01) or client.released)
    assert router.counter("workers_killed") == 1


def test_a_request_whose_worker_died_runs_once_more_alone(start: Starter) -> None:
    router = start()
    first, client = router.worker(), router.client()
    client.submit(client.request(1, slot=1), client.request(2, slot=2))
    assert len(first.next_run().members) == 2
    second = router.worker()
    first.kill()
    for _ in range(2):
        run = second.next_run()
        assert len(run.members) == 1
        second.done(run)
    assert client.reply(1).ending == client.reply(2).ending == Ending.MODEL
    assert router.counter("rerun") == 2


def test_a_request_at_two_deaths_is_poison(start: Starter) -> None:
    router = start()
    client = router.client()
    workers = [router.worker() for _ in range(2)]
    client.wait_ready()
    client.submit(client.request(1))
    first = next(w for w in workers if w.receive(0.5) is not None)
    first.kill()
    second = next(w for w in workers if w is not first)
    second.next_run()
    second.kill()
    reply = client.reply(1)
    assert (reply.ending, reply.reason, reply.held) == (Ending.FAILED, Reason.POISON, False)


def test_a_client_that_goes_takes_its_queue_along_and_its_memory_goes_when_its_run_ends(start: Starter) -> None:
    router = start(prefetch_runs=1)
    worker, client = router.worker(), router.client()
    client.submit(client.request(1))
    run = worker.next_run()
    client.submit(client.request(2, slot=1))
    wait_for(lambda: router.status()["models"][0]["queued"] == 1)
    client.sock.close()
    wait_for(lambda: not router.status()["sessions"])
    assert worker.terminated() == run.run
    status = router.status()
    assert (status["open_requests"], status["arena_mib"] > 0) == (1, True)
    worker.done(run)
    closed = worker.receive()
    assert isinstance(closed, ArenasClosed)
    assert closed.sessions == [client.attached.session]
    wait_for(lambda: not router.status()["arena_mib"])
    assert router.status()["open_requests"] == 0
    # A client that kept its descriptors keeps no memory: the files are empty.
    assert os.fstat(client.in_fd).st_blocks == 0


def test_a_cancelled_request_never_runs_and_still_ends_once(start: Starter) -> None:
    router = start(prefetch_runs=1)
    worker, client = router.worker(), router.client()
    client.submit(client.request(1))
    run = worker.next_run()
    client.submit(client.request(2, slot=1))
    client.send(Cancel([1, 2]))
    assert client.reply(2).ending == Ending.CANCELLED
    assert worker.terminated() == run.run
    worker.done(run)
    assert client.reply(1).ending == Ending.CANCELLED
    assert router.status()["open_requests"] == 0


def test_outputs_that_do_not_fit_travel_as_a_memory_file(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(client.request(1))
    run = worker.next_run()
    payload = os.urandom(100_000)
    fd = create_sealed("out", len(payload))
    os.pwrite(fd, payload, 0)
    outputs = (Tensor(0, 1, (1, 25_000), 0, 100_000),)
    member = MemberDone(outputs=outputs, overflow_bytes=len(payload))
    now = time.monotonic_ns()
    worker.send(Done(run.run, 0, now, now, [member]), (fd,))
    os.close(fd)
    reply = client.reply(1)
    assert reply.overflow
    assert reply.outputs == outputs
    while 1 not in client.overflows:
        assert client.take_welcome()
    overflow, received = client.overflows[1]
    assert overflow.payload_bytes == len(payload)
    assert os.pread(received, len(payload), 0) == payload


def test_the_rule_answers_while_the_run_still_goes(start: Starter) -> None:
    rules = RulesConfig(
        features={"x": ["a", "b", "c", "d"]},
        rules=[
            RuleConfig(name="big", when="b > 10.0", answer={"y": [1.0, 2.0]}, decision="stop"),
            RuleConfig(name="else", answer={"y": 0.5}),
        ],
    )
    router = start(ModelConfig(name="m", rules=rules))
    worker, client = router.worker(), router.client()
    client.inputs[:32] = struct.pack("8f", 0, 11, 0, 0, 0, 1, 0, 0)
    client.submit(client.request(1, rows=2, deadline_ms=50))
    run = worker.next_run()
    reply = client.reply(1)
    assert (reply.ending, reply.reason, reply.held) == (Ending.RULES, Reason.TIMEOUT, True)
    assert (reply.rule, reply.decision) == ("big+else", "stop")
    assert reply.inline is not None
    assert struct.unpack("4f", reply.inline) == (1, 2, 0.5, 0.5)
    worker.done(run)


def test_a_full_queue_sheds_and_says_when_to_come_back(start: Starter) -> None:
    router = start(ModelConfig(name="m", queue_requests=2, max_batch=1), prefetch_runs=1)
    worker, client = router.worker(), router.client()
    client.submit(client.request(1))
    worker.next_run()
    client.submit(*(client.request(n, slot=n) for n in (2, 3, 4)))
    reply = client.reply(4)
    assert (reply.ending, reply.reason) == (Ending.SHED, Reason.QUEUE_FULL)
    assert reply.retry_after_ms >= 1


def test_arenas_are_refused_over_the_budget_with_figures(start: Starter) -> None:
    router = start(arena_budget_mib=2)
    router.client(slot_count=128, slot_bytes=4096)
    router.client(slot_count=128, slot_bytes=4096)
    refused = router.client(slot_count=128, slot_bytes=4096).refused
    assert refused is not None
    assert refused.reason == Reason.BUDGET
    assert "2.0 of 2 MiB" in refused.message


def test_another_protocol_version_is_refused_by_name(start: Starter) -> None:
    refused = start().client(protocol=99).refused
    assert refused is not None
    assert refused.reason == Reason.PROTOCOL
    assert "99" in refused.message


def test_a_drain_refuses_what_is_new_and_ends_when_what_was_open_has_ended(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(client.request(1))
    run = worker.next_run()
    router.tell(DrainStarted(5000))
    wait_for(lambda: router.status())
    client.submit(client.request(2, slot=1))
    reply = client.reply(2)
    assert (reply.ending, reply.reason) == (Ending.SHED, Reason.DRAINING)
    worker.done(run)
    assert client.reply(1).ending == Ending.MODEL
    drained = next((m for m in router.told if isinstance(m, Drained)), None) or router.wait_told(Drained)
    assert drained.refused == 0
