"""How requests end: what a reply says, what is kept and compared, what is counted, and when slots and arenas go."""

from __future__ import annotations

from typing import Any

import pytest

from router import events as ev
from router.config import OnConfig, RuleConfig, RulesConfig
from router.fallback import FAILURE_OF, FAILURES
from shm.endings import Ending, Reason
from shm.worker import RAN, Copies, MemberDone
from tests.unit.router.build import ALWAYS, MS, NOW, Bench, request

KEEPS = OnConfig(timeout=["last_good", "rules"])


def sampled(every: int) -> RulesConfig:
    return RulesConfig(rules=[RuleConfig(name="always", answer={"y": 0.0})], sample_every=every)


def answered(bench: Bench, number: int, member: MemberDone | None = None, **fields: Any) -> None:
    """One request is asked and gets its model's answer."""
    bench.ask(request(number, slot=1, now=bench.now, **fields))
    (run,) = bench.of(ev.Dispatch)
    bench.finish(run=run.run, members=None if member is None else [member])


# What of the model's answers is kept


def test_an_answer_to_a_request_with_a_key_is_kept_before_it_is_sent():
    bench = Bench(on=KEEPS, rules=ALWAYS)
    asked = request(1, key="card 7")
    bench.ask(asked)
    bench.finish()
    (kept,) = bench.of(ev.KeepAnswer)
    assert (kept.session, kept.model, kept.request, kept.reply) == (1, 0, asked, bench.reply)
    assert bench.actions.index(kept) < bench.actions.index(bench.of(ev.SendReplies)[0])


@pytest.mark.parametrize(
    ("fields", "model"),
    [({}, {"on": KEEPS}), ({"key": "card 7"}, {}), ({"key": "card 7"}, {"on": OnConfig(timeout=["rules"])})],
    ids=["no_key", "no_table", "table_without_last_good"],
)
def test_an_answer_is_kept_only_for_a_key_and_where_the_model_may_ask_for_it(fields, model):
    bench = Bench(rules=ALWAYS, **model)
    answered(bench, 1, **fields)
    assert bench.reply.ending == Ending.MODEL
    assert not bench.of(ev.KeepAnswer)


@pytest.mark.parametrize("failure", FAILURES)
def test_answers_are_kept_whichever_failure_asks_for_them(failure):
    bench = Bench(on=OnConfig(**{failure: ["last_good"]}))
    answered(bench, 1, key="")
    assert len(bench.of(ev.KeepAnswer)) == 1


def test_what_is_no_answer_of_the_model_is_not_kept():
    bench = Bench(on=KEEPS, rules=ALWAYS)
    answered(bench, 1, MemberDone(Reason.MODEL_ERROR), key="k")
    assert not bench.of(ev.KeepAnswer)
    bench.ask(request(2, slot=1, key="k", in_ms=10, now=bench.now))
    bench.pass_time(9.9)
    bench.finish(run=2)
    assert bench.released == [2]
    assert not bench.of(ev.KeepAnswer)


def test_an_answer_in_a_file_of_its_own_is_neither_kept_nor_compared():
    """The router does not map it."""
    bench = Bench(on=KEEPS, rules=sampled(1))
    answered(bench, 1, MemberDone(overflow_bytes=500), key="k")
    assert bench.reply.overflow
    assert not bench.of(ev.KeepAnswer) and not bench.of(ev.CompareRules)
    answered(bench, 2, key="k")
    assert bench.of(ev.KeepAnswer) and bench.of(ev.CompareRules)


# What is put to the rules too


@pytest.mark.parametrize("every", [1, 3, 100])
def test_every_so_many_answers_one_is_put_to_the_rules(every):
    bench, compared = Bench(rules=sampled(every)), []
    for number in range(1, 301):
        answered(bench, number)
        compared += [asked.request.id for asked in bench.of(ev.CompareRules)]
    assert compared == list(range(every, 301, every))


def test_the_rules_are_asked_with_the_request_and_the_models_reply_before_it_is_sent():
    bench = Bench(rules=sampled(1))
    asked = request(1)
    bench.ask(asked)
    bench.finish()
    (compared,) = bench.of(ev.CompareRules)
    assert (compared.session, compared.model, compared.request, compared.reply) == (1, 0, asked, bench.reply)
    assert bench.actions.index(compared) < bench.actions.index(bench.of(ev.SendReplies)[0])


@pytest.mark.parametrize("rules", [None, sampled(0)])
def test_without_rules_or_a_sample_nothing_is_compared(rules):
    bench = Bench(rules=rules, on=OnConfig(timeout=["last_good"]))
    for number in range(1, 210):
        answered(bench, number, key="k")
        assert not bench.of(ev.CompareRules)
        assert bench.of(ev.KeepAnswer)


def test_without_a_word_about_it_every_hundredth_answer_is_compared():
    bench = Bench(rules=ALWAYS)
    for number in range(1, 101):
        answered(bench, number)
        assert bool(bench.of(ev.CompareRules)) is (number == 100)


# What a reply says


def test_a_reply_of_the_model_carries_what_the_worker_said_of_it():
    bench = Bench()
    member = MemberDone(inline=b"abc", outputs=())
    answered(bench, 1, member, rows=3)
    reply = bench.reply
    assert (reply.inline, reply.outputs, reply.overflow, reply.rows, reply.run_rows) == (b"abc", (), False, 3, 3)
    assert (reply.ending, reply.reason, reply.held, reply.retry_after_ms) == (0, 0, False, 0)


def test_a_reply_of_the_model_says_how_long_each_stage_took():
    bench = Bench(max_delay_ms=2)
    bench.ask(request(1, in_ms=500))
    bench.pass_until_due()
    assert bench.dispatched
    now = bench.now
    done = ev.RunFinished(1, 1, RAN, now + 3 * MS, now + 7 * MS, [], Copies())
    bench.turn(done, after_ms=12)
    stages = bench.reply.stages
    assert stages is not None
    assert (stages.arrived_ns, stages.queue_ns, stages.to_worker_ns) == (NOW, 2 * MS, 3 * MS)
    assert (stages.run_ns, stages.from_worker_ns) == (4 * MS, 5 * MS)


def test_a_refusal_from_the_queue_says_how_long_it_was_there():
    bench = Bench(max_batch=1, run_ns=MS)
    bench.ask(request(1, in_ms=500))
    bench.ask(request(2, in_ms=500))
    bench.turn(ev.RequestsCancelled(1, [2]), after_ms=3)
    stages = bench.reply.stages
    assert stages is not None
    assert (stages.arrived_ns, stages.queue_ns, stages.to_worker_ns, stages.run_ns) == (NOW, 3 * MS, 0, 0)
    assert (bench.reply.rows, bench.reply.retry_after_ms) == (1, 0)


def test_a_refusal_from_a_run_says_how_long_it_was_queued_before():
    bench = Bench(max_delay_ms=3)
    bench.ask(request(1, in_ms=50, rows=2))
    bench.pass_until_due()
    bench.pass_until_due()
    stages = bench.reply.stages
    assert stages is not None
    assert (stages.arrived_ns, stages.queue_ns, bench.reply.rows, bench.reply.held) == (NOW, 3 * MS, 2, True)


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        (Reason.MODEL_ERROR, Ending.FAILED),
        (Reason.GUARD, Ending.FAILED),
        (Reason.OUTPUT_TOO_LARGE, Ending.FAILED),
        (Reason.STRING, Ending.INVALID),
    ],
)
def test_a_member_without_an_answer_ends_by_its_reason_and_with_the_workers_words(reason, ending):
    bench = Bench()
    answered(bench, 1, MemberDone(reason, message="as the worker says"))
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (ending, reason, False)
    assert bench.reply.message == "as the worker says"


def test_who_died_too_late_to_be_run_again_is_told_so():
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.turn(ev.WorkerGone(1), after_ms=49.9)
    assert bench.reply.message == "the worker died, and no time was left to run it again"


# When to come back


def test_when_to_come_back_is_when_what_waits_is_done():
    bench = Bench(run_ns=10 * MS, max_batch=2, queue_requests=4, workers=1)
    bench.ask(request(99, slot=63, in_ms=9_000, rows=2))
    bench.ask(*(request(n, in_ms=9_000) for n in range(1, 6)))
    assert (bench.reply.id, bench.reply.reason) == (5, Reason.QUEUE_FULL)
    # What is in hand, and two batches that wait.
    assert bench.reply.retry_after_ms == 30


def test_several_workers_are_done_sooner():
    bench = Bench(run_ns=10 * MS, max_batch=1, queue_requests=3, workers=2)
    bench.ask(*(request(n, in_ms=9_000) for n in (1, 2)))
    assert len(bench.dispatched) == 2
    bench.ask(*(request(n, in_ms=9_000) for n in range(3, 7)))
    assert (bench.reply.reason, bench.reply.retry_after_ms) == (Reason.QUEUE_FULL, 30)


def test_nobody_is_told_to_come_back_at_once():
    bench = Bench(in_flight_max=1, run_ns=200_000)
    bench.ask(request(1), request(2))
    assert (bench.reply.reason, bench.reply.retry_after_ms) == (Reason.IN_FLIGHT_FULL, 1)


def test_who_sends_too_fast_is_told_when_its_rate_lets_it():
    bench = Bench(client_rate=10)
    bench.ask(request(1), request(2))
    assert (bench.reply.reason, bench.reply.retry_after_ms) == (Reason.RATE, 100)
    bench.turn(after_ms=40)
    bench.ask(request(3))
    assert (bench.reply.reason, bench.reply.retry_after_ms) == (Reason.RATE, 60)


def test_who_was_not_shed_is_not_told_when_to_come_back():
    bench = Bench()
    bench.ask(request(1, in_ms=-1))
    assert (bench.reply.ending, bench.reply.retry_after_ms) == (Ending.EXPIRED, 0)


# By the table


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason in FAILURE_OF])
def test_each_reason_is_answered_by_what_its_failure_has_in_the_models_table(reason):
    on = OnConfig(**{failure: ["constant", "rules"] for failure in FAILURES})
    for table, steps in ((on, ("constant", "rules")), (OnConfig(**{f: ["reject"] for f in FAILURES}), None)):
        bench = Bench(on=table, rules=ALWAYS, constant={"y": 1.0})
        assert bench.machine.models[0].instead.get(reason) == steps
        if reason is Reason.MODEL_ERROR or reason is Reason.GUARD:
            answered(bench, 1, MemberDone(reason))
            assert [asked.steps for asked in bench.of(ev.AnswerInstead)] == ([steps] if steps else [])
            assert bench.reply.reason == reason


@pytest.mark.parametrize(
    "reason", [reason for reason in Reason if reason not in FAILURE_OF], ids=lambda reason: reason.name
)
def test_what_is_no_failure_of_the_farm_is_answered_by_no_table(reason):
    on = OnConfig(**{failure: ["rules"] for failure in FAILURES})
    assert Bench(on=on, rules=ALWAYS).machine.models[0].instead.get(reason) is None


@pytest.mark.parametrize("failure", FAILURES)
def test_retry_and_reject_are_no_answers(failure):
    retried = failure in ("worker_died", "model_error", "guard")
    bench = Bench(on=OnConfig(**{failure: ["retry", "reject"] if retried else ["reject"]}))
    model = bench.machine.models[0]
    mine = {reason for reason, of in FAILURE_OF.items() if of == failure}
    assert not mine & set(model.instead)
    assert mine <= model.retried if retried else not mine & model.retried


def test_a_refusal_that_is_to_be_answered_is_not_counted_before_it_is_known_how():
    bench = Bench(rules=ALWAYS)
    bench.ask(request(1, in_ms=20))
    bench.pass_time(20)
    (asked,) = bench.of(ev.AnswerInstead)
    assert (asked.session, asked.model, asked.request.id) == (1, 0, 1)
    assert bench.machine.counters.expired == 0
    assert not bench.of(ev.SendReplies)


@pytest.mark.parametrize(
    ("ending", "counter"),
    [
        (Ending.RULES, "answers_rules"),
        (Ending.LAST_GOOD, "answers_last_good"),
        (Ending.CONSTANT, "answers_constant"),
        (Ending.SHED, "shed"),
        (Ending.EXPIRED, "expired"),
        (Ending.FAILED, "failed"),
        (Ending.CANCELLED, "cancelled"),
        (Ending.INVALID, "invalid"),
    ],
)
def test_each_ending_has_a_counter_of_its_own(ending, counter):
    machine = Bench().machine
    before = machine.counters.snapshot()
    for _ in range(2):
        machine.instead_ended(ending, Reason.TIMEOUT)
    after = machine.counters.snapshot()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {counter: 2}


@pytest.mark.parametrize("ending", [Ending.MODEL, Ending.PREVIOUS_VERSION])
def test_an_answer_that_nothing_else_can_give_is_not_counted_here(ending):
    with pytest.raises(AssertionError, match="is counted elsewhere"):
        Bench().machine.instead_ended(ending, Reason.TIMEOUT)


def test_the_models_answers_are_counted():
    bench = Bench()
    for number in (1, 2, 3):
        answered(bench, number)
    assert bench.machine.counters.answers_model == 3


# Held, released, closed


def test_held_replies_and_their_releases_are_counted():
    bench = Bench()
    for number in (1, 2):
        bench.ask(request(number, slot=1, in_ms=20, now=bench.now))
        bench.pass_time(20)
        assert bench.reply.held
        bench.finish(run=number)
        assert bench.released == [number]
    assert (bench.machine.counters.held, bench.machine.counters.released) == (2, 2)


def test_an_arena_is_closed_when_the_last_of_its_runs_has_ended():
    bench = Bench(workers=2, max_batch=1)
    bench.ask(request(1), request(2))
    bench.turn(ev.ClientLost(1))
    assert bench.machine.counters.orphaned == 2
    bench.finish(worker=1, run=1)
    assert not bench.of(ev.CloseArena)
    bench.finish(worker=2, run=2)
    assert bench.of(ev.CloseArena) == [ev.CloseArena(1)]
    assert bench.machine.counters.released == 0
    assert 1 not in bench.machine.ledger.sessions


@pytest.mark.parametrize("draining", [True, False])
def test_who_comes_while_nothing_can_be_had_is_not_invited_at_once(draining):
    bench = Bench(workers=int(draining))
    if draining:
        bench.turn(ev.DrainStarted(10**9))
    bench.ask(request(1))
    assert bench.reply.reason == (Reason.DRAINING if draining else Reason.NO_WORKER)
    assert bench.reply.retry_after_ms == 1_000


def test_how_often_each_reason_was_given_is_told():
    bench = Bench(in_flight_max=1)
    bench.ask(*(request(n) for n in range(1, 4)))
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.machine.instead_ended(Ending.SHED, Reason.RULES_BUSY)
    bench.finish()
    assert bench.machine.reasons() == {"in_flight_full": 2, "rules_busy": 1, "cancelled": 1}
