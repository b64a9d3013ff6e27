"""Write a file of pinned requirements anew: versions of the names in its first block, what they bring, and all hashes.

    python tools/lock.py requirements-ci.txt          the newest version of everything; `make lock`
    python tools/lock.py --keep requirements-ci.txt   what has a version keeps it: for a name written in by hand

pip is asked for everything, by the way it is set up on this machine; the file names no index. A hash is written down
for each file that pip would take on Linux with glibc, x86_64 and aarch64, and of the source where one of these has no
wheel. musl is not among them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from packaging.markers import Marker

PYTHONS = "3.11,3.12,3.13,3.14"
MACHINES = ("x86_64", "aarch64")
GLIBCS = (28, 41)
"""Of hosts: a newer one may be given another file of the same release."""

ASKED = "# asked for by name\n"
BROUGHT = "#\n# what those bring\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path)
    options.add_argument("--keep", action="store_true", help="keep the versions that are pinned")
    options.add_argument("--pythons", default=PYTHONS, help=f"which the hashes are for (default: {PYTHONS})")
    given = options.parse_args()
    head, _, blocks = given.file.read_text().partition(ASKED)
    asked, brought = (read(part) for part in f"{blocks}{'' if BROUGHT in blocks else BROUGHT}".split(BROUGHT))
    wanted = [f"{name}{version if given.keep else ''}{marker}" for name, (version, marker) in asked.items()]
    constraints = [f"{name}{version}" for name, (version, _) in brought.items() if given.keep]
    pins = {
        canonical(row): (row["metadata"]["name"], row["metadata"]["version"]) for row in report(wanted, constraints)
    }
    markers = {name.lower().replace("_", "-"): marker for name, (_, marker) in (brought | asked).items()}
    hashes = all_hashes(pins, markers, given.pythons.split(","))
    named = {name.lower().replace("_", "-") for name in asked}

    def block(of_these: set[str]) -> str:
        lines = []
        for key in sorted(of_these):
            name, version = pins[key]
            files = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[key]))
            lines.append(f"{name}=={version}{markers.get(key, '')}{files}\n")
        return "".join(lines)

    given.file.write_text(head + ASKED + block(named) + BROUGHT + block(set(pins) - named))
    print(f"{given.file.name}: {len(pins)} packages, {sum(map(len, hashes.values()))} hashes")


def read(block: str) -> dict[str, tuple[str, str]]:
    """Name -> (`==version`, ` ; marker`), each empty where there is none."""
    found = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(==[^ ;\\\n]+)?( *;[^\\\n]*?)? *\\?$", block, re.MULTILINE)
    return {name: (version, f" ; {marker.strip(' ;')}" if marker else "") for name, version, marker in found}


def canonical(row: dict[str, Any]) -> str:
    name: str = row["metadata"]["name"]
    return re.sub(r"[-_.]+", "-", name).lower()


def all_hashes(pins: dict[str, tuple[str, str]], markers: dict[str, str], pythons: list[str]) -> dict[str, set[str]]:
    hashes: dict[str, set[str]] = {key: set() for key in pins}
    without: set[str] = set()
    for python, machine, glibc in product(pythons, MACHINES, GLIBCS):
        print(f"CPython {python}, {machine}, glibc 2.{glibc}", flush=True)
        # pip judges markers by the Python that it runs on, so they are judged here.
        about = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
        pending = {key for key in pins if not markers.get(key) or Marker(markers[key].strip(" ;")).evaluate(about)}
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, 4, -1)]
        platforms += [f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
        target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", "--target=unused"]
        target += [f"--abi={abi}" for abi in ("cp" + python.replace(".", ""), "abi3", "none")]
        target += [f"--platform={platform}" for platform in platforms]
        while True:
            try:
                rows = report([f"{pins[key][0]}=={pins[key][1]}" for key in sorted(pending)], [], "--no-deps", *target)
                break
            except LookupError as error:
                missing = re.sub(r"[-_.]+", "-", str(error.args[0])).lower()
                print(f"  no wheel of {missing}")
                pending.remove(missing)
                without.add(missing)
        for row in rows:
            hashes[canonical(row)].add(digest(row))
    for key in sorted(without):
        name, version = pins[key]
        print(f"source of {name}", flush=True)
        for row in report([f"{name}=={version}"], [], "--no-deps", f"--no-binary={name}"):
            hashes[key].add(digest(row))
    return hashes


def digest(row: dict[str, Any]) -> str:
    found: str = row["download_info"]["archive_info"]["hashes"]["sha256"]
    return found


def report(wanted: list[str], constraints: list[str], *arguments: str) -> list[dict[str, Any]]:
    """What pip would install.

    Raises:
        LookupError: with the name of something that has no file for what the arguments say.
    """
    with tempfile.TemporaryDirectory() as directory:
        names, limits, told = (Path(directory, name) for name in ("wanted.txt", "limits.txt", "told.json"))
        names.write_text("\n".join(wanted))
        limits.write_text("\n".join(constraints))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(told), *arguments, "-r", str(names), "-c", str(limits)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if missing := re.search(r"No matching distribution found for ([A-Za-z0-9._-]+?)==", ended.stderr):
            raise LookupError(missing[1])
        if ended.returncode:
            raise SystemExit(ended.stderr)
        rows: list[dict[str, Any]] = json.loads(told.read_text())["install"]
        return rows


if __name__ == "__main__":
    main()
