"""One target in a process of its own, which libFuzzer takes over: `python -m tests.fuzz.child TARGET FLAGS CORPUS...`.

Where atheris is not to be had, the corpus and random changes of it are run without coverage.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from tests.fuzz.table import TARGETS


def blindly(target: str, flags: dict[str, str], corpora: list[Path]) -> None:
    run = TARGETS[target].load().run
    print(f"INFO: no atheris for this Python: {target} is run without coverage", file=sys.stderr)
    known = [path.read_bytes() for corpus in corpora for path in sorted(corpus.iterdir())] or [b""]
    chance = random.Random(int(flags["seed"]))
    end = time.monotonic() + float(flags["max_total_time"] or "inf") if flags["max_total_time"] != "0" else float("inf")
    most, count = int(flags["runs"]), 0
    while (most < 0 or count < most) and time.monotonic() < end:
        content = known[count] if count < len(known) else mutated(chance, known, int(flags["max_len"]))
        count += 1
        try:
            run(content)
        except BaseException:
            path = Path(f"{flags['artifact_prefix']}crash-{count}")
            path.write_bytes(content)
            print(f"Test unit written to {path}", file=sys.stderr)
            raise
    print(f"#{count}\tDONE   cov: 0 ft: 0 corp: {len(known)}/0b", file=sys.stderr)


def mutated(chance: random.Random, known: list[bytes], bytes_max: int) -> bytes:
    content = bytearray(chance.choice(known))
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(content))
        match chance.randint(0, 4):
            case 0 if at < len(content):
                content[at] = chance.randrange(256)
            case 1:
                del content[at : at + chance.randint(1, 8)]
            case 2:
                content[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                content[at:at] = content[at : at + chance.randint(1, 64)]
            case 4:
                content[at:] = chance.choice(known)[at:]
    return bytes(content[:bytes_max])


def main() -> None:
    target = sys.argv[1]
    flags = dict(argument[1:].split("=", 1) for argument in sys.argv[2:] if argument.startswith("-"))
    corpora = [Path(argument) for argument in sys.argv[2:] if not argument.startswith("-")]
    try:
        import atheris
    except ImportError:
        blindly(target, flags, corpora)
        return
    with atheris.instrument_imports(include=list(TARGETS[target].packages)):
        run = TARGETS[target].load().run
    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
