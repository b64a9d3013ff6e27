"""Bytes against every part that takes some from outside, guided by coverage (atheris).

    python -m tests.fuzz all --seconds 60            a minute, split over the targets
    python -m tests.fuzz rules --executions 100000   one target
    python -m tests.fuzz frames --replay FILE        one input again

A fault ends its target, its input is kept, and the command that runs it again is printed. Ctrl-C ends the target in
hand and prints what there is. `--corpus DIR` keeps what coverage has found, one folder a target, and begins with it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.table import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
RSS_MB = 1024
TIMEOUT_S = 20
"""Of one input: far more than any takes, on a busy machine too."""

_DONE = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_KEPT = re.compile(r"Test unit written to (\S+)")


def fuzz(target: Target, executions: int, seconds: float, seed: int, kept: Path, found: Path) -> dict[str, Any]:
    """One target in its own process. executions, seconds: 0 for no such limit."""
    grown = kept / target.name
    grown.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.child", target.name]
    command += [f"-runs={executions or -1}", f"-max_total_time={max(1, round(seconds)) if seconds else 0}"]
    command += [f"-seed={seed}", f"-max_len={target.bytes_max}", f"-rss_limit_mb={RSS_MB}", f"-timeout={TIMEOUT_S}"]
    # Decoding is in C and shows no coverage: without these, libFuzzer drops all seeds but two and mutates those alone.
    command += ["-keep_seed=1", "-cross_over_uniform_dist=1"]
    command += [f"-artifact_prefix={found}/{target.name}-", "-verbosity=1", "-print_final_stats=0"]
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    began = time.monotonic()
    # libFuzzer ends the child without its exit handlers, so what the child makes is removed here.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as made, tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(
            [*command, str(grown), str(target.corpus)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": made},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        stopped = False
        try:
            code = child.wait()
        except KeyboardInterrupt:
            stopped = True
            code = child.wait()
        said.seek(0)
        text = said.read()
    counts = [tuple(map(int, match)) for match in _DONE.findall(text)]
    done = counts[-1] if counts else (0, 0, 0, 0)
    fault = None
    if code and not stopped:
        wrote = _KEPT.search(text)
        fault = {"input": wrote.group(1) if wrote else None, "said": text[-3000:]}
    return {
        "target": target.name,
        "executions": done[0],
        "coverage": done[1],
        "features": done[2],
        "corpus": done[3],
        "seconds": round(time.monotonic() - began, 1),
        "guided": "no atheris" not in text,
        "fault": fault,
        "stopped": stopped,
    }


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__, formatter_class=_Plain)
    listed = "\n".join(f"  {target.name:9} {target.does}" for target in TARGETS.values())
    parser.add_argument("target", choices=[*TARGETS, "all"], help=f"one of\n{listed}\nor all of them")
    parser.add_argument("--executions", type=int, default=0, help="in all, shared out over the targets")
    parser.add_argument("--seconds", type=float, default=0, help="in all, shared out evenly")
    parser.add_argument("--corpus", type=Path, help="where what is found interesting is kept")
    parser.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where inputs that fail are written")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the summary there too")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this one input, in this process")
    return parser


class _Plain(argparse.RawTextHelpFormatter):
    pass


def main(argv: list[str]) -> int:
    options = arguments().parse_args(argv)
    if options.replay:
        TARGETS[options.target].load().run(options.replay.read_bytes())
        print("no fault")
        return 0
    targets = list(TARGETS.values()) if options.target == "all" else [TARGETS[options.target]]
    if not options.executions and not options.seconds:
        options.seconds = 60.0
    shares = sum(target.share for target in targets)
    rows = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for number, target in enumerate(targets):
            left = f", {options.seconds * (1 - number / len(targets)):.0f} s left at most" if options.seconds else ""
            print(f"{target.name}: {target.does} ({number + 1} of {len(targets)}{left})", flush=True)
            row = fuzz(
                target,
                -(-options.executions * target.share // shares),
                options.seconds / len(targets),
                options.seed,
                options.corpus or Path(scratch),
                options.found,
            )
            rows.append(row)
            how = "" if row["guided"] else ", without coverage"
            print(f"  {row['executions']:,} executions, {row['coverage']} edges, {row['seconds']} s{how}", flush=True)
            if row["fault"]:
                print(row["fault"]["said"])
                print(f"again: python -m tests.fuzz {target.name} --replay {row['fault']['input']}", flush=True)
            if row["stopped"]:
                break
    faults = sum(1 for row in rows if row["fault"])
    print(f"{sum(row['executions'] for row in rows):,} executions over {len(rows)} targets, {faults} with a fault")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
