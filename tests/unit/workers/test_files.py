"""A path that is no model's file is refused by name, at once, whatever lies there."""

from __future__ import annotations

import os

from tests import models
from workers.files import refuse_file


def test_a_model_and_a_link_to_one_pass(tmp_path):
    path = models.identity(tmp_path / "m.onnx", "float32")
    (tmp_path / "link.onnx").symlink_to(path)
    assert refuse_file(str(path)) is None
    assert refuse_file(str(tmp_path / "link.onnx")) is None


def test_what_is_no_file_is_named_and_a_fifo_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in [
        (".", "it is a folder; it must be an ONNX file"),
        ("fifo", "it is a FIFO; it must be an ONNX file"),
        ("empty", "it is empty; export or copy the model again"),
        ("none", "No such file or directory; it must be an ONNX file that this user can read"),
        ("loop", "Too many levels of symbolic links; it must be"),
    ]:
        assert refuse_file(str(tmp_path / name)).startswith(words)
    assert refuse_file("/dev/null") == "it is a device; it must be an ONNX file"


def test_a_file_of_another_user_is_refused_by_name(tmp_path):
    path = models.identity(tmp_path / "m.onnx", "float32")
    path.chmod(0)
    if os.geteuid() != 0:
        assert refuse_file(str(path)).startswith("Permission denied; ")
        return
    os.seteuid(65534)
    try:
        refused = refuse_file(str(path))
    finally:
        os.seteuid(0)
    assert refused is not None and refused.startswith("Permission denied; ")
