"""Inputs that change while the model runs: an index past its table, floats that do not keep still under a sort.

With `isolation = "group"` every worker reads a copy and none dies. With `same-uid` workers may; that costs the liar,
and nobody else a wrong or a late answer.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np

from shm.layout import Tensor
from tests.attack.stand import UNIQUE, WIDE, Liar, Stand, honest_rows

IN_FLIGHT = 4


class Changing:
    """Writes good and bad values by turns into every slot of a client, from a thread, until it is stopped."""

    def __init__(self, liar: Liar, name: str, slot_bytes: int) -> None:
        # Nobody else asks this: what its client has killed workers with is refused for its whole user.
        self._good = np.sort(honest_rows(name)[0].reshape(-1))
        self._bad = self._good.copy()
        if name == "gather":
            self._bad[:] = 2**40
        else:
            self._bad[:] = np.random.default_rng(3).standard_normal(len(self._bad))
            self._bad[::3] = np.nan
        width = slot_bytes // self._good.itemsize
        self._slots = np.frombuffer(liar.inputs, self._good.dtype).reshape(-1, width)[:, : len(self._good)]
        self._over = threading.Event()
        self.turns = 0
        self._slots[:] = self._good
        self._thread = threading.Thread(target=self._change)
        self._thread.start()

    def _change(self) -> None:
        while not self._over.is_set():
            self._slots[:] = self._bad
            self._slots[:] = self._good
            self.turns += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        del self._slots


def change_inputs(stand: Stand, lane: str, name: str, seconds: float) -> Counter[str]:
    slot_bytes = 8 * WIDE if name == "gather" else 4 * UNIQUE
    with stand.client(lane, slot_count=IN_FLIGHT, slot_bytes=slot_bytes) as liar:
        changing = Changing(liar, name, slot_bytes)
        got: Counter[str] = Counter()
        try:
            end = time.monotonic() + seconds
            free = list(range(IN_FLIGHT))
            slot_of: dict[int, int] = {}
            while time.monotonic() < end or slot_of:
                if free and time.monotonic() < end:
                    asks = [liar.ask(model=liar.index[name], slot=slot, **_told(name)) for slot in free]
                    slot_of.update((ask.id, slot) for ask, slot in zip(asks, free, strict=True))
                    free.clear()
                    liar.tell(*asks)
                assert liar.pump(30), f"{slot_of} were never answered"
                held = {number for number, reply in liar.replies.items() if reply.held}
                free += [slot_of.pop(number) for number in liar.replies if number not in held]
                free += [slot_of.pop(number) for number in liar.released if number in slot_of]
                liar.released.clear()
                got += liar.taken()
        finally:
            changing.stop()
        got["turns"] = changing.turns
        return got


def _told(name: str) -> dict:
    if name != "unique":
        return {}
    return {"rows": 1, "tensors": (Tensor(0, 1, (1, UNIQUE), 0, 4 * UNIQUE),)}
