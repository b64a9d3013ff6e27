"""`farm status`: what runs, what it costs, what it has done."""

from __future__ import annotations

import argparse
from typing import Any

from farm import control
from farm.cli.table import print_table
from farm.cli.verb import Verbs, add_json, add_runtime_dir, describe, print_json


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "status",
        "show processes, memory, models and counters of a farm",
        "farm status\nfarm status --json",
        run,
    )
    add_json(parser, "everything")
    add_runtime_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    facts = control.status(control.find(arguments.runtime_dir))
    if arguments.json:
        print_json(facts)
    else:
        show(facts)
    return 0


def show(facts: dict[str, Any]) -> None:
    """For people. What the router tells is printed by whatever names it has, so that new facts show up here too."""
    stuck = [w["worker"] for w in (facts.get("router") or {}).get("workers", ()) if w.get("told_to_stop")]
    state = f"{facts['state']}, but worker {_cell(stuck)} does not answer" if stuck else facts["state"]
    print(f"{state}: {facts['source']}, attach at {facts['runtime_dir']}")
    print(f"up {_age(facts['age_s'])}, router epoch {facts['epoch']}, {facts['restarts']} restarts")
    _section(
        "processes",
        [
            {
                "title": row["title"],
                "pid": row["pid"],
                "state": row["state"],
                "PSS MiB": _mib(row.get("pss_kib")),
                "USS MiB": _mib(row.get("uss_kib")),
                "threads": row.get("threads"),
                "fds": row.get("open_fds"),
                "CPU s": row.get("cpu_s"),
                "age": _age(row["age_s"]),
                "restarts": row["restarts"],
                "cpus": _cell(row.get("cpus")),
            }
            for row in facts["processes"]
        ],
    )
    total_kib = sum(row.get("pss_kib") or 0 for row in facts["processes"])
    print(f"all together {_mib(total_kib)} MiB PSS")
    _section("waiting to be replaced", facts.get("waiting", []))
    router = facts.get("router")
    if router is None:
        print("\nrouter: does not answer")
        return
    for key, value in router.items():
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            _section(key, value)
    _section("router", [{key: value for key, value in router.items() if not isinstance(value, list | dict)}])
    for key, value in router.items():
        if isinstance(value, dict):
            said = {name: number for name, number in value.items() if number}
            print(f"\n{key}: " + (", ".join(f"{name} {_cell(number)}" for name, number in said.items()) or "all 0"))


def _section(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        print(f"\n{title}")
        print_table([{key: _cell(value) for key, value in row.items()} for row in rows])


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _mib(kib: int | None) -> str:
    return "-" if kib is None else f"{kib / 1024:.1f}"


def _age(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"
