"""The pictures of a result: each function draws one scenario's runs and gives a figure, or None where there is nothing.

matplotlib is imported here alone, and without its global state.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench import recorder
from bench.result import Figure as Range
from bench.result import Place, summary_of, valid
from bench.target import Measured

Runs = dict[Place, list[Measured]]

# Told apart by those who see red and green alike, and in grey by their order of lightness.
COLOURS = ("#0b5fa5", "#d95f02", "#2a9d62", "#8e44ad", "#c0392b", "#7f8c8d", "#b8860b", "#17a2b8", "#e377c2", "#444444")
STAGES = {
    "client": "#9ecae1",
    "to_router": "#4292c6",
    "queue": "#d9d9d9",
    "to_worker": "#a1d99b",
    "run": "#f28e2b",
    "from_worker": "#41ab5d",
    "to_client": "#08519c",
}
"""In the order of a request's way."""

WIDE = 2000
"""Of a logarithmic axis from end to end: then its labels would stand too close."""

COLUMNS = 2
PERCENTILES = (50, 90, 99, 99.9, 99.99, 99.999)
COUNT_MIN = 20
"""Answers beyond a percentile's own share that it takes to draw the curve as far as that."""

mpl.rcParams.update(
    {
        "font.size": 9,
        "font.family": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "figure.facecolor": "white",
    }
)


def colours_of(runs: Runs) -> dict[str, str]:
    """Target to its colour, the same in every picture of a result."""
    names = list(dict.fromkeys(place.target for place in runs))
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}


def percentiles(runs: Runs, colours: dict[str, str]) -> Figure | None:
    """Latency by percentile, a panel per step: solid from the moment a request was due, dotted from its send."""
    labels = [label for label in dict.fromkeys(place.label for place in runs) if _measured(runs, label)]
    if not labels:
        return None
    figure, panels = _panels(len(labels), height=2.7)
    for label, panel in zip(labels, panels, strict=False):
        furthest = 0.0
        for place, group in runs.items():
            latencies = [run.latency for run in valid(group) if run.latency is not None]
            merged = recorder.merged(latencies) if place.label == label else None
            if merged is None:
                continue
            at, values = _curve(merged)
            furthest = max(furthest, at[-1])
            panel.plot(at, values, color=colours[place.target], label=place.target, linewidth=1.8)
            naive = recorder.merged([run.uncorrected for run in valid(group) if run.uncorrected and run.offered])
            if naive is not None:
                panel.plot(*_curve(naive), color=colours[place.target], linewidth=1, linestyle=":")
        marks = [p for p in PERCENTILES if _nines(p) <= furthest + 1e-9]
        panel.set_xticks([_nines(p) for p in marks], [f"{p:g} %" for p in marks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_yscale("log")
        _plain_log(panel.yaxis)
        panel.set_ylabel("latency, ms")
        panel.set_title(label)
    _legend(figure, panels)
    if any(run.offered for group in runs.values() for run in group):
        _footnote(figure, "dotted: from the send, as a naive benchmark counts")
    return figure


def throughput(runs: Runs, colours: dict[str, str]) -> Figure | None:
    """Answers a second of closed loops, a group of bars per step; the line tells from the least to the most."""
    closed = {place: told for place, told in _closed(runs).items() if told.median}
    labels = list(dict.fromkeys(place.label for place in closed))
    if len(closed) < 2 or len({place.target for place in closed}) < 2:
        return None
    figure = Figure(figsize=(9.5, 0.9 + 0.26 * len(closed) + 0.12 * len(labels)), layout="constrained")
    panel = figure.subplots()
    row, ticks = 0.0, []
    for label in labels:
        group = [(place, told) for place, told in closed.items() if place.label == label]
        ticks.append((row + (len(group) - 1) / 2, label))
        for place, told in group:
            reach = [[told.median - told.low], [told.high - told.median]]
            colour = colours[place.target]
            panel.barh(row, told.median, xerr=reach, color=colour, height=0.85, label=place.target, ecolor="#333")
            panel.text(told.high, row, f"  {told.median:,.0f}", va="center", fontsize=8, color="#333")
            row += 1
        row += 0.6
    panel.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set_xlim(right=1.1 * max(told.high for told in closed.values()))
    panel.xaxis.set_major_formatter(FuncFormatter(_thousands))
    panel.set_xlabel("answers a second")
    _legend(figure, [panel])
    return figure


def load_curve(runs: Runs, colours: dict[str, str]) -> Figure | None:
    """Goodput and p99 against what was offered, all targets on one plot; hollow where a run was void."""
    series: dict[tuple[str, str], list[tuple[float, list[Measured]]]] = {}
    for place, group in runs.items():
        if group[0].offered and not group[0].marks:
            _, comma, kind = place.label.partition(", ")
            series.setdefault((place.target, kind if comma else ""), []).append((_offered(group), group))
    series = {key: sorted(points, key=lambda point: point[0]) for key, points in series.items() if len(points) >= 3}
    if not series:
        return None
    figure, (left, right) = _panels(2, height=3.4)
    top = max(offered for points in series.values() for offered, _ in points)
    left.plot([0, top], [0, top], color="#999", linewidth=1, linestyle="--", label="all that was offered")
    for number, ((target, kind), points) in enumerate(series.items()):
        many = len({key[0] for key in series}) > 1
        colour = colours[target] if many else COLOURS[number % len(COLOURS)]
        name = f"{target}, {kind}" if kind else target
        for panel, figure_name in ((left, "goodput"), (right, "p99")):
            ranges = [(offered, _even_void(group, figure_name), _is_void(group)) for offered, group in points]
            drawn = [(offered, each, void) for offered, each, void in ranges if each is not None]
            at, middle = [point[0] for point in drawn], [point[1].median for point in drawn]
            low = [point[1].median - point[1].low for point in drawn]
            high = [point[1].high - point[1].median for point in drawn]
            panel.errorbar(at, middle, yerr=[low, high], color=colour, label=name, linewidth=1.6, capsize=2)
            for offered, each, void in drawn:
                panel.plot(
                    offered, each.median, "o", color=colour, markerfacecolor="white" if void else colour, markersize=5
                )
    left.set_ylim(bottom=0)
    left.set_title("answered by the model in time")
    left.set_ylabel("a second")
    right.set_title("p99")
    right.set_ylabel("ms")
    right.set_yscale("log")
    _plain_log(right.yaxis)
    for panel in (left, right):
        panel.set_xlim(left=0)
        panel.set_xlabel("offered, a second")
        panel.xaxis.set_major_formatter(FuncFormatter(_thousands))
    left.yaxis.set_major_formatter(FuncFormatter(_thousands))
    left.legend(fontsize=8)
    if any(_is_void(group) for points in series.values() for _, group in points):
        _footnote(figure, "hollow: void, the generator was behind its schedule")
    return figure


def timeline(runs: Runs, colours: dict[str, str]) -> Figure | None:
    """What was asked and answered in time over the run, p99 below it, and the fault where it struck."""
    shown = [group[0] for group in runs.values() if group[0].marks and len(group[0].timeline) > 2]
    if not shown:
        return None
    figure = Figure(figsize=(9.5, 3.6 * len(shown)), layout="constrained")
    panels = figure.subplots(2 * len(shown), 1, squeeze=False, height_ratios=[3, 2] * len(shown))[:, 0]
    for number, run in enumerate(shown):
        above, below = panels[2 * number : 2 * number + 2]
        width_s = run.timeline[1].at_s - run.timeline[0].at_s
        pieces = [*run.timeline, run.timeline[-1]]  # once more, to draw the last one's width
        at = [*(piece.at_s for piece in run.timeline), run.timeline[-1].at_s + width_s]
        asked = [piece.asked / width_s for piece in pieces]
        above.step(at, asked, where="post", color="#999", label="asked", linewidth=1)
        good = [piece.good / width_s for piece in pieces]
        above.fill_between(
            at, good, step="post", color=colours[run.target], alpha=0.75, label="answered in time", linewidth=0
        )
        above.set_ylim(bottom=0)
        above.set_ylabel("a second")
        above.yaxis.set_major_formatter(FuncFormatter(_thousands))
        above.set_title(f"{run.target}, {run.label}")
        p99 = [math.nan if piece.p99 is None else piece.p99 for piece in pieces]
        below.step(at, p99, where="post", color=colours[run.target], linewidth=1.3)
        below.set_yscale("log")
        _plain_log(below.yaxis)
        below.set_ylabel("p99, ms")
        below.set_xlabel("seconds")
        for panel in (above, below):
            panel.set_xlim(0, run.seconds)
            for mark in run.marks:
                panel.axvline(mark.at_s, color="#c0392b", linewidth=1.4)
        for mark in run.marks:
            above.annotate(
                f" {mark.what}",
                (mark.at_s, 1.0),
                xycoords=("data", "axes fraction"),
                color="#c0392b",
                va="bottom",
                fontsize=8,
            )
        above.legend(fontsize=8, loc="lower left")
    return figure


def stages(runs: Runs) -> Figure | None:
    """Where the time of a request goes, as the replies tell it: the mean of each stage, a bar per step."""
    bars = []
    for place, group in runs.items():
        told = [run.stages for run in valid(group) if run.stages]
        if told:
            bars.append((place, {stage: statistics.fmean(each.get(stage, 0.0) for each in told) for stage in STAGES}))
    if not bars:
        return None
    figure = Figure(figsize=(9.5, 0.9 + 0.34 * len(bars)), layout="constrained")
    panel = figure.subplots()
    names = [place.label if place.target == "farm" else f"{place.target}, {place.label}" for place, _ in bars]
    left = [0.0] * len(bars)
    for stage, colour in STAGES.items():
        widths = [means[stage] / 1e3 for _, means in bars]
        panel.barh(names, widths, left=left, color=colour, label=stage.replace("_", " "), height=0.68)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for number, total in enumerate(left):
        panel.text(total, number, f" {total:.3g} ms", va="center", fontsize=8, color="#333")
    panel.set_xlim(0, max(left) * 1.12)
    panel.invert_yaxis()
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("ms, mean")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=len(STAGES), fontsize=8)
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Any]]:
    rows = math.ceil(count / COLUMNS)
    columns = min(count, COLUMNS)
    figure = Figure(figsize=(9.5 if columns > 1 else 6.5, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = [panel for row in grid for panel in row]
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _legend(figure: Figure, panels: list[Any]) -> None:
    """One for all panels, above them; none for one target alone."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if len(handles) > 1:
        columns = min(len(handles), 6)
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns, fontsize=8)


def _footnote(figure: Figure, text: str) -> None:
    """Below everything, where the layout makes room for it."""
    figure.supxlabel(text, x=0.995, ha="right", color="#555", fontsize=8)


def _closed(runs: Runs) -> dict[Place, Range]:
    told = {place: summary_of(group, "per_second") for place, group in runs.items() if group[0].offered is None}
    return {place: figure for place, figure in told.items() if figure is not None}


def _measured(runs: Runs, label: str) -> bool:
    return any(run.latency for place, group in runs.items() if place.label == label for run in valid(group))


def _nines(percentile: float) -> float:
    """Where a percentile stands on the axis: each nine more is as far again."""
    return -math.log10(1 - percentile / 100)


def _curve(latency: Any) -> tuple[list[float], list[float]]:
    kept = recorder.decode(latency)
    furthest = math.log10(max(latency.count / COUNT_MIN, 2.0)) + 0.3
    at = [step * furthest / 160 for step in range(161)]
    return at, [kept.get_value_at_percentile(100 * (1 - 10**-place)) / 1e3 for place in at]


def _offered(group: list[Measured]) -> float:
    return float(group[0].offered or 0.0)


def _is_void(group: list[Measured]) -> bool:
    return not valid(group)


def _even_void(group: list[Measured], name: str) -> Range | None:
    """A void run's figure is shown, hollow: it is no result, but it tells why there is none."""
    from bench.result import figure_of

    told = summary_of(group, name)
    if told is not None:
        return told
    values = [value for run in group if (value := figure_of(run, name)) is not None]
    return Range(statistics.median(values), min(values), max(values), len(values)) if values else None


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _plain_log(axis: Any) -> None:
    """1, 2, 5, 10 in the place of powers; of a wide range 1, 10, 100."""
    low, high = axis.get_view_interval()
    subs = (1.0,) if low > 0 and high / low > WIDE else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
