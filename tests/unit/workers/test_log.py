"""Log lines stay lines, and what clients can cause does not fill the log; a mask that cannot be set costs one line."""

from __future__ import annotations

import os

import pytest

from workers import log as log_module
from workers.affinity import pin
from workers.log import log, log_seldom


def test_line_ends_and_blanks_are_tamed(capfd):
    log("happened", a=1, b="two words\nand a line", c="")
    assert capfd.readouterr().err == 'happened a=1 b="two words and a line" c=""\n'


def test_seldom_says_the_same_once(capfd, monkeypatch):
    monkeypatch.setattr(log_module, "_last", {})
    for _ in range(5):
        log_seldom("flood", n=1)
    assert capfd.readouterr().err == "flood unsaid=0 n=1\n"


@pytest.mark.parametrize("cpus", [(1_000_000,), (1023,)])
def test_mask_that_cannot_be_set_is_one_line(capfd, cpus):
    before = os.sched_getaffinity(0)
    pin(cpus)
    assert os.sched_getaffinity(0) == before
    assert capfd.readouterr().err.startswith("affinity_refused cpus=")
    pin(())
    assert os.sched_getaffinity(0) == before
