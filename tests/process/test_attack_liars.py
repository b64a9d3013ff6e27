"""Attached clients that lie, in short: the same code as `python -m tests.attack liars`, against a real farm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.attack.changing import change_inputs
from tests.attack.lies import LIES, queues_without_end
from tests.attack.stand import LANES, MAKERS, Stand, stand

pytestmark = pytest.mark.slow

REQUESTS = 20_000
SECONDS = 1.5


@pytest.fixture(scope="module")
def liars_stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    # The least that may be set: who never reads is cut off sooner.
    with stand(tmp_path_factory.mktemp("liars"), lane_mib=16) as at:
        yield at


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_costs_nobody_but_the_liar(liars_stand, lie, lane):
    """It gets its reason, no process dies, and honest answers are right and in time."""
    liars_stand.judge(lie.__name__, lane, lie)


@pytest.mark.parametrize("lane", LANES)
def test_a_queue_without_end_leaves_others_their_places(liars_stand, lane):
    told = liars_stand.judge("queues_without_end", lane, partial(queues_without_end, requests=REQUESTS))
    assert told.got["queue_full"] > REQUESTS // 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("isolation", ["group", "same-uid"])
def test_inputs_that_change_during_runs_kill_nothing_but_workers_that_read_them_in_place(tmp_path, isolation):
    with stand(tmp_path, isolation, list(MAKERS)) as at:
        for number, name in enumerate(MAKERS):
            tell = partial(change_inputs, name=name, seconds=SECONDS)
            told = at.judge(name, LANES[number % 2], tell, may_die=isolation == "same-uid")
            assert told.got.get("ok", 0) and told.got["turns"] > 100
            assert isolation == "same-uid" or not told.deaths
