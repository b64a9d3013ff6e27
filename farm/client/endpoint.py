"""Where the farm is: a runtime directory that was named, or the usual places in their order."""

from __future__ import annotations

import os
import socket

from farm.errors import Unavailable
from shm import paths, seqpacket
from shm.errors import FrameRefused, PeerGone

Endpoint = str | os.PathLike[str]


def attach_paths(endpoint: Endpoint | None) -> list[str]:
    """Attach sockets to try, the first first. `endpoint`: a farm's runtime directory, None for the usual places."""
    if endpoint is None:
        directories = paths.runtime_dir_candidates()
    else:
        directories = [os.path.abspath(os.fspath(endpoint))]
    return [paths.attach_path(directory) for directory in directories]


def dial(endpoint: Endpoint | None) -> socket.socket:
    """A non-blocking connection to the first farm that listens.

    Raises:
        Unavailable: none does; the message lists the paths that were tried.
    """
    tried = []
    named = endpoint is not None or paths.RUNTIME_DIR_VARIABLE in os.environ
    for path in attach_paths(endpoint):
        try:
            sock = seqpacket.connect(path)
            try:
                # Before anything is sent: a place such as the temporary directory is anybody's to be first in.
                seqpacket.require_owner(sock, os.path.dirname(os.path.dirname(path)), named=named)
            except BaseException:
                sock.close()
                raise
            return sock
        except (PeerGone, FrameRefused) as error:
            tried.append(f"{path} ({error.__cause__ or error})")
    raise Unavailable(
        f"no farm answers; tried {', '.join(tried)}. Start one with `farm serve`, or name its runtime directory "
        f"in ${paths.RUNTIME_DIR_VARIABLE} or as the client's endpoint",
        reason="unavailable",
        retryable=True,
    )
