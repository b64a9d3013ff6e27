"""What no linter of ours checks: sizes of files, what may stand in them, and what a package must have."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("farm", "router", "workers", "shm")
LINES_MAX = 400

DOING = frozenset(
    {"asyncio", "datetime", "logging", "mmap", "multiprocessing", "numpy", "os", "pathlib", "random", "secrets"}
    | {"select", "selectors", "signal", "socket", "subprocess", "tempfile", "threading", "time", "uvloop", "zmq"}
)
"""What a module that decides may not import: it is simulated, so time and chance come in as arguments."""

# Put together here, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile("|".join(("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "/tmp/ve" + "nv")))
INDEX_ADDRESSES = re.compile("py" + r"pi\.org|python" + "hosted|(?:extra-)?index" + "-url|find" + "-links")
UNFINISHED = re.compile(r"\b(?:TO" + "DO|FIX" + "ME|XX" + r"X|HA" + r"CK)\b")


def tracked() -> list[Path]:
    """Files under version control, or all files where the checkout is none (an unpacked archive)."""
    told = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if told.returncode:
        return [path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0][0] != "."]
    files = [ROOT / name for name in told.stdout.decode().split("\0") if name]
    return [path for path in files if path.is_file()]


TRACKED = tracked()
MODULES = [path for path in TRACKED if path.suffix == ".py"]
TEXTS = [path for path in TRACKED if path.suffix in {".py", ".md", ".toml", ".txt", ".csv", ".sh", ""}]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_short_and_says_what_it_is_for(path):
    text = path.read_text()
    assert text.count("\n") <= LINES_MAX, f"{text.count(chr(10))} lines; split it where its ideas part"
    tree = ast.parse(text)
    if tree.body:
        assert ast.get_docstring(tree), "its first line must say what it is for"


@pytest.mark.parametrize(
    "pattern", [MACHINE_PATHS, INDEX_ADDRESSES, UNFINISHED], ids=["machine_path", "index_address", "unfinished"]
)
def test_no_file_holds(pattern):
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in MODULES if path.relative_to(ROOT).parts[0] in PACKAGES}
    missing = sorted(name_of(folder) for folder in folders if not (folder / "__init__.py").is_file())
    assert not missing, "setuptools leaves these out of the wheel"


def test_what_the_router_decides_with_does_nothing_itself():
    """The machine and every module of the router that it rests on."""
    seen: set[Path] = set()
    pending = [ROOT / "router" / "machine.py"]
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        modules = imported(path)
        used = sorted({module.split(".")[0] for module in modules} & DOING)
        assert not used, f"{name_of(path)} imports {', '.join(used)}"
        beside = [ROOT.joinpath(*module.split(".")) for module in modules if module.startswith("router.")]
        pending += [path.with_suffix(".py") for path in beside if path.with_suffix(".py").is_file()]
    assert {"machine", "ledger", "roster", "batching"} <= {path.stem for path in seen}


def imported(path: Path) -> set[str]:
    """What a module imports anywhere in it; `from a import b` counts as `a` and as `a.b`, which may be a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_the_outermost_loop_of_a_process_catches_everything():
    """A process's `main` may; whatever else does hides a fault."""
    found = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] not in PACKAGES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception":
                found.append(f"{name_of(path)}:{node.lineno}")
    outermost = [place for place in found if not re.match(r"(router|workers|farm/supervisor)/service\.py:", place)]
    assert not outermost, outermost


def test_nothing_is_unpickled_evaluated_or_imported_from_data():
    """What a message, a model or a rule says is never run: no such call is in what is installed."""
    modules = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "codeop"}
    calls = {"eval", "exec", "compile", "__import__"}
    found = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] not in PACKAGES:
            continue
        found += [f"{name_of(path)} imports {m}" for m in imported(path) if m.split(".")[0] in modules]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            named = function.id if isinstance(function, ast.Name) else ""
            if isinstance(function, ast.Attribute) and function.attr in {"import_module", "load_module", "exec_module"}:
                named = function.attr
            literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
            loads_arrays = (
                isinstance(function, ast.Attribute)
                and function.attr == "load"
                and any(word.arg == "allow_pickle" and getattr(word.value, "value", True) for word in node.keywords)
            )
            if named in calls or (named and function.__class__ is ast.Attribute and not literal) or loads_arrays:
                found.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)[:60]}")
    # One part of the CEL package, by a name that stands there: its whole would take 16 MB.
    assert [place for place in found if not place.startswith("router/celcore.py:")] == []
