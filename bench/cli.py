"""The command line of the harness: `python -m bench list | run | sweep | compare | report`."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench import compare, markdown, report, result, scenario, sweep, targets
from bench.progress import Progress
from bench.run import Options, measure
from bench.target import TargetFailed
from farm.errors import FarmError

RESULTS = Path(__file__).parent / "results"

EXAMPLES = """examples:
  python -m bench list                                     scenarios and targets
  python -m bench run --quick                              a little of everything, under two minutes
  python -m bench run bidding text --targets farm,mosec    two scenarios, the farm beside a peer
  python -m bench sweep --model text --capacity text.json  goodput and p99 against load; write down what it carries
  python -m bench compare before.json after.json           what changed by more than the spread
  python -m bench report after.json                        a page and pictures beside the result
"""


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except (TargetFailed, FarmError) as error:
        print("bench:", error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the farm, alone or beside peers: open loops from the moment a request was due, "
        "closed loops, faults in mid-run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    verb = verbs.add_parser("list", help="scenarios and targets that there are")
    verb.set_defaults(run=_list)

    verb = verbs.add_parser(
        "run",
        help="run scenarios and write a result",
        description="Run scenarios, by name or by file. Ctrl-C keeps what is there and reports it.",
    )
    verb.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default with --quick: all but soak")
    verb.add_argument("--targets", metavar="A,B", help="instead of what the scenarios say; see `list`")
    verb.add_argument("--repeats", type=int, metavar="N", help="instead of what the scenarios say, mostly 3")
    verb.add_argument("--seconds", type=float, metavar="S", help="of each step, instead of what the scenarios say")
    verb.add_argument("--quick", action="store_true", help="the first and the last step of each, short, once, no peers")
    _add_quiet(verb)
    _add_output(verb)
    verb.set_defaults(run=_run)

    verb = verbs.add_parser(
        "sweep",
        help="goodput and p99 against offered load, to the knee and beyond",
        description="Measure the capacity of the first target, then offer every target 0.1 to 3 times as much.",
    )
    verb.add_argument("--model", default="bidding", help="which of the harness's models (default bidding)")
    verb.add_argument("--workers", type=int, default=2, metavar="N", help="default 2")
    verb.add_argument("--deadline-ms", type=float, default=15.0, metavar="MS", help="default 15")
    verb.add_argument("--targets", metavar="A,B", default="farm", help="default farm")
    verb.add_argument("--seconds", type=float, default=4.0, metavar="S", help="of each step, default 4")
    verb.add_argument("--repeats", type=int, default=1, metavar="N", help="default 1")
    verb.add_argument("--quick", action="store_true", help="fewer steps of 1 s")
    _add_quiet(verb)
    verb.add_argument("--capacity", type=Path, metavar="FILE", help="write what the first target carries to this file")
    _add_output(verb)
    verb.set_defaults(run=_sweep)

    verb = verbs.add_parser("compare", help="two results: what changed by more than the spread")
    verb.add_argument("before", type=Path)
    verb.add_argument("after", type=Path)
    verb.set_defaults(run=_compare)

    verb = verbs.add_parser("report", help="a page and pictures of a result, beside it")
    verb.add_argument("result", type=Path)
    verb.add_argument("--markdown", action="store_true", help="print its tables as Markdown instead")
    verb.set_defaults(run=_report)
    return parser


def _add_quiet(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--quiet",
        type=float,
        default=0.0,
        metavar="S",
        help="on a shared host: before each step wait up to so many seconds until others leave the CPUs alone, and "
        "drive again what they disturb",
    )


def _add_output(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-o", "--output", type=Path, metavar="FILE", help="the result (default bench/results/TIME.json)")
    verb.add_argument("--no-report", action="store_true", help="write no page and no pictures")


def _list(_: argparse.Namespace) -> int:
    print("scenarios:")
    for name in scenario.names():
        print(f"  {name:<15} {scenario.load(name).about}")
    print("targets:", ", ".join(targets.names()))
    return 0


def _run(options: argparse.Namespace) -> int:
    names = options.scenarios
    if not names:
        if not options.quick:
            raise TargetFailed("name a scenario, or use --quick for a little of each; `python -m bench list` has them")
        names = [name for name in scenario.names() if name != "soak"]
    path = options.output or _new_path()
    measured = measure(
        [scenario.load(name) for name in names],
        Options(
            targets=_split(options.targets),
            repeats=options.repeats,
            seconds=options.seconds,
            quick=options.quick,
            quiet_s=options.quiet,
        ),
        progress=Progress(),
        keep=lambda so_far: result.save(so_far, path),
    )
    return _finish(measured, path, options)


def _sweep(options: argparse.Namespace) -> int:
    path = options.output or _new_path()
    wanted = sweep.Wanted(
        model=options.model,
        workers=options.workers,
        deadline_ms=options.deadline_ms,
        targets=_split(options.targets) or ["farm"],
        seconds=options.seconds,
        repeats=options.repeats,
        quick=options.quick,
    )
    measured = measure(
        [sweep.scenario_of(wanted)],
        Options(quiet_s=options.quiet),
        progress=Progress(),
        keep=lambda so_far: result.save(so_far, path),
    )
    knee = sweep.knee_of(measured, wanted.targets[0])
    if knee is None:
        print(f"no load was held, {sweep.HELD:.0%} answered in time: there is no capacity to write down")
    else:
        print(f"the knee: {knee.rows_per_second:,.0f} rows a second in time, p99 {knee.p99_ms:.2f} ms")
        if options.capacity is not None:
            sweep.write_capacity(options.capacity, wanted, knee, measured.host)
            print(f"capacity: {options.capacity}")
    return _finish(measured, path, options)


def _finish(measured: result.Result, path: Path, options: argparse.Namespace) -> int:
    if not measured.runs:
        print("bench: nothing was measured", *measured.left_out, sep="\n  ", file=sys.stderr)
        return 1
    result.save(measured, path)
    print(report.table(measured))
    print(f"result: {path}")
    if not options.no_report:
        print(f"report: {report.write(measured, path)}")
    return 130 if measured.interrupted else 0


def _compare(options: argparse.Namespace) -> int:
    print(compare.text(result.load(options.before), result.load(options.after)))
    return 0


def _report(options: argparse.Namespace) -> int:
    measured = result.load(options.result)
    if options.markdown:
        print(markdown.text(measured), end="")
        return 0
    print(report.table(measured))
    print(f"report: {report.write(measured, options.result)}")
    return 0


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _new_path() -> Path:
    return RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
