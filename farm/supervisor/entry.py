"""How a supervisor comes to life: from `farm serve` (`serve`), or as the child of a `farm.Farm` (`main`)."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable
from importlib.util import find_spec

import msgspec

from farm import config as configuration
from farm import exits, runtime_dir, starting
from farm.config import Config
from farm.errors import ConfigError
from farm.supervisor.log import Log
from farm.supervisor.service import Service
from shm import seqpacket
from shm.errors import ShmError

START_TIMEOUT_S = 10.0
"""For the Start frame of a caller that has just spawned us."""

SERVER_PACKAGES = ("onnxruntime", "numpy", "zmq", "uvloop", "setproctitle", "psutil", "cel")
"""What the children import; looked for, not imported, so that one line can say what to install."""

OPEN_FILES_MAX = 65_536
"""The router has two descriptors a client and several a worker: the usual soft limit of 1024 would be met first."""

Say = Callable[[starting.Started | starting.StartFailed], None]


def serve(config: Config, *, log: Log | None = None) -> int:
    """Run a farm in this process until it is told to stop; gives its exit code.

    Raises:
        ConfigError: the server extra is missing, a model file cannot be read, or the directory cannot be had.
    """
    return _run(config, log or Log(), None, lambda report: None, temporary=False)


def main(leash: socket.socket) -> int:
    """Serve what the Start frame on the leash says, and tell its sender how it went."""

    def say(report: starting.Started | starting.StartFailed) -> None:
        with contextlib.suppress(ShmError):
            seqpacket.send(leash, starting.encode(report))

    try:
        got = seqpacket.receive_within(leash, START_TIMEOUT_S)
    except ShmError:
        return exits.OK
    if got is None:
        return exits.USAGE
    try:
        start = starting.start_decoder.decode(got[0])
        return _run(_config_of(start), Log(quiet=True), leash, say, temporary=start.temporary)
    except (ConfigError, msgspec.MsgspecError) as error:
        say(starting.StartFailed("config", str(error), exits.USAGE))
        return exits.USAGE


def _config_of(start: starting.Start) -> Config:
    options = dict(start.options)
    if start.runtime_dir is not None:
        options["runtime_dir"] = start.runtime_dir
    if start.models is not None:
        return configuration.for_models(start.models, "Farm()", options)
    return configuration.load(start.config or configuration.EMBEDDED_PATH, options)


def _run(config: Config, log: Log, starter: socket.socket | None, say: Say, *, temporary: bool) -> int:
    _require_server_extra()
    configuration.check_files(config)
    held = runtime_dir.claim(
        runtime_dir.choose(config.farm.runtime_dir), serves=_serves(config), group=config.farm.service_group
    )
    try:
        _raise_open_files()
        _set_title(f"farm: supervisor {_serves(config)}")
        service = Service(config, held.path, log, starter)
        service.announced = lambda: say(starting.Started(held.path))
        code = service.run()
        if code == exits.OK:
            say(starting.StartFailed("stopped", "the farm was stopped while it started", code))
        else:
            say(starting.StartFailed("load", service.message, code))
            if not log.quiet:
                log.line(f"farm: gave up: {service.message}")
        return code
    finally:
        held.release(remove=temporary)


def _serves(config: Config) -> str:
    return ", ".join(f"{name} v{model.version}" for name, model in config.models.items())


def _require_server_extra() -> None:
    missing = [name for name in SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a farm needs packages that are not installed here ({', '.join(missing)}): pip install 'shmfarm[server]'"
        )


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


def _set_title(title: str) -> None:
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)
