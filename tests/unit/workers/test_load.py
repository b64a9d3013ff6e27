"""Loading, the probe and the warm-up: what a worker knows of a model before its first request."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import workers
from tests import models
from workers import probe
from workers.buffers import Buffers
from workers.config import SessionConfig
from workers.session import LoadRefused, load
from workers.warmup import sizes, warm_up


def loaded(path):
    return load(str(path), SessionConfig())


@pytest.mark.parametrize(
    ("make", "inputs", "outputs"),
    [
        (models.mlp, ["x: float32[N, 64]"], ["y: float32[N, 1]"]),
        (models.scalar, ["x: float32[]"], ["y: float32[]", "pair: float32[1]"]),
        (models.no_input, [], ["y: float32[2, 2]"]),
        (models.optional_input, ["x: float32[N, 3]", "factor: float32[1]"], ["y: float32[N, 3]"]),
        (models.odd_names, ["in put/0:0: float32[N, 2]"], ["out-put:0: float32[N, 2]"]),
        (models.grown_output, ["n: int64[1]"], ["y: float32[?]"]),
        (models.strings, ["s: string[N]"], ["loud: string[N]", "itself: string[N]"]),
    ],
)
def test_signature_is_what_the_model_declares(tmp_path, make, inputs, outputs):
    signature = loaded(make(tmp_path / "m.onnx")).signature
    assert [str(s) for s in signature.inputs] == inputs
    assert [str(s) for s in signature.outputs] == outputs
    assert [s.optional for s in signature.inputs] == [s.name == "factor" for s in signature.inputs]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (models.broken, "INVALID_PROTOBUF"),
        (models.sequence, r"output 'y' has type seq\(tensor\(float\)\)"),
        (models.bfloat16, r"output 'y' has type tensor\(bfloat16\)"),
    ],
)
def test_model_that_cannot_be_served_is_refused_with_the_reason(tmp_path, make, reason):
    with pytest.raises(LoadRefused, match=reason) as refused:
        loaded(make(tmp_path / "m.onnx"))
    assert "m.onnx" in str(refused.value)


def test_threads_are_as_many_as_configured(tmp_path):
    path = str(models.mlp(tmp_path / "m.onnx"))
    before = len(os.listdir("/proc/self/task"))
    one = load(path, SessionConfig())
    assert len(os.listdir("/proc/self/task")) == before
    three = load(path, SessionConfig(intra_op_threads=3))
    assert len(os.listdir("/proc/self/task")) == before + 2
    six = load(path, SessionConfig(intra_op_threads=3, inter_op_threads=2))
    assert len(os.listdir("/proc/self/task")) > before + 4
    del one, three, six


@pytest.mark.parametrize("level", ["off", "basic", "extended", "all"])
def test_every_optimization_level_loads(tmp_path, level):
    load(str(models.mlp(tmp_path / "m.onnx")), SessionConfig(optimization=level, spinning=True))


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(LoadRefused, match=r"nowhere\.onnx.*No such file or directory"):
        loaded(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize(
    "make",
    [
        models.mlp,
        models.two_in_two_out,
        models.two_free_dims,
        models.gather,
        models.strings,
        models.optional_input,
        models.big_output,
    ],
)
def test_probe_finds_independent_rows(tmp_path, make):
    assert probe.independent_rows(loaded(make(tmp_path / "m.onnx"))) == (
        True,
        "rows singly, together and permuted agree",
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (models.row_dependent, "changes with the rows beside it"),
        (models.place_dependent, "changes with"),
        (models.other_shape, "no row for each row"),
        (models.shape_only, "no row for each row"),
        (models.fixed, "no free first dimension"),
        (models.scalar, "no free first dimension"),
        (models.no_input, "no input"),
    ],
)
def test_probe_refuses_what_it_must_not_batch(tmp_path, make, reason):
    found, why = probe.independent_rows(loaded(make(tmp_path / "m.onnx")))
    assert not found and reason in why


def test_model_that_raises_on_the_probe_is_not_batchable(tmp_path):
    path = models.save(
        tmp_path / "m.onnx",
        [models.node("Reshape", ["x", "shape"], ["y"])],
        [("x", "float32", ("N", 4)), ("shape", "int64", ("M",))],
        [("y", "float32", ("N", 5))],
    )
    found, why = probe.independent_rows(loaded(path))
    assert not found and why


def test_warm_up_runs_every_size_that_occurs(tmp_path):
    session = loaded(models.mlp(tmp_path / "m.onnx"))
    session.with_independent_rows(True)
    costs = warm_up(session, Buffers(session), 12)
    assert [c.rows for c in costs] == [1, 2, 4, 8, 12] and all(c.run_ns > 0 for c in costs)
    assert sizes(1, batchable=True) == [1]
    assert sizes(32, batchable=True) == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("make", [models.scalar, models.no_input, models.strings, models.two_free_dims, models.fixed])
def test_warm_up_of_any_signature(tmp_path, make):
    session = loaded(make(tmp_path / "m.onnx"))
    assert [c.rows for c in warm_up(session, Buffers(session), 8)] == [1]


def test_warm_up_finds_out_that_declared_shapes_do_not_hold(tmp_path):
    session = loaded(models.other_shape(tmp_path / "m.onnx"))
    session.with_independent_rows(True)
    assert [c.rows for c in warm_up(session, Buffers(session), 8)] == [1, 2, 4, 8]
    assert not session.outputs_bound


@pytest.mark.slow
def test_import_starts_no_thread_and_no_telemetry(tmp_path):
    code = (
        "import workers.session, os; print(len(os.listdir('/proc/self/task')), os.environ['ORT_DISABLE_TELEMETRY']);"
        "links = ['/proc/self/fd/' + f for f in os.listdir('/proc/self/fd')];"
        "print([os.readlink(link) for link in links if os.path.islink(link)])"
    )
    root = str(Path(workers.__file__).parent.parent)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        env=environment | {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("1 1\n") and ".db" not in done.stdout
    assert list(tmp_path.iterdir()) == []
