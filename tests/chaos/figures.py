"""What a kill loop has measured: distributions by kind of victim and signal, printed as a table or kept as JSON."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

PERCENTS = (50, 90, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the values that so many percent do not pass."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Figures:
    """Times in ms by `kind how` and measure, ends of survivors' calls by `kind how`, and what was not as promised."""

    def __init__(self) -> None:
        self.times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.ends: dict[str, Counter[str]] = defaultdict(Counter)
        self.faults: list[str] = []
        self.late_ms_max = 0.0
        self.stalled_ms_max = 0.0

    def add(self, what: str, **times_ms: float) -> None:
        for measure, time_ms in times_ms.items():
            self.times[what][measure].append(time_ms)

    def table(self) -> str:
        lines = [f"{'victim':<26}{'ms until':<12}{'n':>7}" + "".join(f"{f'p{p}':>9}" for p in PERCENTS) + f"{'max':>9}"]
        for what, measures in sorted(self.times.items()):
            for measure, times in measures.items():
                ordered = sorted(times)
                values = [*(percentile(ordered, percent) for percent in PERCENTS), ordered[-1]]
                row = "".join(f"{value:9.1f}" for value in values)
                lines.append(f"{what:<26}{measure:<12}{len(ordered):>7}{row}")
        lines.append("how survivors' calls ended around each, by deadline in ms:")
        lines += [f"  {what}: {dict(sorted(ends.items()))}" for what, ends in sorted(self.ends.items())]
        lines.append(f"latest end of a survivor's call after its deadline: {self.late_ms_max:.1f} ms")
        lines.append(f"longest that a survivor was kept from a CPU meanwhile: {self.stalled_ms_max:.1f} ms")
        lines.append(f"faults: {len(self.faults)}")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])

    def facts(self) -> dict[str, Any]:
        return {
            "times_ms": {
                what: {measure: sorted(round(time, 3) for time in times) for measure, times in measures.items()}
                for what, measures in self.times.items()
            },
            "ends": {what: dict(ends) for what, ends in self.ends.items()},
            "late_ms_max": self.late_ms_max,
            "stalled_ms_max": self.stalled_ms_max,
            "faults": self.faults,
        }
