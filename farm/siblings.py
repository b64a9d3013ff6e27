"""Imported for its effect, before anything from `router` or `workers`: a user's own of these names are refused.

`farm/__init__.py` does the same for `shm`, which clients need too; these two only matter where a configuration is read.
"""

from __future__ import annotations

from farm.shadow import require_sibling

require_sibling("router")
require_sibling("workers")
