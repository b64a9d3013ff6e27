"""Who may attach, speak on the ZeroMQ lane, and ask for which model. What a client may ask for is found once, when it
attaches: a request then costs one look into a small set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from router.config import ModelConfig


class _Client(Protocol):
    uid: int


class Permits:
    """trusted: users who may ask for every model, since they could do as they like with the workers anyway: root, and
    the farm's own. service_gid: the group whose members may attach too."""

    def __init__(self, models: Sequence[ModelConfig], trusted: frozenset[int], service_gid: int | None = None) -> None:
        self._models = models
        self._trusted = trusted
        self._service_gid = service_gid

    def may_attach(self, uid: int, gids: frozenset[int] | None) -> bool:
        """gids: all groups of the user; None when the kernel does not say, for one in more than 256: then the
        directory's mode alone, which only members pass, has let it in."""
        if uid in self._trusted:
            return True
        return self._service_gid is not None and (gids is None or self._service_gid in gids)

    def speaks(self, uid: int, clients: Iterable[_Client]) -> bool:
        """On the ZeroMQ lane: whoever is trusted, and who has a session now."""
        return uid in self._trusted or any(client.uid == uid for client in clients)

    def denied_to(self, uid: int, gids: frozenset[int]) -> frozenset[int]:
        """Indexes of the models that this user may not ask for."""
        if uid in self._trusted:
            return frozenset()
        return frozenset(
            index
            for index, model in enumerate(self._models)
            if model.allow is not None and uid not in model.allow.uids and gids.isdisjoint(model.allow.gids)
        )
