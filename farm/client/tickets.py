"""What a caller waits for: a request in flight, or a condition. No waiting here; the clients do that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farm.client.options import DEFAULTS, Options
from farm.client.reply import Reply
from farm.errors import FarmError, InvalidRequest
from shm.layout import Tensor

if TYPE_CHECKING:
    from farm.client.catalog import Served, Version
    from farm.client.runs import LeasedRun
    from farm.client.session import Session

FOREVER_NS = 2**63 - 1


class Pending:
    """Something that gets done once, by its deadline at the latest. Defaults stand in the class: attributes that
    most requests never set cost nothing."""

    done: bool = False
    """Set last, after everything that a caller reads then."""
    deadline_ns: int = FOREVER_NS
    future: asyncio.Future[None] | None = None


class Ticket(Pending):
    """One request, from the call to its end.

    Attributes:
        request_id, key, model: which request, for the caller to tell them apart.
        done: whether it has ended; `result()` then tells how.
    """

    explicit_deadline: bool = False
    submitted: bool = False
    inputs: object = None
    served: Served | None = None
    session: Session | None = None
    """Whose slots it has: None before it has some and after they were given back."""
    slot: int = -1
    slot_count: int = 0
    rows: int = 0
    described: tuple[Tensor, ...] | None = None
    payload_bytes: int = 0
    run: LeasedRun | None = None
    resent: bool = False
    """It outlived a session: its inputs are in that one's arena, if anywhere."""
    leased: bool = False
    """Outputs are wanted as views."""
    sent_ns: int = 0
    _reply: Reply | None = None
    _error: FarmError | None = None

    def __init__(
        self, request_id: int, model: str, version: Version, entered_ns: int, options: Options = DEFAULTS
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.version = version
        self.entered_ns = entered_ns
        self.options = options

    @property
    def key(self) -> str | None:
        return self.options.key

    def result(self) -> Reply:
        """The answer.

        Raises:
            InvalidRequest: it has not ended yet.
            FarmError: how it ended, when not with an answer.
        """
        if self._reply is not None:
            return self._reply
        if self._error is not None:
            raise self._error
        raise InvalidRequest(
            f"request {self.request_id} has not ended yet: take it from completions()",
            reason="usage",
            request_id=self.request_id,
            model=self.model,
        )

    def outcome(self) -> Reply | FarmError:
        """The answer or the error, as a value."""
        ended = self._reply if self._reply is not None else self._error
        assert ended is not None
        return ended

    def part(self) -> None:
        """From a session that has ended, whose memory it would keep: its error's traceback may keep it for long."""
        self.session = self.run = None

    def answer(self, reply: Reply) -> None:
        self._reply = reply
        self.done = True

    def fail(self, error: FarmError) -> None:
        self._error = error
        self.done = True

    def __repr__(self) -> str:
        state = "open" if not self.done else "answered" if self._reply is not None else "ended"
        return f"Ticket(#{self.request_id} {self.model}, {state})"


class Grant(Ticket):
    """Slots for a lease, and nothing to send yet. `shapes`: input name to (shape, dtype)."""

    def __init__(
        self, request_id: int, model: str, version: Version, entered_ns: int, shapes: dict[str, tuple[Any, Any]]
    ) -> None:
        super().__init__(request_id, model, version, entered_ns)
        self.shapes = shapes
        self.offsets: tuple[int, ...] = ()
        self.indexes: list[int] = []

    def granted(self) -> None:
        self.done = True


class Watch(Pending):
    """A condition on the session, such as all models being ready."""

    heard: bool = False

    def __init__(self, holds: Callable[[Session], bool], deadline_ns: int, lacking: Callable[[Session], str]) -> None:
        self.holds = holds
        self.deadline_ns = deadline_ns
        self.lacking = lacking
        self.error: FarmError | None = None


class Reap(Pending):
    """Somebody wants tickets that were submitted, as soon as one has ended. Its deadline is no error."""

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
