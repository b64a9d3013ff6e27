"""`workers = "auto"`: as many as the measured capacity and the expected load ask for, within the CPUs there are."""

from __future__ import annotations

import json
import os

import pytest

from farm import ConfigError, capacity, config

MEASURED = {"format": 1, "model": "m", "workers": 2, "rows_per_second": 2000.0, "rows_per_second_per_worker": 1000.0}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A configuration of one model on so many CPUs."""

    def make(cpus: float = 16, measured: object = None, **keys: object) -> config.Config:
        monkeypatch.setattr(capacity, "usable_cpus", lambda: cpus)
        if measured is not None:
            (tmp_path / "c.json").write_text(json.dumps(measured))
            keys["capacity"] = "c.json"
        table = {"path": "m.onnx", "workers": "auto"} | keys
        return config.from_tables({"models": {"m": table}}, source="farm.toml", base_dir=str(tmp_path))

    return make


@pytest.mark.parametrize(("expected", "workers"), [(100.0, 1), (1600.0, 2), (1601.0, 3), (1e6, 15)])
def test_they_carry_the_expected_load_at_four_fifths_of_what_was_measured(made, expected, workers):
    assert made(measured=MEASURED, rows_per_second=expected).models["m"].workers == workers


@pytest.mark.parametrize(("cpus", "threads", "workers"), [(16, 1, 15), (16, 4, 3), (2, 1, 1), (1, 1, 1), (0.5, 1, 1)])
def test_without_a_load_or_a_measurement_they_are_what_the_cpus_beside_the_router_carry(made, cpus, threads, workers):
    assert made(cpus, intra_op_threads=threads).models["m"].workers == workers
    assert made(cpus, MEASURED, intra_op_threads=threads).models["m"].workers == workers
    assert made(cpus, intra_op_threads=threads, rows_per_second=1.0).models["m"].workers == workers


def test_two_models_share_the_cpus(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "usable_cpus", lambda: 9)
    tables = {name: {"path": "m.onnx", "workers": "auto"} for name in "ab"} | {"c": {"path": "m.onnx"}}
    loaded = config.from_tables({"models": tables}, source="farm.toml", base_dir=str(tmp_path))
    assert [model.workers for model in loaded.models.values()] == [4, 4, 2]


def test_the_option_goes_over_what_a_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "usable_cpus", lambda: 6)
    loaded = config.for_models({"m": "m.onnx"}, "farm.Farm", {"workers": "auto"})
    assert loaded.models["m"].workers == 5


def test_admission_is_told_what_one_worker_carries(made):
    (model,) = config.router_config(made(measured=MEASURED, workers=3)).models
    assert model.worker_rows_per_second == 1000.0
    (model,) = config.router_config(made()).models
    assert model.worker_rows_per_second == 0.0


@pytest.mark.parametrize("measured", [{}, [], MEASURED | {"format": 2}, MEASURED | {"rows_per_second_per_worker": 0}])
def test_a_file_that_is_none_is_refused_by_name_and_with_what_makes_one(made, measured):
    with pytest.raises(ConfigError, match=r"farm.toml: \[models.m\] capacity = .*c.json.*sweep --capacity"):
        made(measured=measured)


def test_a_file_that_is_not_there_is_refused(made):
    with pytest.raises(ConfigError, match=r"\[models.m\] capacity = .*No such file"):
        made(capacity="gone.json")


def test_what_the_usable_cpus_are_is_the_kernels_word():
    assert capacity.usable_cpus() > 0


def test_a_model_of_which_one_worker_carries_next_to_nothing_gets_what_there_is_room_for(made):
    measured = MEASURED | {"rows_per_second_per_worker": 1e-300}
    assert made(measured=measured, rows_per_second=1e9).models["m"].workers == 15


@pytest.mark.parametrize("path", ["a\0b", "/dev/zero"], ids=["nul", "device"])
def test_a_path_that_leads_to_no_file_is_refused(made, path):
    with pytest.raises(ConfigError, match=r"\[models.m\] capacity = "):
        made(capacity=path)


def test_a_file_that_is_a_pipe_is_refused_and_not_waited_for(made, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no regular file"):
        made(capacity="pipe")


def test_a_file_of_lists_within_lists_is_refused(made, tmp_path):
    (tmp_path / "deep.json").write_text('{"host":' + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"\[models.m\] capacity = "):
        made(capacity="deep.json")
