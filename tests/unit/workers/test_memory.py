"""A worker's memory limit, in processes of their own: what is over it fails by name, and what follows is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import lyingmodels, models
from workers import memory

ROOT = Path(__file__).parents[3]


def limited(path: Path, memory_mib: int, feeds: list[dict[str, object]]) -> list[str]:
    """What becomes of a load and of runs on these feeds ({name: [dtype, values]}) in a process with this limit."""
    code = """
import json, sys
import numpy as np
from workers import memory
from workers.config import SessionConfig
from workers.session import LoadRefused, ModelFailed, load
path, memory_mib, feeds = json.loads(sys.argv[1])
memory.limit(memory_mib)
told = []
try:
    session = load(path, SessionConfig(), memory_mib)
except LoadRefused as error:
    told.append(str(error))
else:
    for feed in feeds:
        try:
            out = session.run({name: np.array(values, dtype) for name, (dtype, values) in feed.items()})
            told.append(str(list(out[0].shape)))
        except ModelFailed as error:
            told.append(str(error))
print(json.dumps(told))
"""
    got = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(path), memory_mib, feeds])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told: list[str] = json.loads(got.stdout)
    return told


@pytest.mark.slow
def test_runs_over_the_limit_fail_by_name_and_those_between_are_right(tmp_path):
    path = models.grown_output(tmp_path / "m.onnx")
    sizes = [10, 1 << 26, 10, 1 << 30, 1 << 40, 1 << 24, 1 << 29, 10, 3 << 23]
    told = limited(path, 512, [{"n": ["int64", [size]]} for size in sizes])
    for size, words in zip(sizes, told, strict=True):
        if size * 4 < 512 << 20:
            assert words == f"[{size}]"
        else:
            assert words.startswith("this takes more memory than the 512 MiB that memory_mib in the model's section")
            assert "ConstantOfShape" in words


@pytest.mark.slow
def test_a_loop_that_grows_for_ever_ends_at_the_limit(tmp_path):
    path = lyingmodels.endless(tmp_path / "m.onnx", grows=True)
    feeds = [{"x": ["float32", [[1, 1]]]}, {"x": ["float32", [[9e9, 1]]]}, {"x": ["float32", [[1, 1]]]}]
    first, grown, last = limited(path, 256, feeds)
    assert first == last == "[1, 2]"
    assert grown.startswith("this takes more memory than the 256 MiB that memory_mib")


@pytest.mark.slow
def test_a_model_larger_than_the_limit_is_refused_at_its_load(tmp_path):
    path = models.save(
        tmp_path / "m.onnx",
        [models.node("Add", ["x", "w"], ["y"])],
        [("x", "float32", ("N", 1 << 24))],
        [("y", "float32", ("N", 1 << 24))],
        {"w": np.zeros(1 << 24, np.float32)},
        checked=False,
    )
    (told,) = limited(path, 16, [])
    assert told.startswith(f"{path}: this takes more memory than the 16 MiB that memory_mib")


def test_only_what_says_that_memory_ran_out_is_explained_so():
    assert memory.ran_out(MemoryError()) and memory.ran_out(RuntimeError("std::bad_alloc"))
    assert not memory.ran_out(RuntimeError("indices element out of data bounds"))
    assert memory.explain(0) == "the host has not the memory that this takes"
