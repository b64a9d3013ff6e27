"""`farm demo`: a farm on the embedded default, a service that asks it, and a table of what happened.

`farm.demo.service` is a process of its own and uses the public client alone; `farm.demo.show` starts both and prints.
"""

from __future__ import annotations


def main() -> int:
    """Run the demo; the exit code is 0 when every answer came and nothing was left behind, else 1."""
    # Not at the top: the service process imports this package too, and needs none of it.
    from farm.demo.show import show

    return show()
