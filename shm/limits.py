"""Limits of the wire that no configuration may lift. What an operator may set is in `configs/farm.toml`."""

from __future__ import annotations

PROTOCOL_VERSION = 1
"""Of client lane and attach together; raised with any change that an old peer could not read."""

FRAME_BYTES_MAX = 128 * 1024
"""The largest frame on any lane. A SEQPACKET message must fit the socket's send buffer, 208 KiB by default,
of which the kernel counts its own overhead (212,000 bytes pass, 212,992 do not)."""

REQUESTS_MAX = 512
"""Requests in one Submit: at 23 to 160 bytes each this stays below FRAME_BYTES_MAX."""

INLINE_BYTES_MAX = 32 * 1024
"""Tensors that travel inside a reply; beyond that a memory file of its own is cheaper than the copies."""

TENSORS_MAX = 64
RANK_MAX = 32
NAME_BYTES_MAX = 256
KEY_CHARS_MAX = 128
MESSAGE_CHARS_MAX = 512
MEMBERS_MAX = 100
"""Members of one run: each may bring two descriptors, and the kernel passes at most 253 in a message."""

SLOT_COUNT_MAX = 65_536
PRIORITY_MAX = 7
DEADLINE_NS_MAX = 24 * 3600 * 10**9
"""A deadline further away than a day is taken for a mistake in units."""

ID_MAX = 2**63 - 1
