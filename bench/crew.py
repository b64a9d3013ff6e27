"""The generator processes of one run: start them, let them begin together, take their tapes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from bench.generator import GRACE_S, Job
from bench.tape import Tapes
from bench.target import TargetFailed, Watcher

READY_S = 60.0
LEAD_S = 0.05
"""Between telling the generators and their first request: all have read it by then."""
END_S = 30.0
"""Beyond the load and its longest deadline, to write the tapes."""


def environment() -> dict[str, str]:
    """For a Python process that finds modules where this one does: a farm that is installed, or the checkout's."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


class Crew:
    """Generators for the jobs, ready to begin. Ends them on exit, whatever happened.

    module: whose `main` a generator runs.
    """

    def __init__(self, jobs: list[Job], directory: str, module: str = "bench.generator") -> None:
        self._jobs = jobs
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for job in jobs:
                path = Path(directory) / f"job-{job.part}.json"
                path.write_bytes(msgspec.json.encode(job))
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-P", "-m", module, str(path)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        env=environment(),
                        process_group=0,
                    )
                )
            self._wait_ready()
        except BaseException:
            self.end()
            raise

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def run(self, watcher: Watcher) -> tuple[Tapes, int, int]:
        """Let all begin together and wait for them. Their tapes, the moment at which the measured part began, and how
        many were killed, whose tapes are missing.

        Raises:
            TargetFailed: a generator failed or did not end.
        """
        load = self._jobs[0].load
        lead_s = LEAD_S + (load.warm_s if load.open_loop else 0.0)
        begin_ns = time.monotonic_ns() + int(lead_s * 1e9)
        for process in self._processes:
            assert process.stdin is not None
            # A closed loop warms up before its measured part too, but needs no schedule for it.
            process.stdin.write(b"%d\n" % (begin_ns + (0 if load.open_loop else int(load.warm_s * 1e9))))
            process.stdin.flush()
        if not load.open_loop:
            begin_ns += int(load.warm_s * 1e9)
        watcher.begin(begin_ns)
        limit_s = (begin_ns - time.monotonic_ns()) / 1e9 + load.seconds + load.deadline_ms / 1e3 + GRACE_S + END_S
        end_s = time.monotonic() + limit_s
        self._wait_load_over(begin_ns, load.seconds)
        watcher.end()
        paths = []
        killed = 0
        for process, job in zip(self._processes, self._jobs, strict=True):
            try:
                code = process.wait(max(0.1, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TargetFailed(f"a generator did not end within {limit_s:.0f} s") from None
            if code == -signal.SIGKILL:
                killed += 1
            elif code:
                raise TargetFailed(f"a generator ended with {code}; its last words are on standard error")
            else:
                paths.append(job.tape)
        if not paths:
            raise TargetFailed("every generator was killed")
        return Tapes(paths), begin_ns, killed

    def _wait_load_over(self, begin_ns: int, seconds: float) -> None:
        """Until the last request is due: what is taken of costs then is still under load."""
        time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9 + seconds))

    def _wait_ready(self) -> None:
        end_s = time.monotonic() + READY_S
        for process in self._processes:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end_s - time.monotonic()))
            if not ready:
                raise TargetFailed(f"a generator was not ready within {READY_S:.0f} s")
            if process.stdout.readline() != b"ready\n":
                raise TargetFailed("a generator did not come up; its last words are on standard error")

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
