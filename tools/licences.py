"""Write docs/LICENCES.md from what the installed packages say of themselves, or check that it is still so.

    .venv-test/bin/python tools/licences.py           write it
    .venv-test/bin/python tools/licences.py --check   exit 1 and say what differs; `make check`

What the farm or a client imports must be under one of the licences in PERMISSIVE: any other is an error, in both forms.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "LICENCES.md"

PERMISSIVE = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "PSF-2.0", "Zlib"}
)

# Words of older metadata, which names licences freely, and the identifier (SPDX) that each stands for.
NAMED = {
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache License v2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

HEAD = """\
# Licences

What shmfarm uses and under which licence, as each package says itself, of the versions in `requirements-ci.txt`.
shmfarm itself is under Apache-2.0 (`LICENSE`). `tools/licences.py` writes this page and `make check` compares; what a
client or the farm imports may only be under a permissive licence. The wheels of numpy, pyzmq and onnxruntime hold
libraries of others (OpenBLAS, libzmq, which is MPL-2.0, and more), whose licences lie in those wheels.
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="compare only")
    check = options.parse_args().check
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = closure(project["dependencies"])
    server = closure(project["optional-dependencies"]["server"]) - client
    tools = pinned() - client - server
    refused = [f"{name}: {licence(name)}" for name in sorted(client | server) if not permissive(licence(name))]
    if refused:
        raise SystemExit("not known as permissive, and needed at run time: " + "; ".join(refused))
    page = HEAD
    page += table("The client: what `pip install shmfarm` brings", client)
    page += table("The farm: what the extra `server` brings beside that", server)
    page += table("Tools: tests, checks and the bench; no part of an installation", tools)
    if not check:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        was, is_now = set(PAGE.read_text().splitlines()), set(page.splitlines())
        raise SystemExit(
            "\n".join(
                [
                    f"{PAGE.relative_to(ROOT)} is not what the packages say; write it anew: tools/licences.py",
                    *(f"- {line}" for line in sorted(was - is_now)),
                    *(f"+ {line}" for line in sorted(is_now - was)),
                ]
            )
        )


def closure(wanted: list[str]) -> set[str]:
    """The names of these and of what they bring."""
    found: set[str] = set()
    pending = [Requirement(line) for line in wanted]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in found or not applies(requirement):
            continue
        found.add(name)
        pending += map(Requirement, metadata.requires(name) or [])
    return found


def applies(requirement: Requirement) -> bool:
    return not requirement.marker or requirement.marker.evaluate({**default_environment(), "extra": ""})


def pinned() -> set[str]:
    lines = re.findall(r"^[A-Za-z0-9][^\\\n]*==[^\\\n]*", (ROOT / "requirements-ci.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(Requirement(line).name) for line in lines if applies(Requirement(line))}


def licence(name: str) -> str:
    """As an expression of SPDX identifiers: the field made for it, else classifiers, else the older free text."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classified = [
        line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if line.startswith("License :: ")
    ]
    words = [word for word in classified if word != "OSI Approved"] or [
        (about.get("License") or "not said").split("\n")[0]
    ]
    free = (about.get("License") or "").strip()
    if free in NAMED or free in PERMISSIVE:
        words = [free]
    if words == ["not said"] and any("Apache License" in text for text in licence_files(name)):
        return "Apache-2.0"
    return " AND ".join(sorted({NAMED.get(word, word) for word in words}))


def licence_files(name: str) -> list[str]:
    files = metadata.files(name) or []
    return [file.read_text() for file in files if file.name.upper().startswith("LICEN") and ".dist-info" in str(file)]


def permissive(expression: str) -> bool:
    """Whether every licence of an expression is; of `A OR B`, either."""
    names = re.split(r" AND ", expression.replace("(", "").replace(")", ""))
    return all(any(part in PERMISSIVE for part in name.split(" OR ")) for name in names)


def table(title: str, names: set[str]) -> str:
    rows = [
        f"| {metadata.metadata(name)['Name']} | {metadata.version(name)} | {licence(name)} |" for name in sorted(names)
    ]
    return "\n".join(["", f"## {title}", "", "| Package | Version | Licence |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    main()
