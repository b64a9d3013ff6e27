"""The bench harness against a real farm: a run gives figures that agree with each other, whatever happens in it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import result, scenario, sweep
from bench.callers import CALLERS
from bench.cli import main
from bench.run import Options, measure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RATE = 300

SCENARIO = f"""
about = "A second of a small load."
models = ["bidding"]
workers = 1
seconds = 1.0
warm_s = 0.2
repeats = 2
late_ms_max = 5000.0

[[steps]]
label = "open"
rate = {RATE}
generators = 2

[[steps]]
label = "closed"
in_flight = 4
caller = "CALLER"
"""


@pytest.fixture
def scenario_of(tmp_path):
    def write(caller="submit", more=""):
        path = tmp_path / "small.toml"
        path.write_text(SCENARIO.replace("CALLER", caller) + more)
        return scenario.load(str(path))

    return write


def test_run_gives_figures_that_agree_with_each_other(scenario_of, tmp_path, capsys):
    scenario_of()
    path = tmp_path / "out.json"
    assert main(["run", str(tmp_path / "small.toml"), "-o", str(path), "--no-report"]) == 0
    got = result.load(path)
    assert [(run.label, run.repeat) for run in got.runs] == [("open", 0), ("closed", 0), ("open", 1), ("closed", 1)]
    for run in got.runs:
        assert run.target == "farm" and run.group == "small"
        assert run.void is None
        assert run.asked == sum(run.outcomes.values()) > 0
        assert run.good <= run.answered == run.outcomes["model"] == run.latency.count
        assert run.latency.p50 <= run.latency.p99 <= run.latency.max * 1.01
        assert {process.role for process in run.processes} == {"supervisor", "router", "worker"}
        assert run.cpu_us_per_request > 0 and run.pss_mib > 0 and 0 < run.start_s < 60
        assert run.stages["run"] > 0
    opened = got.runs[0]
    assert opened.offered == RATE
    assert opened.asked == pytest.approx(RATE, rel=0.4)
    assert opened.uncorrected.p50 <= opened.latency.p50 * 1.01
    assert opened.asked == got.runs[2].asked, "both repeats follow one schedule"
    assert got.host["cpu"] and got.host["versions"]["onnxruntime"]
    told = capsys.readouterr()
    assert "A second of a small load." in told.out
    assert "left]" in told.err
    # In a process of its own: matplotlib keeps its fonts' files open.
    drawn = bench(["report", "out.json"], tmp_path)
    out, err = drawn.communicate(timeout=60)
    assert drawn.returncode == 0, err
    assert "report: out/index.html" in out
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search("(src|href)=.https?:", page)
    pictures = {each.name for each in (tmp_path / "out").glob("*.png")}
    assert pictures == {"small-latency.png", "small-stages.png"}


def bench(arguments, directory):
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bench", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_caller_keeps_its_requests_in_flight(tmp_path):
    path = tmp_path / "callers.toml"
    steps = "".join(f'[[steps]]\nlabel = "{caller}"\ncaller = "{caller}"\nin_flight = 4\n' for caller in CALLERS)
    path.write_text('about = "Every kind of caller."\nmodels = ["bidding"]\nworkers = 1\n' + steps)
    got = measure([scenario.load(str(path))], Options(seconds=0.3, repeats=1))
    assert not got.left_out
    assert {run.label for run in got.runs} == set(CALLERS)
    for run in got.runs:
        assert set(run.outcomes) == {"model"}
        assert run.answered > 10


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_client_in_c_is_answered_by_the_model_and_names_what_is_refused(tmp_path):
    path = tmp_path / "lean.toml"
    steps = '[[steps]]\nlabel = "closed"\ncaller = "clients"\nin_flight = 4\n[[steps]]\nlabel = "open"\nrate = 300\n'
    late = '[[steps]]\nlabel = "too late"\ncaller = "clients"\nin_flight = 1\ndeadline_ms = 0.001\n'
    path.write_text('about = "The farm asked in C."\nmodels = ["bidding"]\ntargets = ["farm-c"]\n' + steps + late)
    got = measure([scenario.load(str(path))], Options(seconds=0.3, repeats=1))
    assert not got.left_out
    closed, opened, refused = (
        next(run for run in got.runs if run.label == label) for label in ("closed", "open", "too late")
    )
    for run in (closed, opened):
        assert set(run.outcomes) == {"model"} and run.answered > 10
    assert "model" not in refused.outcomes
    assert all(how.partition("/")[0] in ("expired", "shed") for how in refused.outcomes)


@pytest.mark.parametrize("kind", ["worker-killed", "client-killed"])
def test_fault_is_marked_and_the_run_goes_on(scenario_of, kind):
    got = measure([scenario_of(more=f'\n[fault]\nkind = "{kind}"\nat = 0.3\n')], Options(repeats=1))
    struck = got.runs[0]
    assert [mark.what for mark in struck.marks] == [kind.replace("-", " ")]
    assert struck.answered > 0
    assert struck.notes.get("generators_killed", 0) == (kind == "client-killed")


def test_sessions_without_a_server_are_measured_beside_the_farm(scenario_of):
    names = ["session-shared", "session-per-process"]
    got = measure([scenario_of()], Options(seconds=0.3, repeats=1, targets=names))
    assert {run.target for run in got.runs} == set(names)
    assert {run.label for run in got.runs} == {"closed"}
    assert all("open loop" in left for left in got.left_out)


def test_capacity_found_by_a_sweep_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.run.CAPACITY_S", 0.3)
    monkeypatch.setattr("bench.sweep.QUICK_FACTORS", (0.05, 0.2))
    wanted = sweep.Wanted(
        model="bidding", workers=1, deadline_ms=2000.0, targets=["farm"], seconds=0.3, repeats=1, quick=True
    )
    got = measure([sweep.scenario_of(wanted)], Options(seconds=0.3))
    knee = sweep.knee_of(got, "farm")
    if knee is None:
        pytest.skip("this host kept up with no load at all")
    sweep.write_capacity(tmp_path / "capacity.json", wanted, knee, got.host)
    text = (tmp_path / "capacity.json").read_text()
    assert '"workers": 1' in text and '"rows_per_second"' in text


def test_interrupted_run_keeps_and_reports_what_is_there(scenario_of, tmp_path):
    scenario_of()
    path = tmp_path / "out.json"
    asked = ["run", "small.toml", "--seconds", "2", "--repeats", "9", "-o", "out.json", "--no-report"]
    process = bench(asked, tmp_path)
    try:
        end = time.monotonic() + 60
        while not path.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert "interrupted: the rest was not measured" in out
    got = result.load(path)
    assert got.interrupted and got.runs


def test_unknown_names_are_refused_before_anything_starts(capsys):
    assert main(["run", "biding"]) == 2
    assert "bidding" in capsys.readouterr().err
    assert main(["run", "bidding", "--targets", "frm"]) == 2
    assert "known are farm" in capsys.readouterr().err
