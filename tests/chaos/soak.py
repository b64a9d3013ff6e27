"""The soak: mixed models and deaths at a modest load, in slices; does memory grow, or the number of descriptors?

The state file keeps all that earlier slices have seen; each slice has a farm of its own and goes on with the seed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests import models
from tests.chaos.kills import Death, Loop, Plan
from tests.chaos.slope import Slope, slope
from tests.chaos.victims import SIGNALS
from tests.crowd import Service, write_script
from tests.farmprocess import Serving
from tests.killing import LONG_MS, SHORT_MS, WAYS, Siege, besiege

CALIBRATION_S = 5.0
CALLERS = 21 + 3
"""Of the four services: 3 threads, 6 coroutines, 12 submitted, and 3 threads again."""
MEASURES = ("uss_kib", "pss_kib", "open_fds")

CONFIG = """\
[farm]
pin = false
restart_delay_ms = 1
restart_delay_ms_max = 20
[models.chain]
path = "chain.onnx"
[models.mlp]
path = "mlp.onnx"
"""


class State:
    """What is kept from slice to slice. `samples`: [slice, requests, role, uss_kib, pss_kib, open_fds]."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.seed: int = kept.get("seed", seed)
        self.slices: int = kept.get("slices", 0)
        self.seconds: float = kept.get("seconds", 0.0)
        self.requests: int = kept.get("requests", 0)
        self.rate_full: float = kept.get("rate_full", 0.0)
        self.deaths: Counter[str] = Counter(kept.get("deaths", {}))
        self.samples: list[list[Any]] = kept.get("samples", [])
        self.faults: list[str] = kept.get("faults", [])

    def save(self) -> None:
        facts = {name: value for name, value in vars(self).items() if name != "path"}
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(facts))
        os.replace(beside, self.path)

    def slopes(self) -> dict[str, Slope]:
        """By role and measure, per million requests."""
        series: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for number, requests, role, *values in self.samples:
            for measure, value in zip(MEASURES, values, strict=True):
                by_slice = series.setdefault(f"{role} {measure}", {})
                by_slice.setdefault(number, []).append((requests / 1e6, value))
        found = {name: slope(list(by_slice.values())) for name, by_slice in series.items()}
        return {name: one for name, one in found.items() if one is not None}

    def table(self) -> str:
        lines = [
            f"seed {self.seed}, {self.slices} slices, {self.seconds / 60:.1f} min, {self.requests:,} requests, "
            f"{self.requests / max(self.seconds, 1):.0f}/s of {self.rate_full:.0f}/s, deaths {dict(self.deaths)}",
            "slope per million requests, with its 95 % interval:",
        ]
        for name, one in sorted(self.slopes().items()):
            lines.append(f"  {name:<24}{one.value:12.2f} +- {one.noise:.2f}{'' if one.is_zero else '   NOT ZERO'}")
        return "\n".join([*lines, f"faults: {len(self.faults)}", *(f"  {fault}" for fault in self.faults)])


class Soak:
    """One slice."""

    def __init__(self, state: State, command: list[str], kill_every_s: float, sample_every: int, load: float) -> None:
        self.state = state
        self._command = command
        self._kill_every_s = kill_every_s
        self._sample_every = sample_every
        self._load = load
        state.slices += 1
        self._chance = random.Random(f"{state.seed} {state.slices}")
        self._loop = Loop(Plan({}, self._chance.randrange(1 << 30)), command)

    def run(self, seconds: float) -> None:
        """A fault ends the slice and is kept; so does Ctrl-C, which loses nothing but what came since a sample."""
        try:
            with tempfile.TemporaryDirectory(prefix="c-") as name:
                self._run(Path(name), seconds)
        except AssertionError as error:
            self.state.faults.append(f"slice {self.state.slices}: {str(error)[:2000]}")
        finally:
            self.state.save()

    def _run(self, folder: Path, seconds: float) -> None:
        chain, mlp = models.slow(folder / "chain.onnx", nodes=40, size=64), models.mlp(folder / "mlp.onnx")
        (folder / "farm.toml").write_text(CONFIG)
        serving = Serving(self._command, folder / "run", "--config", str(folder / "farm.toml"))
        with serving.ready():
            if not self.state.rate_full:
                self.state.rate_full = self._calibrate(serving, folder, chain, mlp)
            # At full load a call takes CALLERS / rate; here it takes about half of that, and the rest is pause.
            full_s = CALLERS / self.state.rate_full
            crowd = self._crowd(folder, chain, mlp, full_s * (1 / self._load - 0.5))
            with besiege(serving, crowd, self._chance, stalls=True) as siege:
                self._besieged(siege, seconds, folder)

    def _crowd(self, folder: Path, chain: Path, mlp: Path, pause_s: float) -> list[tuple[str, str, Path]]:
        scripts = []
        for model in (chain, mlp):
            own = folder / f"{model.stem}-{pause_s}"
            own.mkdir()
            scripts.append(write_script(own, model, [LONG_MS, SHORT_MS], pause_s=pause_s))
        crowd = [(("direct", "zeromq")[turn % 2], way, scripts[0]) for turn, way in enumerate(WAYS)]
        return [*crowd, ("zeromq", "threads", scripts[1])]

    def _calibrate(self, serving: Serving, folder: Path, chain: Path, mlp: Path) -> float:
        with besiege(serving, self._crowd(folder, chain, mlp, 0.0), self._chance, stalls=True) as siege:
            before, began = _asked(siege), time.monotonic()
            # Waits for nothing: it counts what comes in so many seconds.
            time.sleep(CALIBRATION_S)
            return (_asked(siege) - before) / (time.monotonic() - began)

    def _besieged(self, siege: Siege, seconds: float, folder: Path) -> None:
        state = self.state
        began = told_at = now = time.monotonic()
        before_requests, before_s, sampled = state.requests, state.seconds, 0
        ends: list[dict[str, int]] = [service.told()["ends"] for service in siege.services]
        kill_at = now + self._kill_every_s
        while (now := time.monotonic()) - began < seconds:
            if now >= kill_at:
                kind = self._chance.choice(("client", "worker", "router"))
                ends = self._loop.death(siege, Death(kind, self._chance.choice(SIGNALS)), folder, None, ends)
                siege.wait_level(len(siege.services))
                state.deaths[kind] += 1
                kill_at = time.monotonic() + self._kill_every_s
            asked = _asked(siege)
            state.requests, state.seconds = before_requests + asked, before_s + now - began
            if asked - sampled >= self._sample_every:
                sampled = asked
                self._sample(siege)
                state.save()
            if now - told_at >= 10:
                told_at = now
                left = (seconds - now + began) / 60
                print(f"{state.requests:,} requests, {left:.1f} min left", file=sys.stderr)
            time.sleep(0.1)

    def _sample(self, siege: Siege) -> None:
        """The mean of each role's processes."""
        by_role: dict[str, list[list[float]]] = {}
        for row in siege.running.status()["processes"]:
            values = [row[measure] for measure in MEASURES]
            if None not in values:
                by_role.setdefault(row["role"], []).append(values)
        by_role["service"] = [_service_costs(service) for service in siege.services]
        for role, rows in by_role.items():
            means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            self.state.samples.append([self.state.slices, self.state.requests, role, *means])


def _asked(siege: Siege) -> int:
    return sum(service.told()["asked"] for service in siege.services)


def _service_costs(service: Service) -> list[float]:
    pid = service.process.pid
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return [private, kib["Pss"], len(os.listdir(f"/proc/{pid}/fd"))]


def plot(state: State, path: Path) -> None:
    """Memory and descriptors of each role against requests."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    for role in dict.fromkeys(sample[2] for sample in state.samples):
        rows = [sample for sample in state.samples if sample[2] == role]
        millions = [row[1] / 1e6 for row in rows]
        axes[0].plot(millions, [row[3] / 1024 for row in rows], label=role)
        axes[1].plot(millions, [row[5] for row in rows], label=role)
    axes[0].set_ylabel("own memory (USS), MiB, mean")
    axes[1].set_ylabel("descriptors, mean")
    axes[1].set_xlabel("million requests")
    axes[0].set_title(f"{state.seconds / 60:.0f} min, {state.requests:,} requests, {state.deaths.total()} deaths")
    axes[0].legend(fontsize="small")
    for one in axes:
        one.set_ylim(bottom=0)
        one.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
