"""What is measured and what comes out: the one seam between the harness and everything that can serve a model.

A `Target` is the farm, a peer server or ONNX Runtime in process. The harness starts it for a `Case`, drives it by one
`Load` after another and stops it; around each drive it takes the processes' CPU, memory and context switches itself, so
a target only names its processes. Each target is driven by the client that shows it at its best: the farm by its public
client, an HTTP server by a C client. All of them report the same `Measured`.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Array = npt.NDArray[Any]
Arrivals = Literal["constant", "poisson", "bursts", "ramp", "trace", "periodic"]
Caller = Literal["submit", "infer", "lease", "clients", "asyncio", "asyncio-clients", "threads", "threads-own"]


class Model(Struct, frozen=True, kw_only=True):
    """A model file with one input. `row`: the shape of one row, without the batch dimension.

    output_bytes: of one row's answer. batched: whether requests may share a run.
    """

    name: str
    path: str
    input: str
    row: tuple[int, ...]
    dtype: str
    output_bytes: int = 64
    batched: bool = True

    def one(self, seed: int = 0) -> Array:
        """One request's input: a batch of one row, the same for the same seed."""
        random = np.random.default_rng(seed)
        shape = (1, *self.row)
        if np.dtype(self.dtype).kind == "f":
            return random.standard_normal(shape, np.float32).astype(self.dtype)
        return random.integers(0, 256, shape).astype(self.dtype)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row)) * np.dtype(self.dtype).itemsize


class Case(Struct, frozen=True, kw_only=True):
    """What a target is started with; the same for every target of a run.

    workers: processes of each model, ONNX Runtime with one intra-op thread in each. options: keys of the farm's own
    configuration; other targets leave them alone.
    """

    models: tuple[Model, ...]
    workers: int = 2
    max_batch: int = 32
    options: dict[str, Any] = {}


class Stream(Struct, frozen=True, kw_only=True):
    """A part of the requests: `share` of all, relative to the other streams' shares.

    deadline_ms: sent with each request where the target takes one, and in any case what goodput is judged by.
    """

    model: str
    share: float = 1.0
    deadline_ms: float = 1000.0
    priority: int = 0


class Load(Struct, frozen=True, kw_only=True):
    """How requests come: `rate` a second by a schedule (open loop), or `in_flight` kept full (closed loop).

    seconds: of the measured part, which `warm_s` of the same load go before. generators: processes that share an open
    loop. caller: how a closed loop calls; `submit` and `infer` from one client, `clients` from as many independent
    ones as there are in flight. late_ms_max: a generator whose sends are later than this at p99 makes the run void.
    """

    label: str
    streams: tuple[Stream, ...]
    seconds: float
    warm_s: float = 0.5
    seed: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    burst_on_s: float = 0.1
    burst_off_s: float = 0.1
    ramp_from: float = 0.1
    sources: int = 1
    trace: str | None = None
    generators: int = 1
    late_ms_max: float = 10.0
    in_flight: int = 1
    caller: Caller = "submit"
    lane: Literal["auto", "direct", "zeromq"] = "auto"

    @property
    def open_loop(self) -> bool:
        return self.rate is not None

    @property
    def deadline_ms(self) -> float:
        """The longest of the streams'."""
        return max(stream.deadline_ms for stream in self.streams)


class Latency(Struct, frozen=True, kw_only=True):
    """Milliseconds of every answer by the model. `histogram`: HdrHistogram of microseconds, its V2 encoding."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float
    histogram: str = ""


class ProcessCost(Struct, frozen=True, kw_only=True):
    """One process over the measured time. Memory as it was at the end; None where the kernel did not tell."""

    role: str
    pid: int
    cpu_us_per_request: float
    cpu_s: float
    pss_mib: float | None
    voluntary_switches: int
    involuntary_switches: int
    minor_faults: int
    major_faults: int


class Mark(Struct, frozen=True, kw_only=True):
    """Something that was done to a target in mid-run."""

    at_s: float
    what: str


class Slice(Struct, frozen=True, kw_only=True):
    """A piece of the timeline: requests that were due in it. p50 and p99 in ms, of answers by the model."""

    at_s: float
    asked: int
    answered: int
    good: int
    p50: float | None
    p99: float | None


class Measured(Struct, kw_only=True):
    """One run of one target under one load.

    seconds: of the measured part. asked: requests that were due in it; answered: those the model answered; good: those
    within their stream's deadline, counted from the moment they were due (open loop) or sent (closed loop).
    latency: from the due moment; uncorrected: from the send; equal in a closed loop. outcomes: `model`, or
    `source/reason` of another answer, or `ErrorName/reason`, to how often. lateness: of the sends, open loop only.
    stages: stage to its mean in microseconds. void: why the figures count for nothing, or None. The harness fills in
    what stands after `void`; others_percent: of the host's CPUs, what neither target nor generators used.
    """

    target: str
    label: str
    seconds: float
    asked: int
    answered: int
    good: int
    per_second: float
    goodput: float
    outcomes: dict[str, int]
    latency: Latency | None = None
    uncorrected: Latency | None = None
    lateness: Latency | None = None
    offered: float | None = None
    by_stream: dict[str, Latency | None] = {}
    good_by_stream: dict[str, float] = {}
    stages: dict[str, float] = {}
    timeline: list[Slice] = []
    generator_cpu_us_per_request: float | None = None
    notes: dict[str, float] = {}
    void: str | None = None

    repeat: int = 0
    group: str = ""
    processes: list[ProcessCost] = []
    cpu_us_per_request: float | None = None
    pss_mib: float | None = None
    start_s: float | None = None
    steal_percent: float | None = None
    others_percent: float | None = None
    marks: list[Mark] = []


class Watcher(Protocol):
    """What a target calls from `drive`, so that costs are taken over the measured part alone."""

    def begin(self, at_ns: int) -> None:
        """Warm-up is over, or will be at `at_ns` (CLOCK_MONOTONIC); returns at once, whenever it is called."""

    def end(self) -> None:
        """The load is over; called before anything else is done, while every process still lives."""


class Target(Protocol):
    """Something that serves models.

    Used as: prepare once, then start, drive (often), stop; then perhaps start again. The harness times `start`, and
    stops a target whatever happened in between.
    """

    name: str

    def refuses(self, case: Case, load: Load) -> str | None:
        """Why it cannot be measured so (`takes one model only`), or None. Asked before `start`."""

    def prepare(self) -> None:
        """Make what it needs beforehand, such as an environment of its own; not timed, and nothing if it is there.

        Raises:
            TargetFailed: it cannot be made; the harness goes on with the other targets.
        """

    def start(self, case: Case) -> None:
        """Serve, and return after the first answer: what a user waits for.

        Raises:
            TargetFailed: it did not come up; the harness goes on with the other targets.
        """

    def drive(self, load: Load, watcher: Watcher) -> Measured:
        """Warm up for `load.warm_s`, then the load for `load.seconds`.

        Raises:
            TargetFailed: it could not be driven.
        """

    def pids(self) -> dict[int, str]:
        """Process id to role, of every process that serves; asked again at any time. Load generators do not count."""

    def stop(self) -> None:
        """End every process. Again: nothing. Never raises for a process that is gone."""


class TargetFailed(Exception):
    """A target cannot be had or broke; the message says what to do."""
