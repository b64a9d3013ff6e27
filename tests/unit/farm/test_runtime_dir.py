"""Who may have a runtime directory, and what becomes of it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys

import pytest

from farm import runtime_dir
from farm.errors import ConfigError
from shm import paths

HOLD = """
import sys
from farm import runtime_dir
held = runtime_dir.claim(sys.argv[1], serves="fraud v1")
print("held", flush=True)
sys.stdin.read()
"""


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def bind(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(path)


def test_it_is_made_private_and_removed_with_all_that_is_in_it(tmp_path):
    path = str(tmp_path / "above" / "run")
    held = runtime_dir.claim(path, serves="wdbc v1")
    bind(paths.attach_path(path))
    assert [mode(path), mode(f"{path}/service"), mode(f"{path}/control")] == [0o700] * 3
    assert runtime_dir.holder_of(path) == runtime_dir.Holder(os.getpid(), "wdbc v1")
    held.release()
    assert not os.path.exists(path)


def test_one_that_was_there_before_stays_unless_it_is_temporary(tmp_path):
    runtime_dir.claim(str(tmp_path), serves="a").release()
    assert tmp_path.exists() and not list(tmp_path.iterdir())
    runtime_dir.claim(str(tmp_path), serves="a").release(remove=True)
    assert not tmp_path.exists()


def test_a_quarantine_outlives_its_farm_and_is_no_trouble_to_the_next_one(tmp_path):
    path = tmp_path / "run"
    held = runtime_dir.claim(str(path), serves="a")
    (path / paths.QUARANTINE_DIR).mkdir()
    held.release()
    assert not path.exists(), "an empty one goes"
    held = runtime_dir.claim(str(path), serves="a")
    case = path / paths.QUARANTINE_DIR / "case"
    case.mkdir(parents=True)
    held.release()
    assert [each.name for each in path.iterdir()] == [paths.QUARANTINE_DIR]
    runtime_dir.claim(str(path), serves="a").release()
    assert case.exists()


def test_a_living_farm_is_refused_by_name_and_pid(tmp_path):
    held = runtime_dir.claim(str(tmp_path), serves="fraud v1")
    try:
        with pytest.raises(runtime_dir.DirectoryHeld) as caught:
            runtime_dir.claim(str(tmp_path), serves="wdbc v1")
        assert f"(pid {os.getpid()}, serving fraud v1) already runs in {tmp_path}" in str(caught.value)
        assert runtime_dir.holder_of(str(tmp_path)).serves == "fraud v1"
    finally:
        held.release()


@pytest.mark.slow
def test_a_dead_farms_directory_is_taken_over(tmp_path):
    path = str(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        for place in (paths.attach_path(path), paths.control_path(path), paths.lane_path(path, 7)):
            bind(place)
        with pytest.raises(runtime_dir.DirectoryHeld, match=f"pid {holder.pid}"):
            runtime_dir.claim(path, serves="x")
        holder.kill()
        holder.wait(10)
    held = runtime_dir.claim(path, serves="x")
    assert os.listdir(f"{path}/service") == []
    assert os.listdir(f"{path}/control") == ["lock"]
    held.release()


def test_modes_of_a_directory_that_was_there_are_put_right(tmp_path):
    path = tmp_path / "run"
    path.mkdir(mode=0o755)
    (path / "control").mkdir(mode=0o777)
    held = runtime_dir.claim(str(path), serves="x")
    assert [mode(path), mode(path / "control")] == [0o700, 0o700]
    held.release()


def test_a_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        runtime_dir.claim(str(tmp_path / "run"), serves="x")
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "control").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        runtime_dir.claim(str(tmp_path / "run"), serves="x")


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is no directory"):
        runtime_dir.claim(str(tmp_path / "run"), serves="x")


def test_a_place_that_anybody_may_replace_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="anybody may replace it"):
        runtime_dir.claim(str(tmp_path / "run"), serves="x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_is_refused(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345"):
        runtime_dir.claim(str(path), serves="x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a second group for certain")
def test_a_service_group_may_look_for_sockets_and_nothing_else(tmp_path):
    path = str(tmp_path / "run")
    held = runtime_dir.claim(path, serves="x", group="daemon")
    bind(paths.attach_path(path))
    gid = os.stat(path).st_gid
    assert gid != 0
    assert [mode(path), mode(f"{path}/service"), mode(f"{path}/control")] == [0o750, 0o2750, 0o700]
    assert os.stat(paths.attach_path(path)).st_gid == gid
    held.release()


def test_an_unknown_group_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"service_group = 'nobody-has-this': this host has no such group"):
        runtime_dir.claim(str(tmp_path), serves="x", group="nobody-has-this")


def test_a_name_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path):
    path = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="a Unix socket takes 107"):
        runtime_dir.claim(str(path), serves="x")
    assert not path.exists()


def test_a_name_of_sixty_nine_bytes_fits():
    path = "/" + "x" * 68
    assert len(os.fsencode(paths.lane_path(path, runtime_dir.EPOCH_MAX))) <= 107


def test_the_first_usual_place_that_can_be_had_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert runtime_dir.choose(None) != str(tmp_path / "gone" / "shmfarm")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_dir.choose(None) == str(tmp_path / "shmfarm")
    monkeypatch.setenv("FARM_RUNTIME_DIR", str(tmp_path / "named"))
    assert runtime_dir.choose(None) == str(tmp_path / "named")
    assert runtime_dir.choose("/elsewhere") == "/elsewhere"


def test_a_directory_with_other_things_in_it_is_refused_and_left_as_it_is(tmp_path):
    other = tmp_path / "shared"
    other.mkdir()
    other.chmod(0o1777)
    (other / "letter").write_text("not ours")
    with pytest.raises(ConfigError, match="has other things in it"):
        runtime_dir.claim(str(other), serves="fraud v1")
    assert mode(other) == 0o1777
