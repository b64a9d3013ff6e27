"""Arenas are mapped when needed, kept in bounds, and gone when the router says so."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from shm import segment
from shm.errors import FrameRefused, SegmentRefused
from shm.worker import ArenaOpened
from tests import models
from workers.arenas import Arenas


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:arena-test")


def opened(arenas: Arenas, session: int) -> None:
    fds = (segment.create_sealed("arena-test", 4096), segment.create_sealed("arena-test", 4096))
    arenas.open(ArenaOpened(session, 4, 1024), fds)


def test_mapping_is_made_at_first_use_and_dropped_on_close():
    before = len(os.listdir("/proc/self/fd"))
    arenas = Arenas(4)
    opened(arenas, 1)
    assert mapped() == 0
    arena = arenas.get(1)
    assert mapped() == 2 and arenas.get(1) is arena
    del arena
    arenas.close([1, 99])
    assert mapped() == 0 and len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FrameRefused, match="was not opened"):
        arenas.get(1)


def test_mappings_above_the_limit_go_after_the_run_and_come_back():
    arenas = Arenas(2)
    for session in range(4):
        opened(arenas, session)
        arenas.get(session)
    assert mapped() == 8 and arenas.over
    arenas.trim()
    assert mapped() == 4 and not arenas.over
    arenas.get(0)
    assert arenas.over
    arenas.close_all()
    assert mapped() == 0


def test_unsealed_and_short_files_are_refused():
    arenas = Arenas(2)
    fds = (segment.create("arena-test"), segment.create("arena-test"))
    arenas.open(ArenaOpened(1, 4, 1024), fds)
    with pytest.raises(SegmentRefused, match="can still change size"):
        arenas.get(1)
    fds = (segment.create_sealed("arena-test", 100), segment.create_sealed("arena-test", 100))
    arenas.open(ArenaOpened(2, 4, 1024), fds)
    with pytest.raises(SegmentRefused, match="100 bytes"):
        arenas.get(2)
    arenas.close_all()


def test_in_is_read_only():
    arenas = Arenas(2)
    opened(arenas, 1)
    arena = arenas.get(1)
    with pytest.raises(TypeError):
        arena.in_map[0] = 1
    arena.out_map[0] = 1
    del arena
    arenas.close_all()


def test_unmappable_arena_fails_its_member_only(rig, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"))
    good = r.client()
    bad = r.client()
    r.arenas.close([bad.number])
    r.arenas.open(bad.opened, (segment.create("arena-test"), segment.create("arena-test")))
    x = np.ones((1, 64), np.float32)
    members = [good.rows(r.session, 0, x), bad.rows(r.session, 0, x)]
    done = r.run(*members)
    assert [m.reason for m in done.members] == [0, 52]
    assert "could not be mapped" in done.members[1].message
    assert good.declared(r.session, members[0])[0].tobytes() == r.session.run({"x": x})[0].tobytes()


def test_one_run_may_name_more_arenas_than_are_kept(rig, rng, tmp_path):
    r = rig(models.mlp(tmp_path / "m.onnx"), arenas_max=3)
    clients = [r.client(4, 512) for _ in range(8)]
    for _ in range(3):
        xs = rng.standard_normal((8, 64)).astype(np.float32)
        members = [c.rows(r.session, 1, xs[i : i + 1]) for i, c in enumerate(clients)]
        done = r.run(*members)
        assert done.members == []
        want = r.session.run({"x": xs})[0]
        have = [c.declared(r.session, m)[0] for c, m in zip(clients, members, strict=True)]
        assert np.concatenate(have).tobytes() == want.tobytes()


def test_prepared_runs_are_bounded(rig, tmp_path, monkeypatch):
    monkeypatch.setattr("workers.arenas.BOUND_MAX", 5)
    r = rig(models.mlp(tmp_path / "m.onnx"))
    client = r.client()
    x = np.ones((1, 64), np.float32)
    for slot in range(23):
        member = client.rows(r.session, slot, x)
        assert r.run(member).members == []
    assert len(r.arenas.get(client.number).bound) <= 5
