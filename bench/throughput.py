"""How fast one request comes back, and how many a second: `python -m bench.throughput [--seconds N] [--json]`.

One at a time, the farm and a bare ZeroMQ round trip (`bench.bare`) take turns in the same run, and the ratio of their
medians is what counts: absolute times move with the host. Then 40 and 128 requests in flight, by `submit` from one
client and by tasks of one AsyncClient, each kept full. Everything is on: checks, deadlines, counters, rules.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop
import zmq

import farm
from bench.bare import Bare
from farm import embedded

Array = npt.NDArray[np.float32]
REPEATS = 5
WORKERS = 2
DEADLINE_MS = 1000.0


def percentiles(times_ns: list[int]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    cuts = np.percentile(np.asarray(times_ns), [50, 99]) / 1e3
    return {"p50_us": round(float(cuts[0]), 1), "p99_us": round(float(cuts[1]), 1)}


def one_by_one_farm(client: Any, row: Array, seconds: float) -> list[int]:
    times: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter_ns()
        client.infer("wdbc", row, deadline_ms=DEADLINE_MS)
        times.append(time.perf_counter_ns() - began)
    return times


def one_by_one_bare(socket: Any, row: Array, seconds: float) -> list[int]:
    times: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter_ns()
        socket.send(row.tobytes())
        np.frombuffer(socket.recv(), np.float32)
        times.append(time.perf_counter_ns() - began)
    return times


def by_submit(client: Any, row: Array, in_flight: int, seconds: float) -> dict[str, float]:
    """One client that keeps so many in flight and reaps what is done in batches."""
    done = late = 0
    began = time.monotonic()
    end = began + seconds
    open_count = 0
    while time.monotonic() < end:
        for _ in range(in_flight - open_count):
            client.submit("wdbc", row, deadline_ms=DEADLINE_MS, flush=False)
        open_count = in_flight
        client.flush()
        for ticket in client.completions(1.0):
            open_count -= 1
            if ticket.result().source == "model":
                done += 1
            else:
                late += 1
    elapsed = time.monotonic() - began
    while open_count:
        open_count -= len(client.completions(1.0))
    return {"per_second": round(done / elapsed), "not_by_model": late}


async def by_tasks(endpoint: str, row: Array, in_flight: int, seconds: float) -> dict[str, float]:
    """One AsyncClient and so many tasks, each with one request in flight: how an asyncio service calls."""
    times: list[int] = []
    others = 0
    async with farm.AsyncClient(endpoint) as client:
        await client.wait_ready(10)
        end = time.monotonic() + seconds

        async def caller() -> None:
            nonlocal others
            while time.monotonic() < end:
                began = time.perf_counter_ns()
                reply = await client.infer("wdbc", row, deadline_ms=DEADLINE_MS)
                times.append(time.perf_counter_ns() - began)
                others += reply.source != "model"

        began = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        elapsed = time.monotonic() - began
    return {"per_second": round(len(times) / elapsed), "not_by_model": others, **percentiles(times)}


def measure(seconds: float) -> dict[str, Any]:
    row = embedded.load_records().features[:1]
    model = str(embedded.MODEL_PATH)
    results: dict[str, Any] = {"workers": WORKERS, "seconds_a_part": seconds}
    with farm.Farm(workers=WORKERS) as served, served.client() as client, Bare(model, row.shape[1], WORKERS) as bare:
        context: Any = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(bare.endpoint)
        client.wait_ready(10)
        one_by_one_farm(client, row, 0.5)
        one_by_one_bare(socket, row, 0.5)
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(percentiles(one_by_one_farm(client, row, seconds / 2)))
            theirs.append(percentiles(one_by_one_bare(socket, row, seconds / 2)))
        socket.close()
        context.term()
        ratios = sorted(a["p50_us"] / b["p50_us"] for a, b in zip(ours, theirs, strict=True))
        results["one_at_a_time"] = {
            "farm": ours,
            "bare": theirs,
            "ratio_p50": {
                "median": round(statistics.median(ratios), 3),
                "from": round(ratios[0], 3),
                "to": round(ratios[-1], 3),
            },
        }
    with farm.Farm(workers=WORKERS) as served:
        for in_flight in (40, 128):
            with served.client() as client:
                client.wait_ready(10)
                by_submit(client, row, in_flight, 0.3)
                results[f"submit_{in_flight}"] = [by_submit(client, row, in_flight, seconds) for _ in range(REPEATS)]
            results[f"asyncio_{in_flight}"] = [
                uvloop.run(by_tasks(served.endpoint, row, in_flight, seconds)) for _ in range(REPEATS)
            ]
    return results


def tell(results: dict[str, Any]) -> None:
    one = results["one_at_a_time"]
    print("one at a time, p50 / p99 in us, farm and bare ZeroMQ in turn:")
    for ours, theirs in zip(one["farm"], one["bare"], strict=True):
        columns = [
            f"{name} {side['p50_us']:7.1f} / {side['p99_us']:7.1f}" for name, side in (("farm", ours), ("bare", theirs))
        ]
        print(f"  {'   '.join(columns)}   ratio {ours['p50_us'] / theirs['p50_us']:.3f}")
    ratio = one["ratio_p50"]
    print(f"  ratio of p50: median {ratio['median']}, from {ratio['from']} to {ratio['to']}")
    for name, runs in results.items():
        if name.startswith(("submit_", "asyncio_")):
            rates = sorted(run["per_second"] for run in runs)
            others = sum(run["not_by_model"] for run in runs)
            print(
                f"{name.replace('_', ', ')} in flight: median {statistics.median(rates):,.0f} a second, "
                f"from {rates[0]:,} to {rates[-1]:,}; not answered by the model: {others}"
            )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each part (default 2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(argv)
    results = measure(options.seconds)
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        print()
    else:
        tell(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
