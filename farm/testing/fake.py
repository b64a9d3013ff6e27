"""The fake farm: models that are functions or signatures, endings as a test scripts them, and a record of the calls.

    fake = FakeFarm({"fraud": {"inputs": {"x": ("float32", ["N", 64])}, "outputs": {"score": ("float32", ["N", 1])}}})
    fake.script("fraud", fake.shed(retry_after_ms=5), fake.rules({"score": 0.5}, rule="big", decision="refer"))
    service = Service(client=fake.client())

No process, no socket, no ONNX Runtime, and by default no waiting (`farm.testing.clock`).
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from msgspec.structs import replace

from farm.client.catalog import Served, Version
from farm.client.endpoint import Endpoint
from farm.client.options import NS_PER_MS, Outputs
from farm.client.spin import SPIN_US
from farm.client.tickets import Ticket
from farm.errors import FarmError
from farm.testing import signatures
from farm.testing.clients import FakeAsyncClient, FakeClient
from farm.testing.clock import Clock, StillClock
from farm.testing.endings import Answered, Raised, Scripted
from farm.testing.memory import FakeCatalog
from farm.testing.misuse import FakeMisused
from farm.testing.script import Endings
from farm.testing.signatures import Declared, Function, Inputs
from shm.client import Model
from shm.layout import Signature

if TYPE_CHECKING:
    from farm.client.engine import Engine

ROWS_MAX = 32
"""`Model.max_rows` of fake models; nothing depends on it here."""

Answers = Function | Declared | tuple[Function, Declared]


class Call(NamedTuple):
    """One request that passed the client's checks.

    inputs: read-only copies, in C order and native bytes. deadline_ms: None when the caller named none; of a lease what
    held. The others are as the caller gave them; `fallback` is a copy.
    """

    model: str
    inputs: Inputs
    deadline_ms: float | None
    priority: int
    version: Version
    key: str | None
    trace: str | None
    fallback: Outputs | None


class FakeFarm(Endings):
    """Models for the tests of a service; safe for threads.

    models: name to one of
        a function from a dict of input arrays (read-only) to a dict of output arrays, or to one array where the
            signature has one output. Without a signature any inputs are taken as they come;
        a signature, for zeros of the right shape: `farm.client`'s own (`Model.signature`), or a dict as in this
            module's head; see `farm.testing.signatures.parse`;
        a function and its signature. A function may also carry it in its annotations.
    clock: whose time deadlines run by; `WallClock()` for real waiting.

    A function's FarmError is the request's ending; any other exception is the test's own and goes to the caller as it
    is. Requests that an InvalidRequest of the client itself refuses are neither recorded nor do they use a script.
    """

    def __init__(self, models: Mapping[str, Answers], *, clock: Clock | None = None) -> None:
        self.clock: Clock = StillClock() if clock is None else clock
        self.calls: list[Call] = []
        """Every request, in the order in which the farm got them."""
        self.running = True
        self.catalog = FakeCatalog(())
        self._models: list[Model] = []
        self._functions: dict[tuple[str, int], Function | None] = {}
        self._scripts: dict[str, deque[Scripted]] = {}
        self._standing: dict[str, Scripted] = {}
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._lock = threading.Lock()
        for name, answers in models.items():
            self.add(name, answers)

    # models

    def add(
        self,
        name: str,
        answers: Answers,
        *,
        signature: Declared | None = None,
        version: int = 1,
        aliases: tuple[str, ...] = (),
        deadline_ms: float = 1000.0,
        ready: bool = True,
    ) -> None:
        """One more model or version; the same name and version again replaces it. `deadline_ms`: of requests that name
        none. `ready`: False until `set_ready`; requests then wait, and end `Overloaded`, reason `no_worker`.

        Raises:
            FakeMisused: the signature cannot be read, or `answers` is neither function nor signature.
        """
        function: Function | None = None
        if isinstance(answers, tuple):
            answers, signature = answers
        if callable(answers):
            function = answers
            told = signatures.of_function(name, function) if signature is None else signatures.parse(name, signature)
        elif isinstance(answers, Signature | Mapping):
            told = signatures.parse(name, answers)
        else:
            raise FakeMisused(f"{name}: expected a function or a signature, got {answers!r}")
        with self._lock:
            known = [i for i, model in enumerate(self._models) if (model.name, model.version) == (name, version)]
            index = known[0] if known else len(self._models)
            model = Model(index, name, version, True, int(deadline_ms * NS_PER_MS), ROWS_MAX, told, aliases)
            self._models[index : index + 1] = [model]
            self._functions[name, version] = function
            self._scripts.setdefault(name, deque())
        self.set_ready(name, ready, version=version)

    def set_ready(self, name: str, ready: bool = True, *, version: int | None = None) -> None:
        """Whether a model (all its versions, or one) has workers; `wait_ready` waits for all."""
        self._check_name(name)
        for model in self._models:
            if model.name == name and version in (None, model.version):
                # A farm tells a signature once a worker has loaded the model.
                self.catalog.update(model if ready else replace(model, ready=False, signature=None))

    # endings

    def script(self, model: str, *endings: Scripted) -> None:
        """The next requests to this model end so, one after the other; then it answers as before.

        Raises:
            FakeMisused: there is no such model, or an answer does not name its outputs.
        """
        for ending in endings:
            self._check(model, ending)
        with self._lock:
            self._scripts[model].extend(endings)

    def always(self, model: str, ending: Scripted | None) -> None:
        """Every request to this model that finds no script ends so; None: it answers by itself again."""
        self._check_name(model)
        if ending is not None:
            self._check(model, ending)
        with self._lock:
            self._standing.pop(model, None)
            if ending is not None:
                self._standing[model] = ending

    @property
    def unused(self) -> dict[str, list[Scripted]]:
        """What was scripted and not met, by model: empty when a service has asked as often as its test thought."""
        with self._lock:
            return {name: list(script) for name, script in self._scripts.items() if script}

    def stop(self) -> None:
        """As if the farm were gone: everything ends `Unavailable` at its deadline, or in the caller's fallback."""
        self.running = False

    def start(self) -> None:
        """There again."""
        self.running = True

    # clients

    def client(
        self,
        endpoint: Endpoint | None = None,
        *,
        lane: str = "auto",
        slot_count: int = 256,
        slot_bytes: int = 16384,
        title: str | None = None,
        spin_us: int = SPIN_US,
    ) -> FakeClient:
        """A client of this farm. It takes what `farm.Client` takes, so `monkeypatch.setattr("farm.Client",
        fake.client)` serves a service that makes its own; the endpoint is not looked at."""
        client = FakeClient(
            self, endpoint, lane=lane, slot_count=slot_count, slot_bytes=slot_bytes, title=title, spin_us=spin_us
        )
        self._engines.add(client._engine)
        return client

    def async_client(
        self,
        endpoint: Endpoint | None = None,
        *,
        lane: str = "auto",
        slot_count: int = 256,
        slot_bytes: int = 16384,
        title: str | None = None,
    ) -> FakeAsyncClient:
        """As `client`, for `farm.AsyncClient`."""
        client = FakeAsyncClient(self, endpoint, lane=lane, slot_count=slot_count, slot_bytes=slot_bytes, title=title)
        self._engines.add(client._engine)
        return client

    def close(self) -> None:
        """Close all clients: what is open ends `Unavailable`."""
        for engine in list(self._engines):
            engine.shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # what clients ask

    def asked(self, ticket: Ticket, inputs: Inputs) -> tuple[Scripted, Outputs | None]:
        """A request has come: what becomes of it, and the outputs of an answer. For the fake clients.

        Raises:
            FakeMisused: the answer does not fit the signature. And whatever the model's function raises.
        """
        served, options = ticket.served, ticket.options
        assert served is not None
        duration_ns = ticket.deadline_ns - ticket.entered_ns
        deadline_ms = duration_ns / NS_PER_MS if ticket.explicit_deadline else None
        fallback = None if options.fallback is None else {n: array.copy() for n, array in options.fallback.items()}
        call = Call(
            ticket.model, inputs, deadline_ms, options.priority, ticket.version, options.key, options.trace, fallback
        )
        with self._lock:
            self.calls.append(call)
            script = self._scripts[ticket.model]
            scripted = script.popleft() if script else self._standing.get(ticket.model) or Answered()
        if not isinstance(scripted, Answered) or scripted.after_ns > duration_ns:
            return scripted, None
        try:
            return scripted, self._outputs(served, inputs, scripted)
        except FarmError as error:
            return Raised(error=error, after_ms=scripted.after_ms), None

    def _outputs(self, served: Served, inputs: Inputs, scripted: Answered) -> Outputs:
        signature = served.model.signature
        given = scripted.outputs
        if given is None:
            function = self._functions[served.name, served.version]
            if function is None:
                assert signature is not None
                return signatures.zeros(signature, inputs)
            given = function(inputs)
        return signatures.conform(served.name, signature, inputs, given)

    def _check(self, model: str, ending: Scripted) -> None:
        self._check_name(model)
        if not isinstance(ending, Scripted):
            raise FakeMisused(f"{model}: {ending!r} is no ending; make one with fake.answer(), fake.shed() and so on")
        if isinstance(ending, Answered) and ending.outputs is not None:
            signature = next(m.signature for m in reversed(self._models) if m.name == model)
            signatures.check_names(model, signature, ending.outputs)

    def _check_name(self, name: str) -> None:
        if name not in self._scripts:
            raise FakeMisused(f"this fake farm has no model {name!r}; it has {sorted(self._scripts)}")
