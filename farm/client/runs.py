"""A run of slots that arrays of the caller lie in: it goes back when the last of its owners has let go.

Owners are the `with` block, the farm while a request of it is in flight, and each holder: the one array of bytes, of
`in` or of `out`, that all views of the run are cut from. numpy lets a view keep the deepest array it was cut from, so
a holder lives as long as any view, and its end is seen by `weakref.finalize`.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np

from shm.tensors import Array, Buffer

if TYPE_CHECKING:
    from farm.client.session import Session


class LeasedRun:
    """Slots `slot` to `slot + slot_count` of a session. The maker is its first owner.

    Owners let go from any thread, and from inside the garbage collector, so there is no lock: each owner has a token
    on a list, `list.pop` is atomic, and the one first laid comes off last.
    """

    __slots__ = ("__weakref__", "_tokens", "session", "slot", "slot_count")

    def __init__(self, session: Session, slot: int, slot_count: int) -> None:
        self.session = session
        self.slot = slot
        self.slot_count = slot_count
        self._tokens = [0]

    def hold(self) -> None:
        """One more owner. The caller is one already, so the list cannot run empty meanwhile."""
        self._tokens.append(1)

    def let_go(self) -> None:
        if self._tokens.pop() == 0:
            self.session.returned.append((self.slot, self.slot_count))
            self.session.nudge()

    def inputs(self) -> Array:
        """The run's bytes of `in`, writable."""
        return self._holder(self.session.inbound)

    def outputs(self) -> Array:
        """The run's bytes of `out`, read-only."""
        return self._holder(self.session.out)

    def _holder(self, buffer: Buffer) -> Array:
        slot_bytes = self.session.slot_bytes
        holder = np.frombuffer(buffer, np.uint8, self.slot_count * slot_bytes, self.slot * slot_bytes)
        self.hold()
        # The process's end frees everything; running this then would only touch what is torn down.
        weakref.finalize(holder, self.let_go).atexit = False
        return holder
