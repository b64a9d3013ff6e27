"""What a model's path must be before ONNX Runtime is handed it: a plain file, readable, with something in it.

Looked at here, since ONNX Runtime calls a folder and an empty file unparsable, and would wait at a FIFO for a writer
that never comes. What is in the file it judges itself, tensors beside the file too: it refuses those that are absolute,
or lead out of the model's folder by `..` or by a link.
"""

from __future__ import annotations

import os
import stat

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def refuse_file(path: str) -> str | None:
    """Why this is no model's file, or None. Waits for nothing."""
    try:
        # Not the mode alone: this process's rights, and a FIFO that took the file's place meanwhile.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"{error.strerror}; it must be an ONNX file that this user can read"
    try:
        told = os.fstat(fd)
    finally:
        os.close(fd)
    for is_kind, kind in _KINDS:
        if is_kind(told.st_mode):
            return f"it is {kind}; it must be an ONNX file"
    if told.st_size == 0:
        return "it is empty; export or copy the model again"
    return None
