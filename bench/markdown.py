"""A result as Markdown tables, for docs/PERFORMANCE.md: `python -m bench report --markdown RESULT.json`."""

from __future__ import annotations

from bench import report
from bench.result import Result, summary_of, valid
from bench.target import Measured

COLUMNS = ("per_second", "goodput", "p50", "p99", "p999", "max", "cpu_us_per_request", "pss_mib")


def text(result: Result) -> str:
    """A section for each scenario, in the order of the run."""
    host = result.host
    versions = host.get("versions", {})
    lines = [
        f"{result.began[:10]}, {host.get('cpu')}, {host.get('cpus')} CPUs shared by server and load, kernel "
        f"{host.get('kernel')}, Python {host.get('python')}, ONNX Runtime {versions.get('onnxruntime')}.",
        "",
    ]
    titles = [(name, title, form) for name, title, form in report.COLUMNS if name in COLUMNS]
    for scenario, runs in report.by_scenario(result).items():
        lines += [f"### {scenario}", "", result.about.get(scenario, ""), ""]
        lines.append(f"| step | target | {' | '.join(title for _, title, _ in titles)} |")
        lines.append(f"| --- | --- | {' | '.join('---:' for _ in titles)} |")
        for place, group in runs.items():
            cells = " | ".join(_cell(group, name, form) for name, _, form in titles)
            lines.append(f"| {place.label}{_remark(group)} | {place.target} | {cells} |")
        lines += [
            "",
            *(f"- {line}" for line in report.at_capacity(runs)),
            *(f"- {line}" for line in report.faults(runs)),
        ]
        if lines[-1]:
            lines.append("")
    lines += [f"- left out: {what}" for what in result.left_out]
    return "\n".join(lines).rstrip() + "\n"


def _cell(group: list[Measured], name: str, form: str) -> str:
    told = summary_of(group, name)
    return form.format(told.median) if told is not None else "-"


def _remark(group: list[Measured]) -> str:
    if not valid(group):
        return " (void)"
    return " (disturbed)" if report.disturbed_by(valid(group)) else ""
