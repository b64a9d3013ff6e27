"""What the documents say is so: commands exist, examples run, tables agree with the code, links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import farm
from farm import embedded, errors
from shm.endings import Ending, Reason

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text()

TESTS = {
    name
    for path in ROOT.glob("tests/**/test_*.py")
    for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}

ATTEMPTS = 5

REFUSALS = {
    "shed": (Ending.SHED, errors.Overloaded),
    "expired": (Ending.EXPIRED, errors.DeadlineExceeded),
    "invalid": (Ending.INVALID, errors.InvalidRequest),
    "failed": (Ending.FAILED, errors.RunFailed),
    "cancelled": (Ending.CANCELLED, errors.Cancelled),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head, each cell stripped."""
    _, _, rest = README.partition(f"\n## {heading}")
    assert rest, f"README.md has no section {heading!r}"
    rows = [line for line in rest.split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_a_document_are_there(document):
    for name in re.findall(r"`((?:[a-z_]+/)+[A-Za-z_]+(?:\.[a-z]+)?)`", document.read_text()):
        assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_every_barrier_of_the_page_on_threats_has_a_test_that_is_there():
    rows = re.findall(
        r"^\| (?!Threat|---)(.+?) \| .+? \| (.+) \|$", (ROOT / "docs" / "THREATS.md").read_text(), re.MULTILINE
    )
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(rows) > 10
    for threat, tests in rows:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named and set(named) <= there, f"{threat}: {set(named) - there or 'names no test'}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_named_in_a_document_are_there(document):
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", document.read_text()))
    assert named <= TESTS, f"{document.name} names tests that are not there: {sorted(named - TESTS)}"


def test_make_targets_in_the_readme_are_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", " ".join(re.findall(r"`[^`]+`|^make .*$", README, re.MULTILINE))))
    assert named
    assert named <= targets


@pytest.mark.slow
def test_every_verb_is_documented_and_every_documented_verb_has_help_with_an_example(farm_command):
    from farm.cli import VERBS

    documented = set(re.findall(r"^farm ([a-z]+)", "".join(blocks("sh")), re.MULTILINE))
    documented |= set(re.findall(r"`farm ([a-z]+)", README))
    assert documented == set(VERBS)
    for verb in sorted(documented):
        told = subprocess.run([*farm_command, verb, "--help"], capture_output=True, text=True, timeout=60, check=False)
        assert told.returncode == 0, told.stderr
        assert f"farm {verb}" in told.stdout.split("xample", 1)[-1], f"farm {verb} --help shows no example"


def test_table_of_errors_agrees_with_the_code():
    rows = table("Errors, and HTTP codes")
    named = {row[0].strip("`"): row for row in rows}
    kinds = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    kinds = {name: kind for name, kind in kinds.items() if issubclass(kind, errors.FarmError)}
    del kinds["FarmError"]
    assert named.keys() == kinds.keys()
    for name, kind in kinds.items():
        _, also, reasons, http = named[name]
        beyond = {base.__name__ for base in kind.__bases__} - {"FarmError"}
        assert set(re.findall(r"`(\w+)`", also)) == beyond, name
        for reason in re.findall(r"`(\w+)`", reasons):
            assert reason.upper() in Reason.__members__, f"{name}: {reason} is no reason"
        assert re.match(r"[45]\d\d\b|none", http), name
        assert getattr(farm, name) is kind


def test_table_of_endings_agrees_with_the_code():
    rows = {row[0]: row[1] for row in table("How a request ends")}
    for ending, (number, kind) in REFUSALS.items():
        assert f"`{kind.__name__}`" in rows.pop(ending)
        assert Ending[ending.upper()] is number
        assert issubclass(type(errors.refusal(number, 0, None, request_id=1, model="m")), kind)
    for source, cell in rows.items():
        assert f'`source="{source}"`' in cell
        assert source == "client" or source.upper() in Ending.__members__


@pytest.fixture(scope="module")
def runtime_dir():
    with farm.Farm(config=str(embedded.CONFIG_PATH)) as running:
        yield running.endpoint


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"), ids=["sync", "asyncio", "whole_farm"])
def test_example_runs(block, runtime_dir, tmp_path):
    """Its deadlines are a service's, 40 ms: a machine that stalls may miss one, but not again and again."""
    for _ in range(ATTEMPTS):
        told = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            env={**os.environ, "FARM_RUNTIME_DIR": str(runtime_dir)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert told.returncode == 0, told.stderr
        assert not told.stderr
        assert told.stdout.strip()
        if "no answer" not in told.stdout:
            return
    pytest.fail(f"{ATTEMPTS} times: {told.stdout}")


@pytest.mark.parametrize("block", blocks("python"), ids=["sync", "asyncio", "whole_farm"])
def test_example_is_short(block):
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
