"""Is the farm as fast as it should be: `python -m bench.check [--rows NAME,...] [--quick]`, `make bench-check`.

Each row of the table measures the farm and its peers in turns, several times, in the same run, and judges the ratios of
figures that were taken within the same repeat: absolute figures move with the host. Everything is on in the farm:
deadlines, checks, counters. The exit status is 0 when every row holds, 1 when one does not, 2 when one could not be
measured, or only while others used the host. Measurements are kept as a result of the harness, verdicts beside it.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench import host, result, rows, scenario
from bench.progress import Progress
from bench.result import Result
from bench.rows import ROWS, Row
from bench.run import Options, measure
from bench.target import TargetFailed
from bench.verdicts import TOLD, Runs, Verdict
from farm.errors import FarmError

RESULTS = Path(__file__).parent / "results"
SECONDS, REPEATS = 3.0, 5
QUICK_SECONDS, QUICK_REPEATS = 1.0, 2


class Judged(Struct, frozen=True):
    """What the file of verdicts holds of one row. disturbed: some figure rests on runs during which others used the
    host, because there were no better ones."""

    row: str
    about: str
    verdicts: list[Verdict]
    disturbed: bool = False


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        chosen = rows_of(options.rows)
    except TargetFailed as error:
        print(error, file=sys.stderr)
        return 2
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    output = options.output or RESULTS / f"check-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    judged: list[Judged] = []
    whole = Result(command=" ".join(["python -m bench.check", *sys.argv[1:]]), quick=options.quick, host=host.facts())
    print(f"{'row':<14} {'figure':<48} {'farm':>10} {'peer':>10} {'ratio':>7} {'(from, to)':<15} wanted", flush=True)
    measured: dict[str, Result] = {}
    for row in chosen:
        for part in row.measures:
            if part not in measured:
                measured[part] = _measure(part, seconds, repeats, options.wait_quiet, whole)
        one = judge(row, [measured[part] for part in row.measures], seconds)
        judged.append(one)
        for verdict in one.verdicts:
            print(line_of(row.name, verdict) + (", disturbed" if one.disturbed else ""), flush=True)
        result.save(whole, output)
        output.with_suffix(".verdicts.json").write_bytes(msgspec.json.format(msgspec.json.encode(judged), indent=1))
        if any(each.interrupted for each in measured.values()):
            break
    print(f"measured on {whole.host.get('cpu', 'this host')}; kept in {output}")
    for left_out in dict.fromkeys(whole.left_out):
        print(f"left out: {left_out}")
    return status_of(judged)


def _measure(part: str, seconds: float, repeats: int, quiet_s: float, whole: Result) -> Result:
    tables = rows.MEASURES[part]
    asked = scenario.read({"about": part, **tables}, source="bench.rows", name=part)
    own_seconds = asked.seconds if "seconds" in tables else seconds
    options = Options(seconds=own_seconds, repeats=repeats, quiet_s=quiet_s)
    got = measure([asked], options, progress=Progress(0.0, None))
    whole.runs += got.runs
    whole.left_out += got.left_out
    whole.took_s += got.took_s
    whole.interrupted |= got.interrupted
    return got


def judge(row: Row, results: list[Result], seconds: float) -> Judged:
    """A row whose measurement is missing is not measured; it does not pass."""
    runs = Runs([run for each in results for run in each.runs])
    try:
        verdicts = row.judge(runs)
        verdicts += row.by_hand(seconds) if row.by_hand is not None else []
    except (TargetFailed, FarmError) as error:
        verdicts = [Verdict(claim=str(error), holds=None)]
    return Judged(row.name, row.about, verdicts, runs.disturbed)


def rows_of(names: str | None) -> list[Row]:
    """Raises:
    TargetFailed: there is no row of that name.
    """
    if names is None:
        return list(ROWS)
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise TargetFailed(f"no row {unknown[0]!r}; known are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def line_of(row: str, verdict: Verdict) -> str:
    """One line of the table."""
    ratio = f"{verdict.ratio:.2f}" if verdict.ratio is not None else ""
    spread = f"({verdict.low:.2f}, {verdict.high:.2f})" if verdict.low is not None else ""
    cells = [
        f"{row:<14} {verdict.claim:<48}",
        f"{_number(verdict.farm):>10}",
        f"{_number(verdict.peer):>10}",
        f"{ratio:>7}",
        f"{spread:<15}",
        f"{verdict.wanted:<22}",
    ]
    passed = "" if verdict.wanted == TOLD else "pass"
    return " ".join([*cells, {True: passed, False: f"MISSES {verdict.miss}", None: "NOT MEASURED"}[verdict.holds]])


def status_of(judged: list[Judged]) -> int:
    """A disturbed row proves nothing: it neither passes nor, while nothing else fails, misses."""
    sound = [verdict for row in judged if not row.disturbed for verdict in row.verdicts]
    if any(verdict.holds is False for verdict in sound):
        return 1
    return 2 if any(row.disturbed for row in judged) or any(verdict.holds is None for verdict in sound) else 0


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _parser() -> argparse.ArgumentParser:
    parser: Any = argparse.ArgumentParser(
        prog="python -m bench.check", description="Measure the farm beside its peers and judge it, row by row."
    )
    parser.add_argument("--rows", metavar="A,B", help=f"of: {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} repeats of {QUICK_SECONDS:g} s")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"of each part, default {SECONDS:g}")
    parser.add_argument("--repeats", type=int, metavar="N", help=f"default {REPEATS}")
    parser.add_argument(
        "--wait-quiet",
        type=float,
        default=0.0,
        metavar="S",
        help="before each start, for a host that does nothing else",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the result (default bench/results/)")
    return parser  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
