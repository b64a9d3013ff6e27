"""Environments of their own for the peers, made from `requirements/NAME.txt`: .venv-peers/NAME beside the packages.

Each pins everything by version and is installed without looking at what a package asks for, so nothing comes in that is
not written down. Where the packages come from is pip's own configuration. An environment is made again when its
requirements change.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from bench.target import TargetFailed

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".venv-peers"
INSTALL_S = 900.0


def python_of(name: str, cache: Path = CACHE) -> Path:
    """The environment's interpreter, whether it has been made or not."""
    return cache / name / "bin" / "python"


def make(name: str, cache: Path = CACHE, requirements: Path = HERE / "requirements") -> Path:
    """The interpreter of the peer's environment, which is made unless it is there; says so on standard error.

    Raises:
        TargetFailed: it cannot be made here; with pip's last words.
    """
    wanted = requirements / f"{name}.txt"
    mark = cache / name / "made-from"
    fingerprint = hashlib.sha256(wanted.read_bytes()).hexdigest()
    python = python_of(name, cache)
    if mark.is_file() and mark.read_text() == fingerprint and python.exists():
        return python
    print(f"making the environment of {name} in {cache.name}/{name}", file=sys.stderr)
    venv.create(cache / name, clear=True, with_pip=True)
    run = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "-q", "-r", str(wanted)],
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    if run.returncode:
        words = (run.stderr or run.stdout).strip().splitlines()[-1:]
        raise TargetFailed(f"{name} cannot be installed from requirements/{wanted.name}: {' '.join(words)}")
    mark.write_text(fingerprint)
    return python
