"""Python processes of the harness's own that are a peer or load one: started, told by a line, waited for by a word."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.target import TargetFailed

HERE = Path(__file__).resolve().parent
ROOT = str(HERE.parents[1])


class Children:
    """Processes with pipes, and a directory for their files; `end` leaves neither behind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix=f"{name}-")
        self.processes: list[subprocess.Popen[bytes]] = []

    def path(self, name: str) -> Path:
        return Path(self._directory.name) / name

    def spawn(self, what: str, *words: str) -> subprocess.Popen[bytes]:
        """what: a module, or a script's path beside this file, which loads nothing of the harness."""
        program = [str(HERE / what)] if what.endswith(".py") else ["-m", what]
        process = subprocess.Popen(
            [sys.executable, *program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ROOT, "ORT_DISABLE_TELEMETRY": "1"},
            process_group=0,
        )
        self.processes.append(process)
        return process

    def tell(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            raise TargetFailed(f"a process of {self.name} ended with {process.wait()}") from None

    def wait_words(self, word: bytes, limit_s: float, processes: list[subprocess.Popen[bytes]] | None = None) -> None:
        """Until each of them has said the word.

        Raises:
            TargetFailed: one ended, or took too long.
        """
        end = time.monotonic() + limit_s
        for process in self.processes if processes is None else processes:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TargetFailed(f"a process of {self.name} did not say {word.decode()!r} in {limit_s:.0f} s")
            if process.stdout.readline().strip() != word:
                raise TargetFailed(f"a process of {self.name} broke off; its last words are on standard error")

    def pids(self, role: str) -> dict[int, str]:
        return {process.pid: role for process in self.processes if process.poll() is None}

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._directory.cleanup()
