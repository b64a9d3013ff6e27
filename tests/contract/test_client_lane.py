"""What docs/PROTOCOL.md promises to those who write a client, asked of a real router, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import zmq

from shm import paths, seqpacket
from shm.client import (
    Attach,
    Attached,
    AttachRefused,
    Cancel,
    Hello,
    Model,
    attach_codec,
    request_codec,
    welcome_codec,
)
from shm.endings import Ending, Reason
from shm.errors import PeerGone
from shm.layout import Tensor
from shm.limits import FRAME_BYTES_MAX, PROTOCOL_VERSION
from tests.routerharness import EPOCH, LIMIT_S, FakeWorker, RawClient, RouterHarness, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterHarness]:
    harness = RouterHarness(tmp_path_factory.mktemp("r"))
    harness.worker()
    wait_for(lambda: harness.status()["models"][0]["ready_workers"])
    yield harness
    harness.close()


@pytest.fixture
def worker(router: RouterHarness) -> FakeWorker:
    return router.workers[0]


@pytest.fixture(params=["zeromq", "direct"])
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(router: RouterHarness, lane: str) -> Iterator[RawClient]:
    client = RawClient(router.runtime_dir, lane=lane)
    client.wait_ready()
    yield client
    client.close()
    wait_for(lambda: not router.status()["sessions"])
    for fds in router.workers[0].arenas.values():
        seqpacket.close_all(fds)
    router.workers[0].arenas.clear()


only = pytest.mark.parametrize
"""A mark on a test takes the place of the fixture's own lanes."""


def ask(router: RouterHarness, frame: bytes) -> object:
    """What a first frame on the attach socket gets; None for end of file without a word."""
    with seqpacket.connect(paths.attach_path(router.runtime_dir)) as sock:
        seqpacket.send(sock, frame)
        try:
            got = seqpacket.receive_within(sock, LIMIT_S, 2)
        except PeerGone:
            return None
        assert got is not None
        seqpacket.close_all(got[1])
        return welcome_codec.decode(got[0])


def answered(client: RawClient, worker: FakeWorker, number: int) -> bool:
    """Whether the session still does what it is for."""
    run = worker.receive()
    while not hasattr(run, "members"):  # the word that an earlier test's arena is closed
        run = worker.receive()
    worker.done(run)
    return client.reply(number).ending == Ending.MODEL


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"garbage", Reason.FRAME),
        (request_codec.encode(Cancel([1])), Reason.FRAME),
        (attach_codec.encode(Attach(PROTOCOL_VERSION, 4, 100, "zeromq")), Reason.FRAME),
        (attach_codec.encode(Attach(PROTOCOL_VERSION, 4, 0, "zeromq")), Reason.FRAME),
        (attach_codec.encode(Attach(PROTOCOL_VERSION + 1, 4, 4096, "zeromq")), Reason.PROTOCOL),
        (attach_codec.encode(Attach(PROTOCOL_VERSION, 4, 4096, "pigeon")), Reason.PROTOCOL),
        (attach_codec.encode(Attach(PROTOCOL_VERSION, 65_536, 2**20, "zeromq")), Reason.BUDGET),
    ],
)
def test_an_attach_that_cannot_be_granted_is_refused_by_name(
    router: RouterHarness, frame: bytes, reason: Reason
) -> None:
    refused = ask(router, frame)
    assert isinstance(refused, AttachRefused)
    assert Reason(refused.reason) is reason
    assert refused.message


def test_a_first_frame_above_the_limit_is_closed_without_a_word(router: RouterHarness) -> None:
    assert ask(router, bytes(FRAME_BYTES_MAX + 1)) is None


@pytest.mark.parametrize(("asked", "granted"), [("auto", "direct"), ("direct", "direct"), ("zeromq", "zeromq")])
def test_attach_names_its_lane_and_may_leave_its_title_out(router: RouterHarness, asked: str, granted: str) -> None:
    attached = ask(router, msgspec.msgpack.encode([1, PROTOCOL_VERSION, 4, 4096, asked]))
    assert isinstance(attached, Attached)
    assert (attached.lane, attached.epoch, attached.slot_count, attached.slot_bytes) == (granted, EPOCH, 4, 4096)
    assert attached.lane_path == (paths.lane_path(router.runtime_dir, EPOCH) if granted == "zeromq" else "")


def ended(client: RawClient) -> bool:
    """Whether the attach socket has ended, whatever came before."""
    try:
        assert client.take_welcome()
    except PeerGone:
        return True
    return False


@only("lane", ["zeromq"])
def test_a_second_frame_on_the_attach_socket_ends_a_session_of_another_lane(client: RawClient) -> None:
    seqpacket.send(client.sock, request_codec.encode(Cancel([1])))
    wait_for(lambda: ended(client))


@only("lane", ["direct"])
def test_a_second_attach_is_rejected_where_it_is_a_frame_of_the_lane(client: RawClient, worker: FakeWorker) -> None:
    client.send_frame(attach_codec.encode(Attach(PROTOCOL_VERSION, 4, 4096, "direct")))
    wait_for(lambda: client.pump(0.01) or client.rejected)
    assert client.rejected[0].reason == Reason.FRAME
    client.submit(client.request(1))
    assert answered(client, worker, 1)


@only("lane", ["direct"])
def test_a_frame_above_the_limit_ends_a_session_of_the_direct_lane(client: RawClient) -> None:
    client.send_frame(bytes(FRAME_BYTES_MAX + 1))
    wait_for(lambda: ended(client))


def test_models_come_with_attach(client: RawClient) -> None:
    model = client.models[0]
    assert isinstance(model, Model)
    assert (model.name, model.ready, model.aliases) == ("m", True, ("latest",))
    assert (model.signature is not None, model.max_rows > 1) == (True, True)


def test_a_hello_that_nobody_waits_for_is_rejected(client: RawClient) -> None:
    client.send(Hello(client.attached.token, EPOCH))
    wait_for(lambda: client.pump(0.01) or client.rejected)
    assert client.rejected[0].reason == Reason.FRAME


@only("lane", ["zeromq"])
def test_a_message_of_two_parts_is_dropped_without_an_answer(
    router: RouterHarness, client: RawClient, worker: FakeWorker
) -> None:
    before = router.counter("frames_unknown")
    assert client.dealer is not None
    client.dealer.send_multipart([b"", request_codec.encode(Cancel([1]))])
    client.submit(client.request(1))
    assert answered(client, worker, 1)
    assert (router.counter("frames_unknown") - before, client.rejected) == (1, [])


@pytest.mark.parametrize(
    ("identity", "token_known", "epoch", "tail"),
    [(b"me", True, EPOCH, b""), (b"", False, EPOCH, b""), (b"", True, EPOCH + 1, b""), (b"", True, EPOCH, b"\0")],
    ids=["own_routing_id", "unknown_token", "stale_epoch", "bad_frame"],
)
def test_a_peer_without_a_right_hello_is_dropped_without_an_answer(
    router: RouterHarness, identity: bytes, token_known: bool, epoch: int, tail: bytes
) -> None:
    before = router.counter("frames_unknown")
    with seqpacket.connect(paths.attach_path(router.runtime_dir)) as sock, zmq.Context() as context:
        seqpacket.send(sock, attach_codec.encode(Attach(PROTOCOL_VERSION, 4, 4096, "zeromq")))
        got = seqpacket.receive_within(sock, LIMIT_S, 2)
        assert got is not None
        seqpacket.close_all(got[1])
        attached = welcome_codec.decode(got[0])
        assert isinstance(attached, Attached)
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            if identity:
                dealer.setsockopt(zmq.ROUTING_ID, identity)
            dealer.connect(f"ipc://{attached.lane_path}")
            dealer.send(request_codec.encode(Hello(attached.token if token_known else bytes(16), epoch)) + tail)
            dealer.send(b"garbage")
            wait_for(lambda: router.counter("frames_unknown") == before + 2)
            assert not dealer.poll(0)
    wait_for(lambda: not router.status()["sessions"])


def test_cancel_passes_over_what_is_not_open(client: RawClient, worker: FakeWorker) -> None:
    client.send(Cancel([77, 78]))
    client.submit(client.request(1))
    assert answered(client, worker, 1)
    assert sorted(client.replies) == [1]
    assert not client.rejected


def test_one_value_out_of_range_refuses_the_whole_submit(client: RawClient) -> None:
    client.submit(client.request(1), client.request(2, slot=1, priority=8))
    wait_for(lambda: client.pump(0.01) or client.rejected)
    assert client.rejected[0].reason == Reason.FRAME
    assert not client.replies


def test_a_described_request_names_the_rows_that_it_has(client: RawClient, worker: FakeWorker) -> None:
    tensors = (Tensor(0, 1, (2, 4), 64, 32),)
    client.submit(client.request(1, rows=1, tensors=tensors), client.request(2, rows=2, slot=1, tensors=tensors))
    assert client.reply(1).reason == Reason.DIMENSION
    assert answered(client, worker, 2)


def test_an_expired_request_is_answered_and_its_slot_is_free_at_once(client: RawClient, worker: FakeWorker) -> None:
    client.submit(client.request(1, deadline_ms=-1))
    reply = client.reply(1)
    assert (reply.ending, reply.reason, reply.held) == (Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL, False)
    client.submit(client.request(2))
    assert answered(client, worker, 2)
