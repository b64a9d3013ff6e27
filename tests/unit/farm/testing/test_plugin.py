"""What pytest loads wherever shmfarm is installed costs nobody anything who does not ask for the fixture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import farm
import farm.testing

HEAVY = ("numpy", "zmq", "msgspec", "asyncio", "onnxruntime", "farm.client", "farm.testing.fake")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    path = str(Path(str(farm.__file__)).parents[1])
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_plugin_imports_nothing_heavy():
    told = run_python(f"import farm.testing.plugin; print(*{{*{HEAVY!r}}} & set(sys.modules))")
    assert (told.returncode, told.stdout) == (0, "\n"), told.stderr


@pytest.mark.slow
def test_fake_needs_nothing_beyond_the_client():
    code = (
        "from farm.testing import FakeFarm; fake = FakeFarm({'m': lambda inputs: {'y': 1}}); "
        "print(fake.client().infer('m', {}).outputs['y']); "
        "assert not {'onnxruntime', 'uvloop', 'psutil', 'cel', 'setproctitle', 'pytest'} & set(sys.modules); "
        "assert not {'router', 'workers'} & set(sys.modules)"
    )
    told = run_python(code)
    assert (told.returncode, told.stdout) == (0, "1\n"), told.stderr


def test_public_names_are_all_there():
    for name in farm.testing.__all__:
        assert getattr(farm.testing, name).__name__ == name
    assert set(farm.testing.__all__) <= set(dir(farm.testing))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'Nothing'"):
        farm.testing.Nothing  # noqa: B018
