"""From arrays of moments to figures: latencies as HdrHistograms, counts of outcomes, a timeline.

Generators keep raw moments while they run, which costs next to nothing, and this is applied after the run is over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from bench.target import Latency, Load, Measured, Slice

Array = npt.NDArray[Any]

HIGHEST_US = 120_000_000
DIGITS = 3
PAUSE_MS = 0.5
"""Nothing was answered for longer than this although something was asked: a pause."""

SLICES = 100
"""Of a timeline, at most; none is shorter than SLICE_S_MIN."""
SLICE_S_MIN = 0.05


def histogram() -> Any:
    """An empty one, of microseconds, three digits, up to two minutes."""
    return HdrHistogram(1, HIGHEST_US, DIGITS)


def latency_of(values_ns: Array) -> Latency | None:
    """Of nanoseconds, in any order; None of nothing."""
    if not len(values_ns):
        return None
    values_us, counts = np.unique(_coarse(np.maximum(values_ns, 1000) // 1000), return_counts=True)
    longest_us, mean_us = float(values_ns.max()) / 1e3, float(values_ns.mean()) / 1e3
    return latency_of_counts(values_us, counts, max_us=longest_us, mean_us=mean_us)


def latency_of_counts(
    values_us: Array, counts: Array, *, max_us: float | None = None, mean_us: float | None = None
) -> Latency | None:
    """Of a histogram that another tool made: each value in microseconds with how often it came."""
    if not len(values_us):
        return None
    kept = histogram()
    for value, count in zip(values_us.tolist(), counts.tolist(), strict=True):
        kept.record_value(min(max(int(value), 1), HIGHEST_US), int(count))
    return latency_of_histogram(kept, max_us=max_us, mean_us=mean_us)


def latency_of_histogram(kept: Any, *, max_us: float | None = None, mean_us: float | None = None) -> Latency:
    def at(percentile: float) -> float:
        return float(round(kept.get_value_at_percentile(percentile) / 1e3, 4))

    return Latency(
        count=kept.get_total_count(),
        mean=round((kept.get_mean_value() if mean_us is None else mean_us) / 1e3, 4),
        p50=at(50),
        p90=at(90),
        p95=at(95),
        p99=at(99),
        p999=at(99.9),
        max=round((kept.get_max_value() if max_us is None else max_us) / 1e3, 4),
        histogram=kept.encode().decode(),
    )


def decode(latency: Latency) -> Any:
    """Its histogram again, for plots and for merging repeats."""
    return HdrHistogram.decode(latency.histogram)


def merged(latencies: list[Latency]) -> Latency | None:
    """All of them as one."""
    if not latencies:
        return None
    kept = histogram()
    for latency in latencies:
        kept.add(decode(latency))
    return latency_of_histogram(kept, max_us=max(latency.max for latency in latencies) * 1e3)


def timeline_of(due_ns: Array, took_ns: Array, answered: Array, good: Array, seconds: float) -> list[Slice]:
    """Requests by the moment they were due, counted from the beginning of the measured part.

    due_ns: relative to it. took_ns: due to done. answered, good: booleans, per request.
    """
    width_s = max(SLICE_S_MIN, seconds / SLICES)
    places = (due_ns / (width_s * 1e9)).astype(np.int64)
    slices = []
    for place in range(int(np.ceil(seconds / width_s - 1e-9))):
        here = places == place
        took = took_ns[here & answered] / 1e6
        slices.append(
            Slice(
                at_s=round(place * width_s, 4),
                asked=int(here.sum()),
                answered=len(took),
                good=int((here & good).sum()),
                p50=round(float(np.percentile(took, 50)), 4) if len(took) else None,
                p99=round(float(np.percentile(took, 99)), 4) if len(took) else None,
            )
        )
    return slices


def measured(
    *,
    target: str,
    load: Load,
    begin_ns: int,
    due: Array,
    sent: Array,
    done: Array,
    code: Array,
    names: list[str],
    stream: Array,
    generator_cpu_s: float | None = None,
    stages_us: dict[str, float] | None = None,
) -> Measured:
    """Figures of a run from its requests, each with the moments (CLOCK_MONOTONIC ns) at which it was due, sent and
    done, the number of its outcome's name and of its stream. Those due before `begin_ns` were warm-up.

    `names[1]` is the model's answer; `names[0]` what never ended.
    """
    all_requests = len(due)
    # A closed loop's callers stop at the end: what they wait for then would count with no time to have it in.
    kept = (due >= begin_ns) & (load.open_loop | (done <= begin_ns + int(load.seconds * 1e9)))
    due, sent, done, code, stream = due[kept], sent[kept], done[kept], code[kept], stream[kept]
    answered = code == 1
    took_ns = done - due
    limits_ns = np.array([each.deadline_ms * 1e6 for each in load.streams])[stream]
    good = answered & (took_ns <= limits_ns)
    counts = np.bincount(code, minlength=len(names))
    lateness = latency_of(sent - due) if load.open_loop else None
    several = len(load.streams) > 1
    by_stream = [(f"{n} {each.model}", stream == n) for n, each in enumerate(load.streams)] if several else []
    cpu_requests = len(due) if load.open_loop else all_requests
    return Measured(
        target=target,
        label=load.label,
        seconds=load.seconds,
        offered=load.rate,
        asked=len(due),
        answered=int(answered.sum()),
        good=int(good.sum()),
        per_second=round(int(answered.sum()) / load.seconds, 2),
        goodput=round(int(good.sum()) / load.seconds, 2),
        outcomes={name: int(count) for name, count in zip(names, counts, strict=False) if count},
        latency=latency_of(took_ns[answered]),
        uncorrected=latency_of((done - sent)[answered]),
        lateness=lateness,
        by_stream={name: latency_of(took_ns[answered & here]) for name, here in by_stream},
        good_by_stream={name: round(int((good & here).sum()) / load.seconds, 2) for name, here in by_stream},
        stages=stages_us or {},
        timeline=timeline_of(due - begin_ns, took_ns, answered, good, load.seconds),
        generator_cpu_us_per_request=(
            round(generator_cpu_s / cpu_requests * 1e6, 3) if generator_cpu_s is not None and cpu_requests else None
        ),
        notes=pauses_of(sent[code != 0], done[code != 0]),
        void=why_void(lateness, load.late_ms_max),
    )


def pauses_of(sent: Array, done: Array) -> dict[str, float]:
    """How often, and for how long at most, no request ended while one was open: whatever held up everybody, be it a
    collector, page faults or the scheduler. Of a load that is light, an ordinary run counts when it is long."""
    order = np.argsort(done, kind="stable")
    ended, asked = done[order], sent[order]
    lengths = np.diff(ended)[asked[1:] <= ended[:-1]]
    long = lengths[lengths > PAUSE_MS * 1e6]
    return {"pauses": float(len(long)), "pause_ms_max": round(float(long.max()) / 1e6, 3) if len(long) else 0.0}


def why_void(lateness: Latency | None, late_ms_max: float) -> str | None:
    """A generator behind its schedule asks for something else than was wanted, however well it was answered."""
    if lateness is None or lateness.p99 <= late_ms_max:
        return None
    return (
        f"the generator was {lateness.p99:.1f} ms behind its schedule at p99, {late_ms_max:g} ms are allowed: "
        "it or the host cannot offer this load"
    )


def _coarse(values_us: Array) -> Array:
    """Rounded down to four digits, one more than the histogram keeps: few distinct values of many requests."""
    digits = np.maximum(np.floor(np.log10(values_us)).astype(np.int64) - 3, 0)
    steps: Array = np.power(10, digits)
    coarse: Array = values_us // steps * steps
    return coarse
