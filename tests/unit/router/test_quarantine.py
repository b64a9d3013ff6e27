"""The quarantine folder: what is in it, how it is read again, how large it may become, and a disk that is full."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm import quarantine as reading
from farm.errors import ConfigError
from router import quarantine
from router.poison import Input
from router.quarantine import CASES_MAX, FACTS_BYTES, Case, Quarantine
from shm.layout import Signature, Tensor, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", 1, ("N", 2)), TensorSpec("words", 8, ("N",))), (TensorSpec("y", 1, ("N",)),), False
)
WORDS = struct.pack("=2q", 0, 3) + "äb".encode()


def case(number: int = 1, payload_bytes: int = 8, kept: bool = True, model: str = "fraud") -> Case:
    if payload_bytes == 8:
        tensors = (Tensor(0, 1, (1, 2), 64, 8), Tensor(1, 8, (1,), 0, len(WORDS)))
        parts = (struct.pack("=2f", 1.5, number), WORDS)
    else:
        tensors = (Tensor(0, 1, (payload_bytes // 8, 2), 0, payload_bytes),)
        parts = (bytes(payload_bytes),)
    copied = Input(1, tensors, parts, bytes([number] * 16)) if kept else None
    size = sum(map(len, parts))
    return Case(model, 3, "/models/fraud.onnx", SIGNATURE, 1, size, copied, (4, 5), 1234, "checkout")


def keep(folder: Path, *cases: Case, mib_max: int = 1) -> list[Path]:
    """The folders, the oldest first. Each is kept at a moment of its own."""
    kept = Quarantine(str(folder), mib_max)
    for each in cases:
        assert kept.keep(each)
    return sorted(folder.iterdir())


@pytest.fixture
def clock(monkeypatch) -> Any:
    """Each look at the clock is a millisecond later."""
    now = [1_795_000_000.0]

    def tick() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(quarantine.time, "time", tick)
    return now


def test_a_case_is_read_again_as_it_was(tmp_path, clock):
    (where,) = keep(tmp_path / "quarantine", case())
    assert where.name.endswith("Z-fraud-01010101") and where.name.startswith("20261118T")
    facts, inputs = reading.load(where)
    np.testing.assert_array_equal(inputs["x"], np.array([[1.5, 1.0]], np.float32))
    assert inputs["words"].tolist() == ["äb"]
    assert (facts["model"], facts["version"], facts["path"]) == ("fraud", 3, "/models/fraud.onnx")
    assert (facts["workers"], facts["rows"]) == ([4, 5], 1)
    assert facts["client"] == {"pid": 1234, "title": "checkout"}
    assert facts["inputs"] == {"x": "x: float32[N, 2]", "words": "words: string[N]"}
    assert "quarantine.load" in facts["to_reproduce"]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (where.parent, where, where / "inputs.bin")}
    assert list(modes.values()) == [0o700, 0o700, 0o600]


def test_an_input_that_was_too_large_leaves_the_facts(tmp_path, clock):
    (where,) = keep(tmp_path / "quarantine", case(kept=False))
    assert where.name.endswith("-large")
    with pytest.raises(ConfigError, match=r"the input was not kept: \d+ bytes; at most"):
        reading.load(where)


def test_what_is_no_case_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"is no quarantined input: .*No such file"):
        reading.load(tmp_path)


def test_the_oldest_go_when_there_are_too_many_bytes(tmp_path, clock):
    size = 256 * 1024
    left = keep(tmp_path / "quarantine", *(case(n, size) for n in range(6)))
    assert [path.name[-1] for path in left] == ["3", "4", "5"]
    assert sum((path / "inputs.bin").stat().st_size + FACTS_BYTES for path in left) <= 2**20


def test_the_oldest_go_when_there_are_too_many(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(quarantine, "CASES_MAX", 3)
    assert CASES_MAX >= 10
    left = keep(tmp_path / "quarantine", *(case(n) for n in range(5)))
    assert [path.name[-1] for path in left] == ["2", "3", "4"]


def test_what_somebody_else_put_there_stays(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(quarantine, "CASES_MAX", 1)
    folder = tmp_path / "quarantine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert [path.name for path in keep(folder, case(1), case(2))][1:] == ["notes.txt"]


def test_a_half_written_case_of_a_router_that_died_goes_like_any_other(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(quarantine, "CASES_MAX", 1)
    folder = tmp_path / "quarantine"
    (folder / "20200101T000000.000Z-fraud-00000001.part").mkdir(parents=True)
    assert len(keep(folder, case())) == 1


def test_a_case_that_is_larger_than_all_is_not_kept_and_nothing_is_made(tmp_path):
    assert not Quarantine(str(tmp_path / "quarantine"), 1).keep(case(1, 2**20))
    assert not Quarantine(str(tmp_path / "quarantine"), 0).keep(case())
    assert not (tmp_path / "quarantine").exists()


def test_a_model_name_is_no_path(tmp_path, clock):
    (where,) = keep(tmp_path / "quarantine", case(model="../../etc/ü x"))
    assert where.parent == tmp_path / "quarantine"
    assert where.name.split("-")[1] == "______etc___x"


@pytest.mark.parametrize("at", ["makedirs", "mkdir", "_write", "rename"])
def test_a_disk_that_is_full_is_a_line_in_the_log_and_leaves_nothing(tmp_path, at, monkeypatch, caplog):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quarantine if at == "_write" else os, at, full)
    folder = tmp_path / "quarantine"
    assert not Quarantine(str(folder), 1).keep(case())
    assert [record.getMessage() for record in caplog.records] == [
        f"quarantine_failed folder={folder} why='No space left on device'"
    ]
    assert not folder.exists() or not list(folder.iterdir())
