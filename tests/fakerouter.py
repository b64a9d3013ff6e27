"""A router in a thread, for the client's tests: attach and both lanes for real, and it does what it is told.

It answers from numpy functions, at once or when the test says so, and can be silent, refuse, die and come again with
the next epoch. Every frame that a client sent is kept in `frames`, every request in `requests`.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from shm import client as wire
from shm import paths, segment, seqpacket, tensors
from shm.endings import Ending, Reason
from shm.errors import PeerGone
from shm.layout import CODES, STRING, RowPlan, Signature, Tensor, place
from shm.limits import INLINE_BYTES_MAX, PROTOCOL_VERSION
from tests.fakemodels import FUNCTIONS, MODELS, Arrays

LIMIT_S = 10.0


class Attached:
    """A client as the fake router sees it."""

    def __init__(self, number: int, sock: socket.socket, asked: wire.Attach) -> None:
        self.number = number
        self.socket = sock
        self.slot_count = asked.slot_count
        self.slot_bytes = asked.slot_bytes
        self.token = os.urandom(16)
        size = asked.slot_count * asked.slot_bytes
        self.fds = [segment.create_sealed("fake-in", size), segment.create_sealed("fake-out", size)]
        self.inbound = segment.map_memory(self.fds[0], size, writable=False)
        self.out = segment.map_memory(self.fds[1], size, writable=True)
        self.direct = asked.lane != "zeromq"
        self.routing: bytes | None = None

    def close(self) -> None:
        self.socket.close()
        seqpacket.close_all(self.fds)
        self.fds = []
        self.inbound.close()
        self.out.close()


class FakeRouter:
    """Up when the constructor returns. `close` is its sudden death: sockets close, nothing is said.

    mode: `answer` (at once), `hold` (keep requests until `answer_kept`), `silent` (never answer, cancels either).
    """

    def __init__(
        self,
        runtime_dir: str,
        *,
        epoch: int = 1,
        models: Sequence[wire.Model] = MODELS,
        refuse: wire.AttachRefused | None = None,
        protocol: int = PROTOCOL_VERSION,
        mute: bool = False,
        mode: str = "answer",
    ) -> None:
        self.epoch = epoch
        self.models = {m.index: m for m in models}
        self.mode = mode
        self.frames: list[Any] = []
        self.requests: list[wire.Request] = []
        self.asked: list[wire.Attach] = []
        self.kept: list[tuple[Attached, wire.Request]] = []
        self.clients: list[Attached] = []
        self._refuse, self._protocol, self._mute = refuse, protocol, mute
        self._runtime_dir = runtime_dir
        os.makedirs(os.path.join(runtime_dir, paths.SERVICE_DIR), exist_ok=True)
        self._listener = seqpacket.listen(paths.attach_path(runtime_dir), 0o600)
        self._context = zmq.Context()
        self._lane = self._context.socket(zmq.ROUTER)
        self._lane.setsockopt(zmq.LINGER, 0)
        self._lane.bind(f"ipc://{paths.lane_path(runtime_dir, epoch)}")
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._orders: list[tuple[Callable[[], Any], threading.Event, list[Any]]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"fake router {epoch}")
        self._thread.start()

    # what a test says

    def do(self, order: Callable[[], Any]) -> Any:
        """Run it in the router's thread; its result."""
        done, result = threading.Event(), []
        self._orders.append((order, done, result))
        os.eventfd_write(self._bell, 1)
        assert done.wait(LIMIT_S)
        return result[0]

    def close(self) -> None:
        if self._stop:
            return
        self._stop = True
        os.eventfd_write(self._bell, 1)
        self._thread.join(LIMIT_S)
        os.close(self._bell)

    def __enter__(self) -> FakeRouter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def until(self, holds: Callable[[], Any]) -> Any:
        """Wait for a condition, with a limit."""
        end = time.monotonic() + LIMIT_S
        while not (found := holds()):
            assert time.monotonic() < end, "the condition did not come to hold"
            time.sleep(0.001)
        return found

    def answer_kept(self, **changes: Any) -> None:
        """Answer what was kept; `changes`: fields of the replies."""

        def order() -> None:
            kept, self.kept = self.kept, []
            for client in {id(c): c for c, _ in kept}.values():
                replies = [self._reply(c, r, **changes) for c, r in kept if c is client]
                self._to(client, wire.Replies(replies))

        self.do(order)

    def reply(self, request_id: int, **fields: Any) -> None:
        """One reply, as it is given, to the client that sent this request."""
        client = next(c for c, r in self.kept if r.id == request_id)
        self.do(lambda: self._to(client, wire.Replies([wire.Reply(id=request_id, **fields)])))

    def release(self, *ids: int) -> None:
        self.do(lambda: [self._to(client, wire.Release(list(ids))) for client in self.clients])

    def send(self, message: Any) -> None:
        """Any message, on the lane to every client."""
        self.do(lambda: [self._to(client, message) for client in self.clients])

    def tell(self, changed: wire.Model) -> None:
        """A Model frame on every attach socket."""

        def order() -> None:
            self.models[changed.index] = changed
            for client in self.clients:
                seqpacket.send(client.socket, wire.welcome_codec.encode(changed))

        self.do(order)

    def end_sessions(self) -> None:
        """Close every attach socket, and go on."""

        def order() -> None:
            for client in self.clients:
                client.close()
            self.clients = []

        self.do(order)

    @property
    def cancelled(self) -> list[int]:
        return [i for frame in self.frames if isinstance(frame, wire.Cancel) for i in frame.ids]

    @property
    def submits(self) -> list[wire.Submit]:
        return [frame for frame in self.frames if isinstance(frame, wire.Submit)]

    # its life

    def _run(self) -> None:
        try:
            while not self._stop:
                poller = select.poll()
                for fd in (self._bell, self._listener.fileno(), self._lane.getsockopt(zmq.FD)):
                    poller.register(fd, select.POLLIN)
                for client in self.clients:
                    poller.register(client.socket, select.POLLIN)
                poller.poll(1000)
                self._turn()
        finally:
            self._listener.close()
            self.kept = []
            for client in self.clients:
                client.close()
            self._lane.close(0)
            self._context.term()
            for path in (paths.attach_path(self._runtime_dir), paths.lane_path(self._runtime_dir, self.epoch)):
                if os.path.exists(path):
                    os.unlink(path)

    def _turn(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass
        while self._orders:
            order, done, result = self._orders.pop(0)
            result.append(order())
            done.set()
            self._drain()
        while not self._stop:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                break
            self._attach(sock)
        self._drain()

    def _attach(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            got = seqpacket.receive_within(sock, LIMIT_S)
        except PeerGone:
            sock.close()
            return
        assert got is not None
        asked = wire.attach_codec.decode(got[0])
        self.asked.append(asked)
        if self._refuse is not None:
            seqpacket.send(sock, wire.welcome_codec.encode(self._refuse))
            sock.close()
            return
        client = Attached(len(self.asked), sock, asked)
        self.clients.append(client)
        if self._mute:
            return
        try:
            self._welcome(client)
        except PeerGone:
            client.close()
            self.clients.remove(client)

    def _welcome(self, client: Attached) -> None:
        told = wire.Attached(
            self._protocol,
            client.number,
            self.epoch,
            client.token,
            client.slot_count,
            client.slot_bytes,
            "direct" if client.direct else "zeromq",
            paths.lane_path(self._runtime_dir, self.epoch),
            len(self.models),
        )
        out = segment.reopen_read_only(client.fds[1])
        try:
            seqpacket.send(client.socket, wire.welcome_codec.encode(told), [client.fds[0], out])
        finally:
            os.close(out)
        for each in self.models.values():
            seqpacket.send(client.socket, wire.welcome_codec.encode(each))

    def _drain(self) -> None:
        while True:
            try:
                routing, frame = self._lane.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = wire.request_codec.decode(frame)
            if isinstance(message, wire.Hello):
                self.frames.append(message)
                for client in self.clients:
                    if client.token == message.token:
                        client.routing = routing
                continue
            self._take(next((c for c in self.clients if c.routing == routing), None), message)
        for client in list(self.clients):
            try:
                while (got := seqpacket.receive(client.socket)) is not None:
                    self._take(client, wire.request_codec.decode(got[0]))
            except PeerGone:
                client.close()
                self.clients.remove(client)

    def _take(self, client: Attached | None, message: Any) -> None:
        self.frames.append(message)
        if client is None or self.mode == "silent":
            return
        if isinstance(message, wire.Cancel):
            gone = [(c, r) for c, r in self.kept if c is client and r.id in message.ids]
            self.kept = [kept for kept in self.kept if kept not in gone]
            if gone:
                ended = [wire.Reply(r.id, Ending.CANCELLED, Reason.CANCELLED) for _, r in gone]
                self._to(client, wire.Replies(ended))
            return
        self.requests += message.requests
        if self.mode == "hold":
            self.kept += [(client, request) for request in message.requests]
        else:
            self._to(client, wire.Replies([self._reply(client, r) for r in message.requests]))

    def _to(self, client: Attached, message: Any) -> None:
        frame = wire.reply_codec.encode(message)
        if client.direct:
            assert seqpacket.send(client.socket, frame), "the client does not read"
            return
        assert client.routing is not None
        self._lane.send_multipart([client.routing, frame])

    # what it answers

    def inputs_of(self, client: Attached, request: wire.Request) -> Arrays:
        """The request's inputs, read from the slots as a worker would."""
        signature = self.models[request.model].signature
        assert signature is not None
        base = request.slot * client.slot_bytes
        if request.tensors is None:
            plan = RowPlan(signature.inputs)
            assert plan.fits
            return {
                s.name: tensors.view(client.inbound, base + offset, s.dtype, plan.dims(index, request.rows)).copy()
                for index, (s, offset) in enumerate(zip(signature.inputs, plan.offsets(request.rows), strict=True))
            }
        return {signature.inputs[t.index].name: _read(client.inbound, base, t) for t in request.tensors}

    def _reply(self, client: Attached, request: wire.Request, **changes: Any) -> wire.Reply:
        served = self.models[request.model]
        signature = served.signature
        assert signature is not None
        now_ns = time.monotonic_ns()
        fields: dict[str, Any] = {
            "ending": Ending.MODEL,
            "rows": request.rows,
            "stages": wire.Stages(now_ns, 0, 1000, 2000, 3000),
            "run": len(self.requests),
            "run_rows": max(1, request.rows),
        }
        if changes.get("ending", 0) < Ending.SHED:
            results = FUNCTIONS[served.name](self.inputs_of(client, request))
            fields |= self._lay_out(client, request, signature, results, changes.pop("inline", False))
        return wire.Reply(id=request.id, **(fields | changes))

    def _lay_out(
        self, client: Attached, request: wire.Request, signature: Signature, results: list[np.ndarray], inline: bool
    ) -> dict[str, Any]:
        plan = RowPlan(signature.outputs)
        room = request.slot_count * client.slot_bytes
        base = request.slot * client.slot_bytes
        declared = plan.fits and all(np.shape(r) == plan.dims(i, request.rows) for i, r in enumerate(results))
        if declared and not inline and plan.payload_bytes(request.rows) <= room:
            for offset, result in zip(plan.offsets(request.rows), results, strict=True):
                tensors.write(client.out, base + offset, np.asarray(result), CODES[result.dtype.name])
            return {}
        encoded = [
            tensors.encode_strings(s.name, r) if s.dtype == STRING else None
            for s, r in zip(signature.outputs, results, strict=True)
        ]
        sizes = [
            tensors.payload_bytes(r, s.dtype, e) for s, r, e in zip(signature.outputs, results, encoded, strict=True)
        ]
        offsets, total = place(sizes)
        described = tuple(
            Tensor(index, s.dtype, r.shape, offset, size)
            for index, (s, r, offset, size) in enumerate(zip(signature.outputs, results, offsets, sizes, strict=True))
        )
        raw: Any = bytearray(total)
        for s, r, e, offset in zip(signature.outputs, results, encoded, offsets, strict=True):
            tensors.write(raw, offset, r, s.dtype, e)
        if total <= INLINE_BYTES_MAX:
            return {"outputs": described, "inline": bytes(raw)}
        fd = segment.create_sealed("fake-overflow", total)
        with segment.map_memory(fd, total, writable=True) as mapping:
            mapping[:total] = bytes(raw)
        overflow = wire.Overflow(request.id, total)
        seqpacket.send(client.socket, wire.welcome_codec.encode(overflow), [fd])
        os.close(fd)
        return {"outputs": described, "overflow": True}


def _read(buffer: mmap.mmap, base: int, tensor: Tensor) -> np.ndarray:
    if tensor.dtype == STRING:
        return tensors.read_strings("input", buffer, base + tensor.offset, tensor.payload_bytes, tensor.dims)
    return tensors.view(buffer, base + tensor.offset, tensor.dtype, tensor.dims).copy()
