"""Where a farm is looked for, and what its sockets are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shm import paths


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FARM_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_the_variable_alone_counts_when_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/somewhere")
    monkeypatch.setenv("FARM_RUNTIME_DIR", "here")
    monkeypatch.chdir(tmp_path)
    assert paths.runtime_dir_candidates() == [str(tmp_path / "here")]


def test_the_usual_places_come_in_order_and_differ_by_uid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uid = os.geteuid()
    usual = [f"/run/shmfarm-{uid}", str(tmp_path / f"shmfarm-{uid}")]
    assert paths.runtime_dir_candidates() == usual
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert paths.runtime_dir_candidates() == ["/run/user/7/shmfarm", *usual]
    monkeypatch.setenv("FARM_RUNTIME_DIR", "")
    assert len(paths.runtime_dir_candidates()) == 3


def test_looking_makes_no_directory(tmp_path: Path) -> None:
    paths.runtime_dir_candidates()
    assert not list(tmp_path.iterdir())


def test_service_and_control_sockets_lie_in_separate_folders() -> None:
    assert paths.attach_path("/r") == "/r/service/attach.sock"
    assert paths.lane_path("/r", 3) == "/r/service/requests-3.sock"
    assert paths.control_path("/r") == "/r/control/control.sock"
    assert paths.lock_path("/r") == "/r/control/lock"


def test_each_life_of_the_router_has_a_lane_of_its_own() -> None:
    assert paths.lane_path("/r", 3) != paths.lane_path("/r", 4)
