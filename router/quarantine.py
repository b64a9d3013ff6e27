"""The quarantine: inputs that killed two workers, kept in the runtime directory for whoever looks into it.

    RUNTIME_DIR/quarantine/20261123T121314.567Z-MODEL-1a2b3c4d/     0700
        facts.json      what was asked, of which model, and who died of it; where each tensor lies in the next file
        inputs.bin      the tensors, back to back

`farm.quarantine.load` reads one. The folder stays when the farm ends. It is bounded in bytes and in number, the oldest
going first, and a disk that is full is a line in the log and nothing worse. The router holds no numpy, hence no npz.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from typing import Any, Final, NamedTuple

import msgspec

from router.poison import INPUT_BYTES_MAX, Input
from shm.layout import DTYPES, Signature

log = logging.getLogger("shmfarm.router")

CASES_MAX: Final = 64
INPUTS_FILE: Final = "inputs.bin"
FACTS_FILE: Final = "facts.json"
FACTS_BYTES: Final = 4096
"""What the facts take, rounded up to a page, as the bound counts it."""
_CASE: Final = re.compile(r"\d{8}T\d{6}\.\d{3}Z-.+-(?:[0-9a-f]{8}|large)(?:\.part)?")


class Case(NamedTuple):
    """A request that two workers died of. `kept`: None when its input is larger than may be copied."""

    model: str
    version: int
    path: str
    signature: Signature
    rows: int
    payload_bytes: int
    kept: Input | None
    workers: tuple[int, ...]
    client_pid: int
    client_title: str


class Quarantine:
    """Keeps cases in one folder, which is made with the first."""

    def __init__(self, folder: str, mib_max: int) -> None:
        self._folder = folder
        self._bytes_max = mib_max * 1024 * 1024

    def keep(self, case: Case) -> bool:
        """Write one case down. False: it is not kept, by configuration or because it could not be written."""
        size = (case.payload_bytes if case.kept is not None else 0) + FACTS_BYTES
        if size > self._bytes_max:
            return False
        now_s = time.time()
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03}Z"
        digest = case.kept.digest.hex()[:8] if case.kept is not None else "large"
        name = f"{moment}-{re.sub(r'[^A-Za-z0-9_]', '_', case.model)[:64]}-{digest}"
        where, part = (os.path.join(self._folder, end) for end in (name, f"{name}.part"))
        if os.path.exists(where):
            return False  # the same input, in the same millisecond
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._make_room(size)
            os.mkdir(part, 0o700)
            if case.kept is not None:
                _write(os.path.join(part, INPUTS_FILE), b"".join(case.kept.parts))
            _write(os.path.join(part, FACTS_FILE), msgspec.json.format(msgspec.json.encode(_facts(case, moment))))
            os.rename(part, where)
        except OSError as error:
            log.error("quarantine_failed folder=%s why=%r", self._folder, error.strerror)
            shutil.rmtree(part, ignore_errors=True)
            return False
        log.warning("quarantined model=%s workers=%s as=%s", case.model, case.workers, where)
        return True

    def _make_room(self, size: int) -> None:
        """Remove the oldest cases until there is room for so many bytes, and for one more. What else is in the folder
        is not ours."""
        cases = sorted(name for name in os.listdir(self._folder) if _CASE.fullmatch(name))
        sizes = {name: _bytes_of(os.path.join(self._folder, name)) for name in cases}
        while cases and (len(cases) >= CASES_MAX or sum(sizes.values()) + size > self._bytes_max):
            oldest = cases.pop(0)
            del sizes[oldest]
            shutil.rmtree(os.path.join(self._folder, oldest), ignore_errors=True)


def _facts(case: Case, moment: str) -> dict[str, Any]:
    kept = case.kept
    tensors = []
    offset = 0
    for tensor, part in zip(kept.tensors, kept.parts, strict=True) if kept is not None else ():
        spec = case.signature.inputs[tensor.index]
        tensors.append(
            {
                "name": spec.name,
                "dtype": DTYPES[tensor.dtype][0],
                "shape": tensor.dims,
                "offset": offset,
                "bytes": len(part),
            }
        )
        offset += len(part)
    return {
        "utc": moment,
        "model": case.model,
        "version": case.version,
        "path": case.path,
        "rows": case.rows,
        "workers": case.workers,
        "client": {"pid": case.client_pid, "title": case.client_title},
        "blake2b_128": kept.digest.hex() if kept is not None else None,
        "inputs": {str(spec.name): str(spec) for spec in case.signature.inputs},
        "outputs": {str(spec.name): str(spec) for spec in case.signature.outputs},
        "tensors": tensors,
        "left_out": None if kept is not None else f"{case.payload_bytes} bytes; at most {INPUT_BYTES_MAX} are kept",
        "to_reproduce": (
            "from farm import quarantine; import onnxruntime; facts, inputs = quarantine.load(FOLDER); "
            "onnxruntime.InferenceSession(facts['path']).run(None, inputs)  # in a process that may die"
        ),
    }


def _write(path: str, payload: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(payload)


def _bytes_of(folder: str) -> int:
    try:
        return FACTS_BYTES + os.stat(os.path.join(folder, INPUTS_FILE)).st_size
    except OSError:
        return FACTS_BYTES
