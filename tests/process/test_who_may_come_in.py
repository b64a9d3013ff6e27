"""Who may come in, shown from a second user: attach, control, models, and memory. Takes root, to become that user."""

from __future__ import annotations

import grp
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import farm
from shm import paths
from tests import models, stranger
from tests.farmprocess import Serving
from tests.stranger import NOBODY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

GROUP = "daemon"
OUTSIDE = [NOBODY]


def inside() -> list[int]:
    """A primary group of its own, and the service group beside it."""
    return [NOBODY, grp.getgrnam(GROUP).gr_gid]


@pytest.fixture(autouse=True)
def _others_may_pass(tmp_path: Path) -> Iterator[None]:
    """Temporary directories are closed to others; what is to keep them out here is the farm's own."""
    above = [path for path in (tmp_path, *tmp_path.parents) if path.is_relative_to(tempfile.gettempdir())]
    modes = [path.stat().st_mode for path in above]
    for path in above:
        path.chmod(0o711)
    yield
    for path, mode in zip(above, modes, strict=True):
        path.chmod(mode)


def open_up(runtime_dir: str) -> None:
    """As an operator's mistake would: every mode lets everybody in."""
    for path, mode in ((runtime_dir, 0o755), (os.path.dirname(paths.attach_path(runtime_dir)), 0o755)):
        os.chmod(path, mode)
    os.chmod(os.path.dirname(paths.control_path(runtime_dir)), 0o755)
    for path in (paths.attach_path(runtime_dir), paths.control_path(runtime_dir)):
        os.chmod(path, 0o666)


def start(tmp_path: Path, isolation: str, **closed: object) -> farm.Farm:
    path = str(models.identity(tmp_path / "m.onnx", "float32", ("N", 2)))
    served = {"open": {"path": path}, "closed": {"path": path, **closed}}
    group = {"service_group": GROUP} if isolation == "group" else {}
    return farm.Farm(served, workers=1, runtime_dir=tmp_path / "run", isolation=isolation, pin=False, **group)


def test_under_same_uid_another_user_is_kept_out_by_modes_and_without_them_by_name(tmp_path):
    with start(tmp_path, "same-uid") as running:
        assert os.stat(running.endpoint).st_mode & 0o777 == 0o700
        for groups in (OUTSIDE, inside()):
            assert stranger.call(NOBODY, groups, "infer", running.endpoint, "open")["error"] == "Unavailable"
        open_up(running.endpoint)
        for groups in (OUTSIDE, inside()):
            told = stranger.call(NOBODY, groups, "infer", running.endpoint, "open")
            assert (told["error"], told["reason"]) == ("AttachRefused", "not_allowed")
        assert f"uid {NOBODY} may not control" in stranger.call(NOBODY, OUTSIDE, "operate", running.endpoint)["message"]


def test_under_group_members_are_answered_and_others_kept_out_by_modes_and_without_them_by_name(tmp_path):
    with start(tmp_path, "group", allow=["root", "@root"]) as running:
        assert os.stat(running.endpoint).st_mode & 0o777 == 0o750
        assert stranger.call(NOBODY, inside(), "infer", running.endpoint, "open") == {"source": "model"}
        told = stranger.call(NOBODY, inside(), "infer", running.endpoint, "closed")
        assert (told["error"], told["reason"]) == ("InvalidRequest", "not_allowed")
        assert "[models.closed] allow" in told["message"]
        assert stranger.call(NOBODY, OUTSIDE, "infer", running.endpoint, "open")["error"] == "Unavailable"
        # Who may ask may not command: by the mode of the folder, and without it by name.
        assert "error" in stranger.call(NOBODY, inside(), "operate", running.endpoint)
        open_up(running.endpoint)
        assert (
            f"uid {NOBODY} may not control" in stranger.call(NOBODY, inside(), "operate", running.endpoint)["message"]
        )
        told = stranger.call(NOBODY, OUTSIDE, "infer", running.endpoint, "open")
        assert (told["error"], told["reason"]) == ("AttachRefused", "not_allowed")


def test_another_user_cannot_open_the_memory_that_it_was_given_for_more_than_it_was_given(tmp_path):
    with start(tmp_path, "group", allow=[f"@{GROUP}"]) as running:
        told = stranger.call(NOBODY, inside(), "reopen", running.endpoint)
        assert told == {"mine": "opened", "out": "PermissionError", "in": "PermissionError"}
        # By the group beside its primary one.
        assert stranger.call(NOBODY, inside(), "infer", running.endpoint, "closed") == {"source": "model"}


def test_a_client_refuses_by_name_a_farm_that_another_user_planted_in_a_usual_place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(paths, "runtime_dir_candidates", lambda: [str(tmp_path / "shmfarm-0")])
    tmp_path.chmod(0o1777)
    process = stranger.start(NOBODY, OUTSIDE, "plant", str(tmp_path / "shmfarm-0"))
    assert process.stdin is not None and process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())
        said = f"uid {NOBODY} listens there, who is neither this user"
        with pytest.raises(farm.Unavailable, match=said), farm.Client() as client:
            client.wait_ready(timeout=2)
        # One who names it means that user's farm.
        with pytest.raises(farm.Unavailable) as caught, farm.Client(str(tmp_path / "shmfarm-0")) as client:
            client.wait_ready(timeout=0.5)
        assert "listens there" not in str(caught.value)
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
        Path(paths.attach_path(str(tmp_path / "shmfarm-0"))).unlink()


def test_nothing_secret_is_in_the_log(tmp_path, farm_command):
    """Neither tokens nor what is in tensors, keys or bad frames, whatever goes wrong."""
    from tests.routerharness import RawClient

    secret = b"Swordfish" * 4
    model = models.strings(tmp_path / "shout.onnx")
    with Serving(farm_command, tmp_path / "run", str(model), "--workers", "1") as serving:
        serving.ready()
        client = RawClient(serving.runtime_dir, lane="zeromq")
        tokens = [client.attached.token.hex(), str(client.attached.token), repr(client.attached.token)]
        with farm.Client(serving.runtime_dir) as honest:
            honest.wait_ready(timeout=20)
            reply = honest.infer("shout", {"s": [secret.decode()]}, key=secret.decode(), deadline_ms=10_000)
            assert reply.source == "model"
        client.inputs[: len(secret)] = secret
        for _ in range(120):
            client.send_frame(secret)
        while client.pump(2) and not client.rejected:
            pass
        client.close()
        serving.stop()
        assert serving.lines
        for line in serving.lines:
            assert "Swordfish" not in line and not any(token in line for token in tokens), line
