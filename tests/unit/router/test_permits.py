"""Model permissions: who is denied what, found at attach, and how a request for such a model ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from router import events as ev
from router.config import AllowConfig, ModelConfig
from router.permits import Permits
from shm.endings import Ending, Reason
from tests.unit.router.build import Bench, request

FARM = 500
TRUSTED = frozenset((0, FARM))
MODELS = [
    ModelConfig(name="all"),
    ModelConfig(name="some", allow=AllowConfig(uids=[1001], gids=[40])),
    ModelConfig(name="none", allow=AllowConfig()),
]


@pytest.mark.parametrize(
    ("uid", "gids", "denied"),
    [(0, [0], set()), (FARM, [FARM], set()), (1001, [7], {2}), (1002, [7, 40], {2}), (1002, [7, 1001], {1, 2})],
    ids=["root", "the_farm", "a_named_user", "a_member", "neither"],
)
def test_users_and_groups_are_told_apart_and_root_and_the_farm_may_ask_for_all(uid, gids, denied):
    assert Permits(MODELS, TRUSTED).denied_to(uid, frozenset(gids)) == denied


def test_a_request_for_a_model_that_its_user_may_not_ask_for_is_invalid_and_never_runs():
    bench = Bench()
    bench.turn(ev.ClientAttached(3, 64, 256, frozenset({0})))
    bench.ask(request(1), session=3)
    assert (bench.reply.ending, bench.reply.reason) == (Ending.INVALID, Reason.NOT_ALLOWED)
    assert not bench.dispatched and bench.machine.ledger.open_count == 0
    bench.ask(request(1), session=1)
    assert bench.dispatched == [[1]]


def test_members_of_the_service_group_may_attach_and_who_has_a_session_may_speak():
    permits, alone = Permits(MODELS, TRUSTED, 40), Permits(MODELS, TRUSTED)
    for uid, gids, member in ((1001, frozenset((7, 40)), True), (1001, frozenset((7,)), False), (1001, None, True)):
        assert (permits.may_attach(uid, gids), alone.may_attach(uid, gids)) == (member, False)
    assert alone.may_attach(0, frozenset((0,))) and alone.may_attach(FARM, frozenset((7,)))
    clients = [SimpleNamespace(uid=1001)]
    assert [permits.speaks(uid, clients) for uid in (0, FARM, 1001, 1002)] == [True, True, True, False]
