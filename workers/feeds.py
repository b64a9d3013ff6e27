"""What a session is fed for one member: views on its slots, or private copies."""

from __future__ import annotations

from shm import tensors
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import STRING
from shm.tensors import Array
from shm.worker import Member
from workers.arenas import Arena
from workers.outputs import Turn
from workers.session import Session


def feed_of(session: Session, arena: Arena, member: Member, private: bool, turn: Turn) -> dict[str, Array]:
    """Inputs by name. Strings are always read from a private copy; `private`: everything is.

    Raises:
        TensorRefused: strings whose offsets or bytes are wrong.
    """
    specs = session.signature.inputs
    feed = {}
    if member.tensors is None:
        arrays = arena.arrays(session.input_plan, member, out=False)
        feed = {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
    else:
        start, room_bytes = arena.room(member.slot, member.slot_count)
        for tensor in member.tensors:
            name = specs[tensor.index].name
            if tensor.offset + tensor.payload_bytes > room_bytes:
                raise TensorRefused(Reason.BYTE_LENGTH, f"input {name!r} passes the {room_bytes} bytes of its slots")
            where = start + tensor.offset
            if tensor.dtype == STRING:
                feed[name] = tensors.read_strings(name, arena.in_map, where, tensor.payload_bytes, tensor.dims)
                turn.input_copied(1, tensor.payload_bytes)
            else:
                feed[name] = tensors.view(arena.in_map, where, tensor.dtype, tensor.dims)
    for name, array in feed.items():
        if array.dtype.kind == "O":
            continue
        if private:
            feed[name] = array.copy()
            turn.input_copied(1, array.nbytes)
        else:
            turn.input_left()
    return feed


def addresses_of(feed: dict[str, Array]) -> tuple[int, ...]:
    """Where the inputs lie that are no strings, for Inspect."""
    return tuple(tensors.address(array) for array in feed.values() if array.dtype.kind != "O")
