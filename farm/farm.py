"""A whole farm as a context manager, for tests, notebooks and small services.

The caller's process starts one supervisor and talks to it over a leash; it reads no configuration and imports neither
`router` nor `workers`, so what the service itself calls by these names disturbs nothing.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from farm import control, launch, starting
from farm.errors import ConfigError, Unavailable
from shm import paths, seqpacket
from shm.errors import PeerGone, ShmError

if TYPE_CHECKING:
    import socket

    from farm.client import AsyncClient, Client

START_TIMEOUT_S = 75.0
"""The supervisor gives up by itself after `start_timeout_s`, by default 60, and says why; this is for one that does
not."""

STOP_TIMEOUT_S = 10.0
"""Beyond the drain and the limits of stopping: then the supervisor is killed, and its children with it."""

FAILED_TIMEOUT_S = 2.0
"""A supervisor that has said why it cannot start ends by itself."""


class Farm:
    """A farm of one's own, up when the constructor returns.

    Args:
        models: name to the path of an ONNX file, or to a table of options with a `path`. None: what `config` says, or
            the embedded default.
        workers: of each model; None: 2, or what `config` says.
        config: a TOML file, instead of `models`.
        runtime_dir: None: a directory of its own under the temporary directory, removed at the end.
        options: keys of the configuration, such as `deadline_ms=50` (of every model) or `pin=False`; see
            docs/OPERATIONS.md. Unknown ones are refused by name.

    Raises:
        ConfigError: the configuration cannot be used; the message says what to change.
        Unavailable: the farm did not come up; the message carries the reason, such as ONNX Runtime's own.

    >>> with farm.Farm({"fraud": "fraud.onnx"}) as running, running.client() as client:   # doctest: +SKIP
    ...     client.infer("fraud", {"x": rows}, deadline_ms=50).outputs
    """

    def __init__(
        self,
        models: Mapping[str, Any] | None = None,
        workers: int | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        runtime_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if models is not None and config is not None:
            raise ConfigError("Farm(): models and config were both given; put the models into the file or leave it out")
        if workers is not None:
            options["workers"] = workers
        self._owner = os.getpid()
        self._temporary = runtime_dir is None
        self._popen: subprocess.Popen[bytes] | None = None
        self._leash: socket.socket | None = None
        self._drain_s = _number(options.get("drain_timeout_ms"), 5000.0) / 1000
        self.endpoint = _own_directory() if runtime_dir is None else os.path.abspath(runtime_dir)
        """The runtime directory: what a `Client` takes."""
        try:
            self._start(_start_frame(models, config, options, self.endpoint, self._temporary), options)
        except BaseException:
            self._end(kill=True)
            raise

    def client(self, **options: Any) -> Client:
        """A client of this farm; options as `farm.Client` takes them."""
        from farm.client import Client

        return Client(self.endpoint, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        from farm.client import AsyncClient

        return AsyncClient(self.endpoint, **options)

    def status(self) -> dict[str, Any]:
        """What `farm status --json` prints."""
        return control.status(self.endpoint)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        if self._popen is None:
            raise Unavailable("this farm is stopped", reason="stopped")
        return self._popen.pid

    def stop(self) -> None:
        """Finish what is open, then end. Again: nothing. In a forked child: nothing, the farm is the parent's."""
        self._end(kill=False)

    def __enter__(self) -> Farm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        # Not stopped by its owner. The leash's end tells the supervisor; nobody waits for it here.
        leash, self._leash = getattr(self, "_leash", None), None
        if leash is not None:
            leash.close()

    def __repr__(self) -> str:
        state = f"pid {self._popen.pid}" if self._popen is not None else "stopped"
        return f"Farm({self.endpoint!r}, {state})"

    def _start(self, frame: bytes, options: Mapping[str, Any]) -> None:
        ours, theirs = seqpacket.pair()
        self._leash = ours
        with theirs:
            if not sys.executable:
                raise Unavailable("this Python does not know its own executable, so it cannot start a farm")
            self._popen = subprocess.Popen(
                [sys.executable, "-P", os.path.abspath(launch.__file__), "supervisor", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                process_group=0,
                stdin=subprocess.DEVNULL,
            )
        seqpacket.send(ours, frame)
        limit_s = max(START_TIMEOUT_S, _number(options.get("start_timeout_s"), 0.0) + 15)
        try:
            got = seqpacket.receive_within(ours, limit_s)
        except PeerGone:
            raise Unavailable(
                "the farm's supervisor ended while it started; its last words are on standard error",
                reason="start_failed",
            ) from None
        if got is None:
            raise Unavailable(f"the farm did not come up within {limit_s:g} s", reason="start_timeout")
        report = starting.report_decoder.decode(got[0])
        if isinstance(report, starting.StartFailed):
            if report.kind == "config":
                raise ConfigError(report.message, reason="config")
            raise Unavailable(f"the farm did not come up: {report.message}", reason="start_failed")

    def _end(self, *, kill: bool) -> None:
        popen, self._popen = self._popen, None
        leash, self._leash = self._leash, None
        try:
            if popen is None:
                return
            if os.getpid() != self._owner:
                popen.returncode = 0  # a child's copy: the process is the parent's to collect
                return
            if kill and not _wait(popen, FAILED_TIMEOUT_S):
                popen.kill()
            # The signal alone: the leash's end would be a second request, and a second one does not wait.
            popen.send_signal(signal.SIGTERM)
            if not _wait(popen, self._drain_s + STOP_TIMEOUT_S):
                popen.kill()
                popen.wait(STOP_TIMEOUT_S)
        finally:
            if leash is not None:
                leash.close()
            if self._temporary and os.getpid() == self._owner:
                shutil.rmtree(self.endpoint, ignore_errors=True)


def _wait(popen: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether it ended in time. Popen's own wait looks every 50 ms; the kernel can tell at once."""
    if popen.poll() is not None:
        return True
    try:
        pidfd = os.pidfd_open(popen.pid)
    except OSError:
        return popen.poll() is not None
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(timeout_s * 1000)
    finally:
        os.close(pidfd)
    return popen.poll() is not None


def _number(value: Any, default: float) -> float:
    """An option that the supervisor has yet to check, for a limit here."""
    return float(value) if isinstance(value, int | float) else default


def _start_frame(
    models: Mapping[str, Any] | None,
    config: str | os.PathLike[str] | None,
    options: dict[str, Any],
    runtime_dir: str,
    temporary: bool,
) -> bytes:
    """What goes to the supervisor; paths are made absolute here, where the caller's directory is known."""
    named = None
    if models is not None:
        named = {str(name): _model(model) for name, model in models.items()}
    start = starting.Start(
        models=named,
        config=None if config is None else os.path.abspath(config),
        options=options,
        runtime_dir=runtime_dir,
        temporary=temporary,
    )
    try:
        return starting.encode(start)
    except TypeError as error:
        raise ConfigError(f"Farm(): an option is of a kind that no configuration holds: {error}") from error


def _model(model: Any) -> Any:
    if isinstance(model, str | os.PathLike):
        return os.path.abspath(model)
    if isinstance(model, Mapping) and isinstance(model.get("path"), str | os.PathLike):
        return {**model, "path": os.path.abspath(model["path"])}
    return model


def _own_directory() -> str:
    """A new directory whose sockets' paths are short enough, also where the temporary directory's is not."""
    path = tempfile.mkdtemp(prefix="farm-")
    try:
        seqpacket.check_path(paths.lane_path(path, 10**15 - 1))
    except ShmError:
        os.rmdir(path)
        path = tempfile.mkdtemp(prefix="farm-", dir="/tmp")
    return path
