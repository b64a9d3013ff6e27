"""One process that makes load and nothing else: `python -m bench.generator JOB`, started by `bench.crew`.

It says `ready` on standard output once it has its clients, reads from standard input the moment at which the measured
part begins, keeps its tape, writes it and ends. On a host whose CPUs server and load share, whatever is spent here is
missing there: so it sends all that is due as one list, reaps all that is there, and sleeps in `completions` otherwise.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from pathlib import Path
from time import monotonic_ns
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from bench import callers, schedule
from bench.tape import LOST, Tape
from bench.target import Load, Model
from farm.client import Client
from farm.errors import FarmError

GRACE_S = 2.0
"""Beyond the longest deadline: a request that has not ended by then is lost."""

DEADLINE_MS_MIN = 0.05
"""A request that goes out after its deadline goes out all the same, with this little."""

INPUTS = 16
"""Different inputs of each stream, taken in turns: one alone would stay in the caches more than a user's do."""

TURN_REQUESTS = 256
"""Sent before answers are reaped again, also by a generator that is behind its schedule."""

PAUSE_NS = 500_000
"""A pause of the collector that is longer is counted."""

_PR_SET_TIMERSLACK = 29


class Job(Struct, frozen=True, kw_only=True):
    """What one generator does. `part` of `parts` of the load; `tape`: the path of its tape, without the ending."""

    endpoint: str
    models: tuple[Model, ...]
    load: Load
    part: int
    parts: int
    tape: str
    slot_count: int
    slot_bytes: int


def main() -> None:
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    # The kernel may delay each sleep by 50 us otherwise.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    pauses_ms: list[float] = []
    tape = Tape()
    _count_pauses(pauses_ms)
    if job.load.open_loop:
        cpu_s = _open_loop(job, tape)
    else:
        cpu_s = callers.closed_loop(job, tape, inputs_of(job), wait_for_begin)
    tape.save(job.tape, cpu_s=cpu_s, gc_pauses_ms=pauses_ms)


def wait_for_begin() -> int:
    """Say that all is ready; the moment at which the measured part begins, CLOCK_MONOTONIC ns."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        sys.exit(1)  # the harness is gone
    return int(line)


def inputs_of(job: Job) -> list[list[Any]]:
    """Per stream, some inputs; leaner where one is large."""
    models = {model.name: model for model in job.models}
    made = []
    for stream in job.load.streams:
        model = models[stream.model]
        count = INPUTS if model.row_bytes <= 65_536 else 2
        made.append([model.one(seed) for seed in range(count)])
    return made


def due_of(load: Load, part: int, parts: int) -> tuple[list[int], list[int]]:
    """Due moments of one generator, ns from the beginning of the measured part; warm-up lies before it, below 0. With
    each its stream."""
    assert load.rate is not None
    measured = schedule.of(load, load.rate, load.seconds, load.seed)
    first_rate = load.rate * load.ramp_from if load.arrivals == "ramp" else load.rate
    warm = schedule.poisson(first_rate, load.warm_s, load.seed + 1) - int(load.warm_s * 1e9)
    due = np.concatenate([warm, measured])
    streams = schedule.streams_of(len(due), [stream.share for stream in load.streams], load.seed)
    return due[part::parts].tolist(), streams[part::parts].tolist()


def _open_loop(job: Job, tape: Tape) -> float:
    load = job.load
    due, streams = due_of(load, job.part, job.parts)
    inputs = inputs_of(job)
    names = [stream.model for stream in load.streams]
    deadlines = [stream.deadline_ms for stream in load.streams]
    priorities = [stream.priority for stream in load.streams]
    count = len(due)
    sent, done, code = [0] * count, [0] * count, [LOST] * count
    open_of: dict[int, int] = {}
    with Client(
        job.endpoint, lane=load.lane, slot_count=job.slot_count, slot_bytes=job.slot_bytes, title="bench", spin_us=0
    ) as client:
        client.wait_ready(30)
        submit, completions, code_of = client.submit, client.completions, tape.code_of
        begin_ns = wait_for_begin()
        due = [moment + begin_ns for moment in due]
        began_cpu_s = 0.0
        at = 0
        end_ns = (due[-1] if due else begin_ns) + int((load.deadline_ms / 1e3 + GRACE_S) * 1e9)
        while at < count or open_of:
            now_ns = monotonic_ns()
            turn_end = min(count, at + TURN_REQUESTS)
            while at < turn_end and due[at] <= now_ns:
                stream = streams[at]
                if not began_cpu_s and due[at] >= begin_ns:
                    began_cpu_s = time.process_time()
                now_ns = monotonic_ns()
                sent[at] = now_ns
                left_ms = deadlines[stream] - (now_ns - due[at]) / 1e6
                try:
                    ticket = submit(
                        names[stream],
                        inputs[stream][at % INPUTS % len(inputs[stream])],
                        deadline_ms=left_ms if left_ms > DEADLINE_MS_MIN else DEADLINE_MS_MIN,
                        priority=priorities[stream],
                        flush=False,
                    )
                except FarmError as error:
                    done[at], code[at] = now_ns, code_of(error)
                else:
                    open_of[ticket.request_id] = at
                at += 1
            wait_s = max(0.0, ((due[at] if at < count else end_ns) - monotonic_ns()) / 1e9)
            if not open_of:
                # Of nothing that is open, nothing completes: `completions` would return at once.
                time.sleep(wait_s)
                continue
            tickets = completions(wait_s)
            now_ns = monotonic_ns()
            for ticket in tickets:
                index = open_of.pop(ticket.request_id)
                done[index], code[index] = now_ns, code_of(ticket.outcome())
            if now_ns > end_ns:
                break
        cpu_s = time.process_time() - began_cpu_s
    tape.due, tape.sent, tape.done, tape.code, tape.stream = due, sent, done, code, streams
    return cpu_s


def _count_pauses(pauses_ms: list[float]) -> None:
    """Of the collector, in this process, from the first that it makes by itself."""
    began_ns = 0

    def count(phase: str, _: dict[str, int]) -> None:
        nonlocal began_ns
        if phase == "start":
            began_ns = monotonic_ns()
        elif gc.get_freeze_count() and monotonic_ns() - began_ns > PAUSE_NS:
            pauses_ms.append((monotonic_ns() - began_ns) / 1e6)

    gc.callbacks.append(count)


if __name__ == "__main__":
    main()
