"""`farm demo` as a newcomer runs it."""

from __future__ import annotations

import re
import subprocess

import pytest


@pytest.mark.slow
def test_demo_answers_by_model_and_by_rule_then_leaves_nothing(farm_command, tmp_path):
    told = subprocess.run(
        [*farm_command, "demo"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert not told.stderr
    assert max(map(len, told.stdout.splitlines())) <= 100
    accuracy = re.search(r"(\d+) of (\d+) answers of the model are right .*, \d+ of (\d+) by rule", told.stdout)
    assert accuracy
    right, by_model, by_rule = map(int, accuracy.groups())
    assert by_model > 160  # a machine that stalls for 100 ms has rules answer there too
    assert right / by_model > 0.95
    assert by_rule >= 1
    assert re.search(r"^latency +p50 [\d.]+ ms, p99 [\d.]+ ms", told.stdout, re.MULTILINE)
    assert re.search(
        r"^too late  record \d+, due in [\d.]+ ms: answered by rule \w+ in [\d.]+ ms \(\w+\)$", told.stdout, re.M
    )
    assert re.search(r"^too much  40 .* Overloaded in .* \(queue_full\), retry_after_ms=\d+$", told.stdout, re.M)
    assert "Nothing left behind" in told.stdout
    assert not list(tmp_path.iterdir())
