"""Run in an environment that has the wheel without extras: a service can import the client and the fake farm.

`python -I tools/check_bare.py`, from `make test`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SERVER_ONLY = ("onnxruntime", "uvloop", "psutil", "setproctitle", "cel")


def main() -> None:
    there = [name for name in SERVER_ONLY if importlib.util.find_spec(name)]
    if there:
        raise SystemExit(f"this environment is not bare, it has {', '.join(there)}")
    import farm
    import farm.testing

    if Path(sys.prefix) not in Path(str(farm.__file__)).parents:
        raise SystemExit(f"farm came from {farm.__file__}, not from the wheel in {sys.prefix}")
    for name in ("Client", "AsyncClient", "Reply", "FarmError", "InvalidRequest", "Overloaded", "DeadlineExceeded"):
        getattr(farm, name)
    farm.testing.FakeFarm  # noqa: B018
    farm.Client().close()
    print(f"the wheel without extras: farm, farm.Client and farm.testing import on {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
