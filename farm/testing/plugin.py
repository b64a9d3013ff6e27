"""The pytest plugin: the fixture `fake_farm`. Loaded in every pytest run where shmfarm is installed, so it imports
nothing heavy before a test asks for the fixture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from farm.testing.fake import FakeFarm


@pytest.fixture
def fake_farm() -> Iterator[FakeFarm]:
    """A `farm.testing.FakeFarm` without models; give it some with `fake_farm.add(name, function_or_signature)`.

    Its clients are closed when the test ends.
    """
    from farm.testing.fake import FakeFarm

    with FakeFarm({}) as fake:
        yield fake
