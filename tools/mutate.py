"""How good is the net of tests under the deciding modules? `make mutation` changes them in every small way that mutmut
knows, one change at a time, and counts the changes that no test notices. What was found is in docs/MUTATION.md.

    .venv-mutation/bin/python tools/mutate.py [MODULE ...]     e.g. shedding admission; none: all of them
    .venv-mutation/bin/python tools/mutate.py --again          those that survived the last time, after tests were added
    .venv-mutation/bin/python tools/mutate.py --show MODULE    the survivors of the last time, each as a diff

It works in a copy of the tree (.venv-mutation/tree), so that nothing in the checkout is ever changed. Without a name it
goes on where it was stopped; a mutant of a function that has changed is tried again. Audits (`check_invariants`) are
what kills mutants, so they are not mutated themselves; nor are constants outside of functions, which mutmut leaves.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / ".venv-mutation" / "tree"
MUTMUT = Path(sys.executable).parent / "mutmut"

# The most deciding first.
MODULES = (
    "shedding", "admission", "forecast", "batching", "runs", "machine", "costs",
    "closing", "retries", "ledger", "roster", "fallback", "reserve",
)  # fmt: skip
COPIED = ("router", "shm", "tests")
TESTS = "tests/unit/router"
TESTED = (*MODULES, "models", "outbox", "build")
"""Whose tests there are taken along; those of other modules want more installed, and none of them is mutated."""
SIMULATED = "tests/sim/test_sim.py::test_every_promise_holds_in_a_seeded_world"
SEEDS = 2
"""Some 10,000 events in a few seconds: only mutants that every unit test let pass get so far."""
ADDRESS_SPACE = 4 * 2**30
"""A mutant may fill its memory in a loop."""

OPTIONS = ("--noconftest", "-p", "no:cacheprovider", "--import-mode=importlib", "--timeout=4")
"""No conftest.py: what it looks for, files and processes left behind, does not happen in modules that only decide, and
it would be half of the time."""
CONFIG = """
[tool.mutmut]
source_paths = ["router"]
only_mutate = {mutated}
also_copy = ["shm"]
timeout_multiplier = 4
pytest_add_cli_args = {options}
pytest_add_cli_args_test_selection = {tests}

[tool.pytest.ini_options]
pythonpath = ["."]
markers = ["slow", "timeout"]
"""

AUDIT = re.compile(r"^(    def check_invariants\(.*:)$", re.MULTILINE)

KILLED, TIMED_OUT, SURVIVED, UNTESTED, LEFT = "killed", "timed out", "survived", "no test", "not tried"
BECAME = {
    **dict.fromkeys((1, 3, -9, -11), KILLED),
    **dict.fromkeys((24, -24, 36, 152, 255), TIMED_OUT),
    **dict.fromkeys((5, 33), UNTESTED),
    None: LEFT,
}
"""By the exit code that mutmut keeps: 1 and 3 are pytest's, negative ones are signals. Any other survived."""


def prepare() -> None:
    """Bring the copy up to date; a file that is the same keeps its time, by which mutmut knows what is new."""
    for name in COPIED:
        for source in sorted((ROOT / name).rglob("*.py")):
            if source.parent == ROOT / TESTS and not source.stem.removeprefix("test_").startswith(TESTED):
                continue
            target = TREE / source.relative_to(ROOT)
            text = AUDIT.sub(r"\1  # pragma: no mutate block", source.read_text())
            if not target.exists() or target.read_text() != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
    # All of this stays the same when a test file is added, else mutmut would forget what it has found.
    mutated = [f"router/{module}.py" for module in MODULES]
    config = CONFIG.format(
        mutated=json.dumps(mutated), options=json.dumps(OPTIONS), tests=json.dumps([TESTS, SIMULATED])
    )
    (TREE / "pyproject.toml").write_text(config)
    # Which test reaches which function is asked anew each time: tests and calls may have changed.
    (TREE / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)


def run(names: list[str]) -> int:
    """Try these mutants (patterns), on one core; none: all that were not tried yet."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    environment = {**os.environ, "SIM_SEEDS": str(SEEDS), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [MUTMUT, "run", "--max-children", "1", *names], cwd=TREE, env=environment, check=False
    ).returncode


def outcomes(module: str) -> dict[str, str]:
    """Each mutant's name and what became of it."""
    meta = TREE / "mutants" / "router" / f"{module}.py.meta"
    if not meta.exists():
        return {}
    codes: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"]
    return {name: BECAME.get(code, SURVIVED) for name, code in codes.items()}


def report(modules: list[str]) -> None:
    print(f"\n| module | mutants | {KILLED} | {TIMED_OUT} | {SURVIVED} | {UNTESTED} | {LEFT} | killed of tried |")
    print("|" + " --- |" * 8)
    total: Counter[str] = Counter()
    for module in modules:
        counted = Counter(outcomes(module).values())
        total += counted
        line(module, counted)
    line("all", total)


def line(name: str, counted: Counter[str]) -> None:
    tried = counted.total() - counted[LEFT]
    share = f"{(counted[KILLED] + counted[TIMED_OUT]) / tried:.1%}" if tried else "-"
    counts = [counted[became] for became in (KILLED, TIMED_OUT, SURVIVED, UNTESTED, LEFT)]
    print(f"| {name} | " + " | ".join(map(str, [counted.total(), *counts, share])) + " |")


def survivors(module: str) -> list[str]:
    return [name for name, became in outcomes(module).items() if became in (SURVIVED, UNTESTED)]


def show(modules: list[str]) -> None:
    for name in (name for module in modules for name in survivors(module)):
        told = subprocess.run([MUTMUT, "show", name], cwd=TREE, capture_output=True, text=True, check=False)
        print(told.stdout)


def main() -> int:
    flags = {name for name in sys.argv[1:] if name.startswith("--")}
    modules = [name for name in sys.argv[1:] if name not in flags]
    unknown = [name for name in modules if name not in MODULES] + sorted(flags - {"--show", "--again"})
    if unknown:
        print(f"unknown: {', '.join(unknown)}; modules are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    if "--show" in flags:
        show(modules or list(MODULES))
        return 0
    prepare()
    names = [f"router.{module}.*" for module in modules]
    if "--again" in flags:
        names = [name for module in modules or MODULES for name in survivors(module)]
        if not names:
            print("nothing survived")
            return 0
    code = run(names)
    report(list(MODULES))
    return code


if __name__ == "__main__":
    sys.exit(main())
