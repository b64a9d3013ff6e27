"""Bytes against every part that takes some from outside, in short: the same code as `python -m tests.fuzz all`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.table import CORPUS, TARGETS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 8


def test_every_folder_of_the_corpus_has_a_target_and_all_are_small():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_crash_hang_or_swell_it(name, tmp_path):
    told = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS)),
            *("--json", str(tmp_path / "told.json"), "--found", str(tmp_path / "found")),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    (row,) = json.loads((tmp_path / "told.json").read_text())
    assert row["executions"] > len(list(TARGETS[name].corpus.iterdir()))
    assert row["fault"] is None
