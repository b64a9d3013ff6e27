"""Refuses, by naming both paths, when a user's own `shm`, `router` or `workers` would be imported in place of ours.

These names are common. Python takes the first one on `sys.path`, and a service's working directory or PYTHONPATH often
comes before the installed packages; without this check the error would be an AttributeError far from its cause. Only
finders are asked: a stranger's module is never run. Costs some 50 us.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The directory that holds this package and its siblings."""


def require_sibling(name: str) -> None:
    """Make sure that `import name` gives the package that lies beside this one.

    Raises:
        ImportError: it would give another one, or none.
    """
    ours = os.path.join(ROOT, name, "__init__.py")
    theirs = _location(name)
    if theirs == ours:
        return
    if theirs is None:
        raise ImportError(f"farm needs its package {name!r} at {ours}, and Python finds none: install shmfarm again")
    try:
        if os.path.samefile(theirs, ours):
            return
    except OSError:
        pass
    raise ImportError(
        f"`import {name}` finds {theirs}, but farm needs its own {ours}: rename yours, or keep its directory off "
        "sys.path (run `python -P`, start elsewhere, or correct PYTHONPATH)",
        name=name,
        path=theirs,
    )


def _location(name: str) -> str | None:
    """The file that `name` is or would be imported from."""
    try:
        spec = find_spec(name)
    except ValueError:
        # Imported already, by a way that left no spec.
        return getattr(sys.modules[name], "__file__", None) or f"a module {name!r} without a file"
    if spec is None:
        return None
    if spec.origin is None and spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations))
    return spec.origin
