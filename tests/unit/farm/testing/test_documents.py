"""docs/TESTING.md: its examples run as they stand, and it names every ending that there is to script."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import farm
from farm.testing.script import Endings

ROOT = Path(__file__).resolve().parents[4]
DOCUMENT = (ROOT / "docs" / "TESTING.md").read_text()
ALONE = ("-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio")
"""The document promises that its examples need no other plugin."""
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process and a directory of its own, with the farm that is tested here."""
    plugins = {entry.name for entry in importlib.metadata.entry_points(group="pytest11")}
    loaded = () if "shmfarm" in plugins else ("-p", "farm.testing.plugin")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *loaded, *ALONE, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(str(farm.__file__)).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_document_has_a_service_and_its_tests():
    assert list(FILES) == ["checkout.py", "test_checkout.py", "test_asyncio.py"]
    assert DOCUMENT.count("```python") == len(FILES)


@pytest.mark.slow
def test_examples_of_the_document_pass(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    told = run_pytest(tmp_path, "-q")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "5 passed" in told.stdout


@pytest.mark.slow
def test_fixture_is_known_to_pytest_by_its_docstring(tmp_path):
    (tmp_path / "test_nothing.py").write_text("")
    told = run_pytest(tmp_path, "--fixtures")
    assert "fake_farm" in told.stdout
    assert "without models" in told.stdout


def test_table_names_every_ending():
    rows = [line.split("|")[1] for line in DOCUMENT.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert named == {name for name in vars(Endings) if not name.startswith("_")}
