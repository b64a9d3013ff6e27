"""A user's own module of one of our names is refused by both paths, and never run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import farm
from farm import shadow

OURS = os.path.dirname(os.path.dirname(os.path.abspath(farm.__file__)))


def run(code, cwd):
    """In a fresh Python whose path begins with `cwd`, as with a script that lies there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), OURS])}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_our_own_are_found():
    for name in ("shm", "router", "workers"):
        shadow.require_sibling(name)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["shm.py", "shm/__init__.py"])
def test_importing_farm_refuses_a_users_shm_by_both_paths(tmp_path, module):
    theirs = tmp_path / module
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("raise SystemExit('it was run')")
    told = run("import farm", tmp_path)
    last = told.stderr.splitlines()[-1]
    assert last.startswith("ImportError: `import shm` finds ")
    assert str(theirs) in last and os.path.join(OURS, "shm", "__init__.py") in last


@pytest.mark.slow
@pytest.mark.parametrize("name", ["router", "workers"])
def test_reading_a_configuration_refuses_a_users_package_by_both_paths(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('it was run')")
    told = run("import farm.config", tmp_path)
    last = told.stderr.splitlines()[-1]
    assert str(tmp_path / name) in last and os.path.join(OURS, name, "__init__.py") in last


@pytest.mark.slow
def test_a_module_that_was_imported_already_is_refused_too(tmp_path):
    (tmp_path / "shm.py").write_text("")
    code = f"import sys, shm; sys.path.remove({str(tmp_path)!r}); import farm"
    assert "ImportError: `import shm` finds" in run(code, tmp_path).stderr


@pytest.mark.slow
def test_a_folder_without_code_disturbs_nothing(tmp_path):
    (tmp_path / "shm").mkdir()
    assert run("import farm, farm.errors", tmp_path).returncode == 0


@pytest.mark.slow
def test_importing_farm_brings_neither_numpy_nor_zmq(tmp_path):
    told = run(
        "import sys, farm; print(sorted({'numpy', 'zmq', 'onnxruntime', 'uvloop'} & set(sys.modules)))", tmp_path
    )
    assert told.stdout == "[]\n"


def test_every_public_name_is_there():
    for name in farm.__all__:
        if name != "__version__":
            assert getattr(farm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = farm.Clinet
