"""Attacks on a real farm on this host, each a command: `python -m tests.attack liars --seconds 60`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "liars": "attached clients that lie about slots, shapes, deadlines and themselves, and change inputs during runs",
    "sockets": "hostile peers on the lane, attach and control sockets, and a flood of connections",
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print("usage: python -m tests.attack COMMAND [--help]\n")
        for name, does in COMMANDS.items():
            print(f"  {name:10} {does}")
        sys.exit(0 if sys.argv[1:] in ([], ["--help"]) else 2)
    sys.exit(importlib.import_module(f"tests.attack.{sys.argv[1]}").main(sys.argv[2:]))
