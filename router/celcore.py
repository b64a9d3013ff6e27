"""The CEL compiler without its package: `import cel` also brings a command line of its own, with what that needs to
colour a terminal: 16 MB in every router and a tenth of a second of its start, against 3 MB for the compiler."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType

NAME = "cel.cel"


def load() -> ModuleType:
    """The extension module, the same that `import cel` would bring in later.

    Raises:
        ModuleNotFoundError: the package `common-expression-language` is not installed.
    """
    known = sys.modules.get(NAME)
    if known is not None:
        return known
    package = importlib.util.find_spec("cel")
    if package is None or package.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'cel'", name="cel")
    spec = importlib.machinery.PathFinder.find_spec(NAME, list(package.submodule_search_locations))
    if spec is None or spec.loader is None:
        # Arranged in another way than it was: the whole package has it, whatever that costs.
        return importlib.import_module("cel")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise
    return module
