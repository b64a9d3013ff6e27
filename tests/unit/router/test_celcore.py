"""The CEL compiler comes without its package's command line."""

from __future__ import annotations

import subprocess
import sys

ASK = """
import sys
from router import celcore
core = celcore.load()
assert core is celcore.load()
assert core.compile("a > 1").execute({"a": 2}) is True
assert not {"rich", "typer", "prompt_toolkit"} & set(sys.modules)
import cel
assert cel.compile is core.compile
"""


def test_it_brings_no_terminal_along_and_is_what_the_package_has():
    subprocess.run([sys.executable, "-c", ASK], check=True, timeout=30)
