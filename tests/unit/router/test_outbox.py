"""The outbox: what a turn wants, in order, each client's replies as one frame and its releases as another."""

from __future__ import annotations

from router import events as ev
from router.outbox import Outbox
from shm.client import Reply


def test_actions_keep_their_order_and_come_before_replies_and_those_before_releases():
    outbox = Outbox()
    outbox.release(2, 5)
    outbox.reply(2, Reply(5, 0))
    outbox.act(ev.PublishModel(1))
    outbox.reply(1, Reply(4, 0))
    outbox.act(ev.CloseArena(9))
    assert not outbox.is_empty()
    assert outbox.collect() == [
        ev.PublishModel(1),
        ev.CloseArena(9),
        ev.SendReplies(2, [Reply(5, 0)]),
        ev.SendReplies(1, [Reply(4, 0)]),
        ev.SendRelease(2, [5]),
    ]
    assert outbox.is_empty()


def test_each_of_actions_replies_and_releases_makes_an_outbox_not_empty():
    for fill in (
        lambda outbox: outbox.act(ev.CloseArena(1)),
        lambda outbox: outbox.reply(1, Reply(1, 0)),
        lambda outbox: outbox.release(1, 1),
    ):
        outbox = Outbox()
        fill(outbox)
        assert not outbox.is_empty()
        outbox.collect()
        assert outbox.is_empty()
        assert outbox.collect() == []


def test_what_was_gathered_for_a_client_that_is_gone_is_dropped_and_nobody_elses():
    outbox = Outbox()
    for session in (1, 2):
        outbox.reply(session, Reply(7, 0))
        outbox.release(session, 8)
    outbox.release(1, 9)
    outbox.forget(2)
    outbox.forget(3)
    assert outbox.collect() == [ev.SendReplies(1, [Reply(7, 0)]), ev.SendRelease(1, [8, 9])]
