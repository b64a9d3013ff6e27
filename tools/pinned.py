"""Print what requirements-ci.txt says, hashes and all, about what the client needs: the dependencies without extras.

`python tools/pinned.py`, for the environment that has nothing but the client.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "requirements-ci.txt").read_text().replace("\\\n", "").splitlines()
    for wanted in project["dependencies"]:
        name = re.match(r"[A-Za-z0-9._-]+", wanted)[0]
        print(next(line for line in pins if line.startswith(f"{name}==")))


if __name__ == "__main__":
    main()
