"""Scenario files: each can be run as it stands, and what is misspelt in one is refused by name."""

from __future__ import annotations

import tomllib

import pytest

from bench import scenario, sweep
from bench.scenario import DIRECTORY
from farm.errors import ConfigError

ALL = (
    "audio",
    "bidding",
    "client-killed",
    "flood",
    "memory-spike",
    "mixed",
    "overload",
    "payload",
    "router-killed",
    "scaling",
    "services",
    "sessions",
    "soak",
    "sub5",
    "text",
    "vision-line",
    "worker-frozen",
    "worker-killed",
)
FAULTS = ("worker-killed", "worker-frozen", "router-killed", "client-killed", "memory-spike")
SMALL = 'about = "x"\nmodels = ["bidding"]\n'


def read(text):
    return scenario.read(tomllib.loads(text), source="file.toml", name="file")


def test_every_scenario_is_there():
    assert set(scenario.names()) >= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_scenario_can_be_run_as_it_stands(name, tmp_path):
    read_one = scenario.load(name)
    steps = scenario.steps_of(read_one, str(tmp_path))
    assert len(steps) == len(read_one.steps)
    for step in steps:
        assert step.scenario == name
        assert {stream.model for stream in step.load.streams} <= {model.name for model in step.case.models}
        assert step.load.open_loop or step.of_capacity or step.load.in_flight


@pytest.mark.parametrize("name", ALL)
def test_quick_run_is_short(name, tmp_path):
    steps = scenario.steps_of(scenario.load(name), str(tmp_path), quick=True)
    assert len(steps) <= 2
    assert sum(step.load.seconds for step in steps) <= 2.0


@pytest.mark.parametrize("name", FAULTS)
def test_scenario_of_a_fault_strikes_as_it_is_called(name):
    assert scenario.load(name).fault.kind == name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (SMALL + "secnds = 3\n[[steps]]\nlabel='a'\nrate=1\n", r"secnds.*did you mean 'seconds'"),
        (SMALL + "[[steps]]\nlabel='a'\nrats=1\n", r"rats.*did you mean 'rate'"),
        (SMALL + "[[steps]]\nlabel='a'\nrate=-1\n", r"rate = -1"),
        (SMALL + "[[steps]]\nlabel='a'\n", r"number 1 must have exactly one of rate"),
        (SMALL + "[[steps]]\nlabel='a'\nrate=1\nin_flight=1\n", r"exactly one of rate"),
        (SMALL + "[[steps]]\nlabel='a'\nrate=1\n[[steps]]\nlabel='a'\nrate=2\n", r"label 'a' of another step"),
        (SMALL + "[[steps]]\nlabel='a'\nrate=1\narrivals='trace'\n", r"must have trace"),
        (SMALL + "[[steps]]\nlabel='a'\nin_flight=1\ncaller='fork'\n", r"caller"),
        (SMALL + "[[streams]]\nmodel='text'\n[[steps]]\nlabel='a'\nrate=1\n", r"models does not name it"),
        (SMALL + "[fault]\nkind='flood'\n[[steps]]\nlabel='a'\nrate=1\n", r"kind = \"flood\""),
        (SMALL + "name='b'\n[[steps]]\nlabel='a'\nrate=1\n", r"leave the key 'name' out"),
        (SMALL + "steps=[]\n", r"no step"),
        ("models=['bidding']\n[[steps]]\nlabel='a'\nrate=1\n", r"about"),
    ],
)
def test_what_is_wrong_is_refused_by_name(text, named):
    with pytest.raises(ConfigError, match=r"file\.toml.*" + named):
        read(text)


def test_unknown_scenario_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"biding.*bidding"):
        scenario.load("biding")


def test_several_deadlines_make_as_many_streams(tmp_path):
    steps = scenario.steps_of(scenario.load("overload"), str(tmp_path))
    mixed = [step for step in steps if "8 and 60 ms" in step.load.label]
    assert {stream.deadline_ms for step in mixed for stream in step.load.streams} == {8.0, 60.0}
    assert [step.of_capacity for step in mixed] == [0.5, 1, 2, 3, 5]


def test_sweep_goes_from_a_tenth_to_three_times_capacity():
    wanted = sweep.Wanted(
        model="text", workers=2, deadline_ms=20.0, targets=["farm"], seconds=1.0, repeats=1, quick=False
    )
    factors = [step.of_capacity for step in sweep.scenario_of(wanted).steps]
    assert (factors[0], factors[-1]) == (0.1, 3.0)


def test_no_file_of_a_scenario_holds_more_than_it_needs():
    assert all(len(path.read_text().splitlines()) <= 90 for path in DIRECTORY.glob("*.toml"))
