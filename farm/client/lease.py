"""Inputs written where the model reads them, outputs read where the model wrote them: no copy on this side.

    with client.lease("frames", {"image": ((1, 3, 224, 224), "float32")}) as l:
        camera.read_into(l.inputs["image"])
        reply = l.infer(deadline_ms=20)
        reply.outputs["boxes"]            # a read-only view; stays good for as long as it is kept

The slots are free again when the block has ended, the last view is gone, and the farm has replied.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from farm.client.base import BaseClient
from farm.client.catalog import Version
from farm.client.options import DEFAULTS, check_options, deadline_ns_of, refused
from farm.client.refusals import closed_error
from farm.client.reply import Reply
from farm.client.tickets import Grant, Ticket
from shm import tensors
from shm.tensors import NUMPY, Array

if TYPE_CHECKING:
    from farm.client.aio import AsyncClient
    from farm.client.sync import Client

Shapes = dict[str, tuple[Any, Any]]


def check_shapes(shapes: Mapping[str, tuple[Any, Any]]) -> Shapes:
    """Raises:
    InvalidRequest: not a dict of input name to (shape, dtype).
    """
    checked: Shapes = {}
    if not isinstance(shapes, Mapping):
        raise refused(f"lease takes a dict of input name to (shape, dtype), got {type(shapes).__name__}")
    for name, asked in shapes.items():
        try:
            shape, dtype = asked
            dims = tuple(int(d) for d in (shape if isinstance(shape, tuple | list) else (shape,)))
            if min(dims, default=0) < 0:
                raise ValueError(f"negative dimension in {dims}")
            checked[name] = dims, np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise refused(f"lease of input {name!r}: expected (shape, dtype), got {asked!r} ({error})") from error
    return checked


class BaseLease:
    """A leased run of slots, from the beginning of the block.

    `inputs`: input name to array, writable until `infer`. Their bytes are what an earlier request left there.
    """

    def __init__(self, client: BaseClient, model: str, shapes: Shapes, version: Version) -> None:
        self._client_engine = client._engine
        self._base = client
        self._model = model
        self._shapes = shapes
        self._version = version
        self._grant: Grant | None = None
        self._holder: Array | None = None
        self._used = False
        self.inputs: dict[str, Array] = {}

    def _ask(self) -> Grant:
        if self._grant is not None:
            raise refused(f"a lease of {self._model} is entered once; ask for another")
        self._client_engine = self._base._engine
        engine = self._client_engine
        self._grant = Grant(engine.next_id(), self._model, self._version, monotonic_ns(), self._shapes)
        engine.open(self._grant)
        return self._grant

    def _open(self) -> None:
        """The run is there: lay the arrays into it.

        Raises:
            FarmError: it is not: no farm, no free slots, or shapes that the model does not take.
        """
        grant = self._grant
        assert grant is not None
        if grant.run is None:
            grant.result()
        assert grant.run is not None and grant.served is not None and grant.served.inputs is not None
        holder = grant.run.inputs()
        specs = grant.served.inputs.specs
        for index, offset in zip(grant.indexes, grant.offsets, strict=True):
            spec = specs[index]
            dims = self._shapes[spec.name][0]
            size = NUMPY[spec.dtype].itemsize * int(np.prod(dims, dtype=np.int64))
            self.inputs[spec.name] = (
                holder[offset : offset + size].view(NUMPY[spec.dtype]).reshape(dims)
                if size
                else tensors.view(b"", 0, spec.dtype, dims, writable=True)
            )
        self._holder = holder

    def _ticket(
        self,
        deadline_ms: float | None,
        priority: int,
        key: str | None,
        trace: str | None,
        fallback: Mapping[str, Any] | None,
    ) -> Ticket:
        """The one request of this lease, sealed: its inputs can be written no more.

        Raises:
            InvalidRequest: the lease is not open, was used, or belongs to the parent of this process.
        """
        grant = self._grant
        if self._client_engine is not self._base._engine:
            raise refused(
                f"this lease of {self._model} was opened before a fork and belongs to the parent process: "
                "open another in this one"
            )
        if grant is None or self._holder is None or grant.run is None or grant.served is None:
            raise refused(f"this lease of {self._model} is not open: infer belongs inside its `with` block")
        if self._used:
            raise refused(f"this lease of {self._model} was used: one infer per lease; open another")
        if self._client_engine.closed:
            raise closed_error()
        entered_ns = monotonic_ns()
        options = DEFAULTS
        if priority != 0 or key is not None or trace is not None or fallback is not None:
            options = check_options(priority, key, trace, fallback)
        duration_ns = grant.served.deadline_ns if deadline_ms is None else deadline_ns_of(deadline_ms)
        ticket = Ticket(self._client_engine.next_id(), self._model, self._version, entered_ns, options)
        ticket.deadline_ns = entered_ns + duration_ns
        ticket.explicit_deadline = True
        ticket.served, ticket.session, ticket.run = grant.served, grant.session, grant.run
        ticket.slot, ticket.slot_count = grant.slot, grant.slot_count
        ticket.rows, ticket.described, ticket.payload_bytes = grant.rows, grant.described, grant.payload_bytes
        ticket.leased = True
        self._used = True
        self._holder.flags.writeable = False
        for array in self.inputs.values():
            array.flags.writeable = False
        grant.run.hold()  # the farm's share, which the reply or the Release ends
        self._client_engine.resume(ticket)
        return ticket

    def _close(self) -> None:
        """The block has ended: its share of the slots is let go, what the caller still holds is not."""
        grant, self._holder = self._grant, None
        self.inputs = {}
        if grant is not None and grant.run is not None:
            run, grant.run = grant.run, None
            grant.session = None
            run.let_go()


class Lease(BaseLease):
    """Of a `Client`."""

    def __init__(self, client: Client, model: str, shapes: Shapes, version: Version) -> None:
        super().__init__(client, model, shapes, version)
        self._client = client

    def __enter__(self) -> Self:
        try:
            self._client._turns.wait(self._ask())
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def infer(
        self,
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        key: str | None = None,
        trace: str | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> Reply:
        """As `Client.infer`, on what `inputs` hold now; the reply's arrays are read-only views. Once per lease."""
        ticket = self._ticket(deadline_ms, priority, key, trace, fallback)
        self._client._turns.wait(ticket)
        return ticket.result()


class AsyncLease(BaseLease):
    """Of an `AsyncClient`."""

    def __init__(self, client: AsyncClient, model: str, shapes: Shapes, version: Version) -> None:
        super().__init__(client, model, shapes, version)
        self._client = client

    async def __aenter__(self) -> Self:
        self._client._bind()
        try:
            await self._client._wait(self._ask())
            self._open()
        except BaseException:
            # A cancellation may come when the slots were granted already.
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    async def infer(
        self,
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        key: str | None = None,
        trace: str | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> Reply:
        """As `AsyncClient.infer`, on what `inputs` hold now; the reply's arrays are read-only views. Once per lease."""
        ticket = self._ticket(deadline_ms, priority, key, trace, fallback)
        await self._client._wait(ticket)
        return ticket.result()
