"""A real `farm serve` for tests: started, watched by its standard error, stopped; and what is left of its processes."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from farm import control

LIMIT_S = 30.0


def wait_until(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Serving:
    """`farm serve` with its runtime directory; ended when the block ends."""

    def __init__(
        self,
        command: list[str],
        runtime_dir: Path,
        *arguments: str,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.command = command
        self.runtime_dir = self.endpoint = str(runtime_dir)
        self.cwd = cwd
        self.lines: list[str] = []
        self.pids: set[int] = set()
        self.process = subprocess.Popen(
            [*command, "serve", "--runtime-dir", self.runtime_dir, *arguments],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(LIMIT_S)
        # Its children hold the other end of standard error, and die with it.
        self._reader.join(LIMIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def line(self, start: str, limit_s: float = LIMIT_S) -> str:
        """The next line that starts so."""
        end = time.monotonic() + limit_s
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {start!r} within {limit_s} s; there were {self.lines}") from None
            assert line is not None, f"it ended without a line {start!r}; there were {self.lines}"
            self.lines.append(line)
            if line.startswith(start):
                return line

    def ready(self) -> Serving:
        self.line("farm ready: ")
        self.pids |= {row["pid"] for row in self.status()["processes"]}
        return self

    def run(self, *arguments: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Another command, for this farm."""
        verb, *rest = arguments
        return subprocess.run(
            [*self.command, verb, *rest, "--runtime-dir", self.runtime_dir],
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        return control.status(self.runtime_dir)

    def ended(self, limit_s: float = LIMIT_S) -> int:
        """The exit code. Everything that it wrote is in `lines` then."""
        code = self.process.wait(limit_s)
        self._reader.join(limit_s)
        while (line := self._queue.get(timeout=limit_s)) is not None:
            self.lines.append(line)
        return code

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.ended()


def gone(pids: Iterable[int]) -> bool:
    return not any(alive(pid) for pid in pids)
