"""A result for a person: a table in the terminal, pictures, and one page that needs nothing beside itself."""

from __future__ import annotations

import base64
import html
import io
import statistics
from pathlib import Path
from typing import Any

from bench.recorder import PAUSE_MS
from bench.result import OTHERS_PERCENT, Figure, Place, Result, places_of, summary_of, valid
from bench.target import Measured

Runs = dict[Place, list[Measured]]

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("per_second", "answers/s", "{:,.0f}"),
    ("goodput", "in time/s", "{:,.0f}"),
    ("p50", "p50 ms", "{:.3f}"),
    ("p90", "p90 ms", "{:.3f}"),
    ("p95", "p95 ms", "{:.3f}"),
    ("p99", "p99 ms", "{:.3f}"),
    ("p999", "p99.9 ms", "{:.3f}"),
    ("max", "max ms", "{:.2f}"),
    ("cpu_us_per_request", "CPU us", "{:.1f}"),
    ("pss_mib", "PSS MiB", "{:.0f}"),
    ("start_s", "start s", "{:.2f}"),
)
TERMINAL = ("per_second", "goodput", "p50", "p99", "p999", "max", "cpu_us_per_request", "pss_mib")
RATIOS = ("per_second", "goodput", "p50", "p99", "cpu_us_per_request")
"""Shown relative to the first target of the step, where there are several."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { margin-top: 2.2em; border-bottom: 2px solid #0b5fa5; padding-bottom: .2em }
h3 { font-size: 1em; margin: 1.4em 0 .3em }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0; font-variant-numeric: tabular-nums }
th, td { padding: .22em .5em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th { background: #f4f6f8; font-weight: 600 } td:first-child, th:first-child, .left { text-align: left }
td small { color: #777; display: block; font-size: 11px; line-height: 1.1 } img { max-width: 100%; margin: .4em 0 }
tr.first td { border-top: 2px solid #bbb } .void { color: #c0392b } .wide { overflow-x: auto } .quiet { color: #666 }
"""


def table(result: Result) -> str:
    """For the terminal: medians of the repeats that count."""
    lines = []
    names = [column for column in COLUMNS if column[0] in TERMINAL]
    wide = max((len(place.label) for place in places_of(result)), default=10) + 2
    for scenario, runs in by_scenario(result).items():
        lines.append(f"\n{scenario}: {result.about.get(scenario, '')}")
        lines.append(f"  {'':<{wide}}{'':<20}" + "".join(f"{title:>11}" for _, title, _ in names))
        for place, group in runs.items():
            cells = "".join(f"{_median(group, name, form):>11}" for name, _, form in names)
            lines.append(f"  {place.label:<{wide}}{place.target:<20}{cells}{_remark(group)}")
        lines += [f"  {line}" for line in at_capacity(runs) + faults(runs)]
    lines += [f"left out: {what}" for what in result.left_out]
    if result.interrupted:
        lines.append("interrupted: the rest was not measured")
    return "\n".join(lines)


def write(result: Result, beside: Path) -> Path:
    """The page, and each picture as a PNG in a directory beside the result. The page's path."""
    from bench import plots

    directory = beside.with_suffix("")
    directory.mkdir(parents=True, exist_ok=True)
    colours = plots.colours_of(places_of(result))
    parts = [_head(result)]
    for scenario, runs in by_scenario(result).items():
        parts.append(f"<h2>{_text(scenario)}</h2><p>{_text(result.about.get(scenario, ''))}</p>")
        drawn = {
            "goodput": ("Goodput against load", plots.load_curve(runs, colours)),
            "throughput": ("Closed loops", plots.throughput(runs, colours)),
            "timeline": ("The run over time", plots.timeline(runs, colours)),
            "latency": ("Latency by percentile", plots.percentiles(runs, colours)),
            "stages": ("Where the time goes", plots.stages(runs)),
        }
        parts.append(_table(runs))
        told = "".join(f"<li>{_text(line)}</li>" for line in at_capacity(runs) + faults(runs))
        parts.append(f"<ul>{told}</ul>" if told else "")
        for kind, (title, figure) in drawn.items():
            if figure is not None:
                png = _png(figure)
                (directory / f"{scenario}-{kind}.png").write_bytes(png)
                encoded = base64.b64encode(png).decode()
                parts.append(f'<h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{encoded}">')
        parts.append(_outcomes(runs))
        parts.append(_processes(runs))
    parts.append(_host(result))
    page = directory / "index.html"
    title = ", ".join(by_scenario(result))
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>bench: {_text(title)}</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>"
    )
    return page


def by_scenario(result: Result) -> dict[str, Runs]:
    scenarios: dict[str, Runs] = {}
    for place, runs in places_of(result).items():
        scenarios.setdefault(place.scenario, {})[place] = runs
    # By step, targets side by side, whatever the order of turns was.
    return {
        name: dict(sorted(runs.items(), key=lambda each: _order(runs, each[0]))) for name, runs in scenarios.items()
    }


def _order(runs: Runs, place: Place) -> tuple[int, int]:
    labels = list(dict.fromkeys(each.label for each in runs))
    targets = list(dict.fromkeys(each.target for each in runs))
    return labels.index(place.label), targets.index(place.target)


def _median(group: list[Measured], name: str, form: str) -> str:
    told = summary_of(group, name)
    return form.format(told.median) if told is not None else "-"


def _remark(group: list[Measured]) -> str:
    void = len(group) - len(valid(group))
    parts = [f"  VOID, {void} of {len(group)} repeats: {next(r.void for r in group if r.void)}"] if void else []
    if others := disturbed_by(group):
        parts.append(f"  disturbed: others used {others:.0f} % of the CPUs")
    return "".join(parts)


def disturbed_by(group: list[Measured]) -> float | None:
    """How much of the host's CPUs others used at most, in percent, where it was enough to disturb."""
    most = max((run.others_percent or 0.0 for run in group), default=0.0)
    return most if most > OTHERS_PERCENT else None


def at_capacity(runs: Runs) -> list[str]:
    """For scenarios of multiples of capacity: goodput beside its value at capacity, for each kind of step, and what
    the generator took of the CPUs: where it shares them with the server, it takes more the more it offers."""
    lines = []
    base: dict[tuple[str, str], float] = {}
    for place, group in runs.items():
        factor, _, rest = place.label.partition(" x capacity")
        told = _goodput(group)
        if rest != place.label and factor == "1" and told:
            base[place.target, rest] = told
    for place, group in runs.items():
        factor, cut, rest = place.label.partition(" x capacity")
        told, at_one = _goodput(group), base.get((place.target, rest))
        if cut and factor != "1" and told is not None and at_one:
            void = ", void" if not valid(group) else ""
            lines.append(
                f"{place.target}, {place.label}: goodput {100 * told / at_one:.1f} % of that at capacity{void}; "
                f"the generator took {_generator_cpus(group):.2f} of a CPU"
            )
    return lines


def faults(runs: Runs) -> list[str]:
    """What a fault did, for each run that had one."""
    lines = []
    for place, group in runs.items():
        for run in group:
            if run.marks:
                notes, missed = run.notes, run.asked - run.good
                lines.append(
                    f"{place.target}, {place.label}, repeat {run.repeat + 1}: {run.marks[0].what}; below 90 % for "
                    f"{notes.get('below_90_percent_s', 0):g} s; of {run.asked:,} requests {missed:,} were not "
                    f"answered in time; {notes.get('pauses', 0):,.0f} pauses over {PAUSE_MS:g} ms, the longest "
                    f"{notes.get('pause_ms_max', 0):.1f} ms; the generator's collector {_collector(run)}"
                )
    return lines


def _collector(run: Measured) -> str:
    count = run.notes.get("generator_gc_pauses", 0)
    return f"paused {count:.0f} times, {run.notes['generator_gc_pause_ms_max']:.1f} ms at most" if count else "did not"


def _generator_cpus(group: list[Measured]) -> float:
    return statistics.median((run.generator_cpu_us_per_request or 0.0) * run.asked / run.seconds / 1e6 for run in group)


def _goodput(group: list[Measured]) -> float | None:
    counted = valid(group) or group
    return statistics.median(run.goodput for run in counted)


def _table(runs: Runs) -> str:
    several = len({place.target for place in runs}) > 1
    rows = [_head_row(["step", "target"], [title for _, title, _ in COLUMNS])]
    last, first = None, None
    for place, group in runs.items():
        begins = place.label != last
        if begins:
            last, first = place.label, group
        void = next((run.void for run in group if run.void), None)
        note = f' <span class="void" title="{_text(void)}">void</span>' if void else ""
        if others := disturbed_by(group):
            note += f' <span class="quiet" title="others used {others:.0f} % of the CPUs">disturbed</span>'
        cells = "".join(_cell(group, None if begins else first, name, form) for name, _, form in COLUMNS)
        names = f"<td>{_text(place.label) if begins else ''}</td>{_left(place.target, note)}"
        rows.append(f'<tr class="{"first" if begins and several else "next"}">{names}{cells}</tr>')
    remark = " The ratio to the step's first target stands below a figure." if several else ""
    return (
        f'<div class="wide"><table>{"".join(rows)}</table></div><p class="quiet">Medians of the repeats; '
        f"from the least to the most of them where they differ. Latencies are of answers by the model, from the moment "
        f"a request was due.{remark}</p>"
    )


def _cell(group: list[Measured], first: list[Measured] | None, name: str, form: str) -> str:
    told = summary_of(group, name)
    if told is None:
        return "<td>-</td>"
    small = [_range(told, form)] if told.repeats > 1 and form.format(told.low) != form.format(told.high) else []
    other = summary_of(first, name) if first is not None and name in RATIOS else None
    if other is not None and other.median:
        small.append(f"x {told.median / other.median:.2f}")
    return f"<td>{form.format(told.median)}{''.join(f'<small>{line}</small>' for line in small)}</td>"


def _range(told: Figure, form: str) -> str:
    return f"{form.format(told.low)}-{form.format(told.high)}"


def _outcomes(runs: Runs) -> str:
    """How requests ended, where not all were answered by the model; streams, where there are several."""
    rows = []
    for place, group in runs.items():
        counts: dict[str, int] = {}
        for run in group:
            for name, count in run.outcomes.items():
                counts[name] = counts.get(name, 0) + count
        total = sum(counts.values())
        names = f"<td>{_text(place.label)}</td>{_left(place.target)}"
        if set(counts) - {"model"}:
            shown = ", ".join(f"{name} {100 * count / total:.2f} %" for name, count in sorted(counts.items()))
            rows.append(f"<tr>{names}{_left(shown)}</tr>")
        for stream, goodput in group[0].good_by_stream.items():
            latency = group[0].by_stream.get(stream)
            shown = f"{stream}: in time {goodput:,.0f}/s" + (f", p99 {latency.p99:.3f} ms" if latency else "")
            rows.append(f"<tr>{names}{_left(shown)}</tr>")
    return f"<h3>How requests ended</h3><table>{''.join(rows)}</table>" if rows else ""


def _processes(runs: Runs) -> str:
    rows = [
        _head_row(
            ["step", "target", "process"],
            ["CPU us/request", "PSS MiB", "switches/request", "forced/request", "minor faults", "major faults"],
        )
    ]
    for place, group in runs.items():
        run = group[0]
        asked = max(run.asked, 1)
        names = f"<td>{_text(place.label)}</td>{_left(place.target)}"
        for process in run.processes:
            cells = (
                f"{process.cpu_us_per_request:.2f}",
                _number(process.pss_mib),
                f"{process.voluntary_switches / asked:.3f}",
                f"{process.involuntary_switches / asked:.3f}",
                f"{process.minor_faults:,}",
                f"{process.major_faults:,}",
            )
            told = "".join(f"<td>{cell}</td>" for cell in cells)
            rows.append(f"<tr>{names}{_left(process.role)}{told}</tr>")
        if run.generator_cpu_us_per_request is not None:
            cost = f'<td>{run.generator_cpu_us_per_request:.2f}</td><td colspan="5"></td>'
            rows.append(f"<tr>{names}{_left('(generator)')}{cost}</tr>")
    return f"<details><summary>Processes, of the first repeat</summary><table>{''.join(rows)}</table></details>"


def _head_row(left: list[str], right: list[str]) -> str:
    cells = [f'<th class="left">{_text(title)}</th>' for title in left] + [
        f"<th>{_text(title)}</th>" for title in right
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _left(text: str, more: str = "") -> str:
    return f'<td class="left">{_text(text)}{more}</td>'


def _head(result: Result) -> str:
    state = " It was interrupted: what is here is what there was." if result.interrupted else ""
    quick = " It was a quick run, too short to decide by." if result.quick else ""
    return (
        f"<h1>Bench</h1><p>{_text(result.began)}, {result.took_s:,.0f} s on {_text(str(result.host.get('cpu')))}, "
        f"{result.host.get('cpus')} CPUs shared by server and load.{quick}{state}</p>"
        f"<p><code>{_text(result.command)}</code></p>"
    )


def _host(result: Result) -> str:
    facts: dict[str, Any] = {**result.host}
    facts |= {f"capacity, {name}": f"{value:,.0f} a second" for name, value in result.capacity.items()}
    steal = [run.steal_percent for run in result.runs if run.steal_percent is not None]
    if steal:
        facts["steal, most in a run"] = f"{max(steal):.2f} %"
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td class='left'>{_text(str(value))}</td></tr>" for name, value in facts.items()
    )
    left = "".join(f"<li>{_text(what)}</li>" for what in result.left_out)
    return f"<h2>Host</h2><table>{rows}</table>" + (f"<h2>Left out</h2><ul>{left}</ul>" if left else "")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _text(text: str) -> str:
    return html.escape(text)
