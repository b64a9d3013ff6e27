"""Two results side by side. A verdict only where the repeats of one lie wholly beyond those of the other."""

from __future__ import annotations

from typing import NamedTuple

from bench import host
from bench.result import FIGURES, Figure, Place, Result, places_of, summary_of

REPEATS_MIN = 2
"""Of each: one run alone has no spread, so nothing can lie beyond it."""

WORTH = 0.02
"""A change of less than this share is none, however small the spread: three repeats can agree by chance."""


class Change(NamedTuple):
    """One figure of one place in both. verdict: `better`, `worse`, `same` (within the spread) or `unknown`."""

    place: Place
    figure: str
    before: Figure
    after: Figure
    verdict: str

    @property
    def ratio(self) -> float | None:
        return self.after.median / self.before.median if self.before.median else None


def changes(before: Result, after: Result) -> list[Change]:
    """Of every place and figure that both have."""
    old, new = places_of(before), places_of(after)
    found = []
    for place in old:
        if place not in new:
            continue
        for name, more_is_better in FIGURES.items():
            one, other = summary_of(old[place], name), summary_of(new[place], name)
            if one is not None and other is not None:
                found.append(Change(place, name, one, other, verdict(one, other, more_is_better)))
    return found


def verdict(before: Figure, after: Figure, more_is_better: bool) -> str:
    if min(before.repeats, after.repeats) < REPEATS_MIN:
        return "unknown"
    apart = after.low > before.high or after.high < before.low
    if not apart or abs(after.median - before.median) < WORTH * abs(before.median):
        return "same"
    return "better" if (after.median > before.median) == more_is_better else "worse"


def text(before: Result, after: Result) -> str:
    """The comparison for a person."""
    lines = []
    for difference in host.same_host(before.host, after.host):
        lines.append(f"caution, the hosts differ in {difference}")
    found = changes(before, after)
    if not found:
        return "\n".join([*lines, "the results have no scenario, step and target in common"])
    last: Place | None = None
    for change in found:
        if change.verdict in ("same", "unknown") and change.figure not in ("per_second", "p50", "p99"):
            continue
        if change.place != last:
            last = change.place
            lines.append(f"{last.scenario}, {last.label}, {last.target}")
        ratio = f"x {change.ratio:.3f}" if change.ratio is not None else ""
        lines.append(
            f"  {change.figure:<18} {_range(change.before):>34} -> {_range(change.after):<34} {ratio:<9} "
            + {"same": "within the spread", "unknown": "one run alone: no verdict"}.get(change.verdict, change.verdict)
        )
    counts = {word: sum(change.verdict == word for change in found) for word in ("better", "worse", "same", "unknown")}
    lines.append(
        f"{counts['better']} better, {counts['worse']} worse, {counts['same']} within the spread, "
        f"{counts['unknown']} without a verdict"
    )
    return "\n".join(lines)


def _range(figure: Figure) -> str:
    return f"{_short(figure.median)} ({_short(figure.low)} to {_short(figure.high)})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
