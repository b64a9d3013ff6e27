"""`allow = ["alice", 1001, "@traders"]` of a model: users and groups by name or number, into numbers."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence

from farm.strict import Place, show
from router.config import AllowConfig


def resolve(allow: Sequence[str | int], place: Place) -> AllowConfig:
    """An entry is a user; one that begins with `@` a group.

    Raises:
        ConfigError: this host does not know a name.
    """
    uids: list[int] = []
    gids: list[int] = []
    for entry in allow:
        word = str(entry)
        group = word.startswith("@")
        name = word.removeprefix("@")
        try:
            if name.isascii() and name.isdigit():
                number = int(name)
            else:
                number = grp.getgrnam(name).gr_gid if group else pwd.getpwnam(name).pw_uid
        except KeyError:
            kind = "group" if group else "user"
            raise place.error(f"allow = {show(list(allow))}: this host has no {kind} {name!r}") from None
        (gids if group else uids).append(number)
    return AllowConfig(uids=uids, gids=gids)
