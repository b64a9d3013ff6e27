"""Each test gets either client, attached to a router of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clientkinds import KINDS, Calls
from tests.fakerouter import FakeRouter


@pytest.fixture
def runtime_dir(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def router(runtime_dir: str) -> Iterator[FakeRouter]:
    with FakeRouter(runtime_dir) as router:
        yield router


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, runtime_dir: str) -> Iterator[Callable[..., Calls]]:
    """Clients of either kind, closed at the end."""
    made = []

    def maker(**options: Any) -> Calls:
        calls = Calls(kind, runtime_dir, **options)
        made.append(calls)
        return calls

    yield maker
    for calls in made:
        calls.close()


@pytest.fixture
def client(make: Callable[..., Calls], router: FakeRouter) -> Calls:
    return make()
