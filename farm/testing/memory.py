"""A session without a router: slots in this process's own memory, and the models that the test has named.

The slots are those of a real session, taken and given back by the same code, so that a service that keeps too many
requests or views has the same trouble with the fake as with a farm.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from farm.client.catalog import Catalog
from farm.client.inputs import InputLayout, Layout, Packed
from farm.client.lane import DirectLane
from farm.client.options import Outputs, Settings
from farm.client.session import Session
from farm.client.tickets import Ticket
from shm import tensors
from shm.client import Model
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import CODES, STRING, RowPlan, Tensor, TensorSpec, place
from shm.slots import SlotPool
from shm.tensors import NUMPY, Array


class FakeSession(Session):
    """What `farm.client.placing` and leases need of a session; nothing that knows of a socket is called."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.catalog = catalog
        self.epoch = 0
        self.slot_bytes = settings.slot_bytes
        self.slot_count = settings.slot_count
        arena_bytes = self.slot_bytes * self.slot_count
        # Anonymous, and resident only where something was written.
        self.inbound = mmap.mmap(-1, arena_bytes)
        self._written = mmap.mmap(-1, arena_bytes)
        # Views of outputs are cut from this one, and so are read-only as a service's are.
        self.out = memoryview(self._written).toreadonly()  # type: ignore[assignment]
        self.blocked_ns = 0
        self.lost = ""
        self.stirred = True
        self.greeting = None
        self.lane = _NoLane(DirectLane.name if settings.lane == "auto" else settings.lane)  # type: ignore[assignment]
        self.flight: dict[int, Ticket] = {}
        self.held: dict[int, Ticket] = {}
        self.awaiting = {}
        self.returned: deque[tuple[int, int]] = deque()
        self.nudge: Callable[[], None] = _nobody
        self._pool = SlotPool(self.slot_count)
        self._pool_lock = threading.Lock()

    def close(self) -> None:
        """The memory goes with the last array that looks into it."""
        self.nudge = _nobody

    def inputs_of(self, ticket: Ticket) -> dict[str, Array]:
        """A request's inputs out of its slots, as read-only copies; strings as objects."""
        assert ticket.served is not None and ticket.served.inputs is not None
        base = ticket.slot * self.slot_bytes
        specs = ticket.served.inputs.specs
        copies = {}
        for tensor in ticket.described if ticket.described is not None else _by_plan(specs, ticket.rows):
            name = specs[tensor.index].name
            start = base + tensor.offset
            if tensor.dtype == STRING:
                array = tensors.read_strings(name, self.inbound, start, tensor.payload_bytes, tensor.dims)
            else:
                array = np.array(tensors.view(self.inbound, start, tensor.dtype, tensor.dims))
            array.flags.writeable = False
            copies[name] = array
        return copies

    def views(self, ticket: Ticket, outputs: Outputs) -> Outputs:
        """Outputs of a leased run as read-only views of its slots, where there is room; strings never are views."""
        assert ticket.run is not None
        placed = {name: array for name, array in outputs.items() if array.dtype != object and array.size}
        offsets, end = place([array.nbytes for array in placed.values()])
        views = dict(outputs)
        if placed and end <= ticket.slot_count * self.slot_bytes:
            holder = ticket.run.outputs()
            base = ticket.slot * self.slot_bytes
            for (name, array), offset in zip(placed.items(), offsets, strict=True):
                self._written[base + offset : base + offset + array.nbytes] = array.tobytes()
                views[name] = holder[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        for view in views.values():
            view.flags.writeable = False
        return views


class _NoLane:
    """Nothing goes over it; `Client.lane` has its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class FakeCatalog(Catalog):
    """All models of a fake farm. One that has no signature takes whatever has names and dtypes that a farm knows."""

    def update(self, model: Model) -> None:
        super().update(model)
        if model.ready and model.signature is None:
            self._served[model.index].inputs = LooseInputs(model.name)


class LooseInputs(InputLayout):
    """The inputs of a model of which nobody has said what it takes. `specs` grows with what comes."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.specs: tuple[TensorSpec, ...] = ()
        self._lock = threading.Lock()

    def pack(self, inputs: object) -> Packed:
        if not isinstance(inputs, Mapping):
            raise TensorRefused(
                Reason.USAGE, f"one array was given, but the fake {self.model} has no signature: pass a dict"
            )
        arrays: list[Array] = []
        encoded: list[list[bytes] | None] = []
        given = []
        for name, value in inputs.items():
            array = np.asarray(value)
            code = tensors.code_of(array)
            if not isinstance(name, str) or code is None:
                raise TensorRefused(Reason.DTYPE, f"input {name!r}: expected a dtype of the farm, got {array.dtype}")
            strings = tensors.encode_strings(name, array) if code == STRING else None
            arrays.append(array)
            encoded.append(strings)
            given.append((self._index(name, code), array.shape, tensors.payload_bytes(array, code, strings)))
        return Packed(self._described(given), arrays, encoded)

    def lay_out(self, shapes: Mapping[str, tuple[Sequence[int], Any]]) -> tuple[Layout, list[int]]:
        given = []
        for name, (shape, dtype) in shapes.items():
            code = CODES.get(np.dtype(dtype).newbyteorder("=").name)
            if code is None:
                raise TensorRefused(
                    Reason.DTYPE, f"input {name!r}: {np.dtype(dtype)} cannot be leased; use infer for strings"
                )
            given.append((self._index(name, code), tuple(shape), prod(shape) * NUMPY[code].itemsize))
        return self._described(given), [index for index, _, _ in given]

    def _index(self, name: str, code: int) -> int:
        with self._lock:
            for index, spec in enumerate(self.specs):
                if spec.name == name and spec.dtype == code:
                    return index
            self.specs = (*self.specs, TensorSpec(name, code, ()))
            return len(self.specs) - 1

    def _described(self, given: Sequence[tuple[int, tuple[int, ...], int]]) -> Layout:
        offsets, end = place([size for _, _, size in given])
        described = tuple(
            Tensor(index, self.specs[index].dtype, dims, offset, size)
            for (index, dims, size), offset in zip(given, offsets, strict=True)
        )
        rows = given[0][1][0] if given and given[0][1] else 0
        return Layout(rows, described, offsets, end, end)


def _by_plan(specs: Sequence[TensorSpec], rows: int) -> list[Tensor]:
    plan = RowPlan(specs)
    return [
        Tensor(index, spec.dtype, plan.dims(index, rows), offset, size)
        for index, (spec, offset, size) in enumerate(zip(specs, plan.offsets(rows), plan.sizes(rows), strict=True))
    ]


def _nobody() -> None:
    pass
