"""The steps of a table's row: each has an answer or makes way for the next, and what the refusal says when none has."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from router import events as ev
from router import ruling
from router.answering import Answering, Owner
from router.answers import AnswerRefused, Constant
from router.arena import Arena
from router.config import AgreeConfig, LastGoodConfig, ModelConfig, RuleConfig, RulesConfig
from router.counters import Counters
from shm import segment
from shm.client import Reply, Request
from shm.endings import Ending, Reason
from shm.layout import Signature, Tensor, TensorSpec
from shm.limits import INLINE_BYTES_MAX
from tests.unit.router.build import MS, request

SIGNATURE = Signature((TensorSpec("x", 1, ("N", 2)),), (TensorSpec("y", 1, ("N",)),), True)
RISKY = RulesConfig(
    features={"x": ["amount", "risk"]},
    rules=[RuleConfig(name="risky", when="risk > 0.5", answer={"y": 1.0}), RuleConfig(name="fine", answer={"y": 0.25})],
)
SLOT_BYTES = 256


class World:
    """One model, two clients of different users (sessions 1 and 2), and a clock that stands still."""

    def __init__(self, **model: Any) -> None:
        fds = [segment.create_sealed(f"test-{side}", 64 * SLOT_BYTES) for side in ("in", "out")]
        self.arena = Arena(fds[0], fds[1], 64, SLOT_BYTES)
        self.owners = {1: Owner(1000, self.arena), 2: Owner(1001, self.arena), 3: Owner(1000, self.arena)}
        self.counters = Counters()
        self.now_ns = 0
        self.answering = Answering(
            [ModelConfig(name="m", **model)], self.owners.get, self.counters, lambda: self.now_ns
        )

    def bind(self) -> World:
        self.answering.bind(0, SIGNATURE)
        return self

    def write(self, *rows: tuple[float, float], slot: int = 1) -> None:
        values = [value for row in rows for value in row]
        os.pwrite(self.arena.in_fd, struct.pack(f"={len(values)}f", *values), slot * SLOT_BYTES)

    def model_says(self, *values: float, slot: int = 1) -> None:
        os.pwrite(self.arena.out_fd, struct.pack(f"={len(values)}f", *values), slot * SLOT_BYTES)

    def instead(
        self,
        *steps: Any,
        asked: Request | None = None,
        session: int = 1,
        ending: Ending = Ending.EXPIRED,
        reason: Reason = Reason.TIMEOUT,
        message: str | None = None,
    ) -> Reply:
        asked = asked or request()
        refusal = Reply(asked.id, ending, reason, True, asked.rows, message=message)
        return self.answering.answer(ev.AnswerInstead(session, 0, asked, refusal, steps))

    def keep(self, key: str | None, *values: float, session: int = 1, **fields: Any) -> None:
        self.model_says(*values)
        asked = request(rows=len(values), key=key)
        reply = Reply(asked.id, 0, rows=asked.rows, **fields)
        self.answering.keep(ev.KeepAnswer(session, 0, asked, reply))

    def compare(self, *values: float) -> tuple[int, int]:
        """What the model answers in slot 1, for the inputs there; (compared, agreed) after it."""
        self.model_says(*values)
        asked = request(rows=len(values))
        self.answering.compare(ev.CompareRules(1, 0, asked, Reply(asked.id, 0, rows=asked.rows)))
        return self.counters.rules_compared, self.counters.rules_agreed


@pytest.fixture
def world() -> Iterator[Any]:
    made: list[World] = []

    def make(**model: Any) -> World:
        made.append(World(**model))
        return made[-1]

    yield make
    for each in made:
        for _ in each.arena.empty():
            pass


def floats(reply: Reply) -> tuple[float, ...]:
    assert reply.inline is not None
    assert reply.outputs is not None
    return struct.unpack_from(f"={reply.outputs[0].payload_bytes // 4}f", reply.inline, reply.outputs[0].offset)


# One step


def test_a_rule_answers_and_is_named_and_the_reason_stays(world):
    w = world(rules=RISKY).bind()
    w.write((1, 0.9), (1, 0.1))
    reply = w.instead("rules", asked=request(rows=2))
    assert (reply.ending, reply.reason, reply.held) == (Ending.RULES, Reason.TIMEOUT, True)
    assert reply.rule == "risky+fine"
    assert floats(reply) == (1.0, 0.25)


def test_the_constant_is_repeated_for_each_row(world):
    reply = world(constant={"y": 0.5}).bind().instead("constant", asked=request(rows=3))
    assert (reply.ending, reply.rule) == (Ending.CONSTANT, None)
    assert reply.outputs == (Tensor(0, 1, (3,), 0, 12),)
    assert floats(reply) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("constant", "said"),
    [
        ({}, "model m: constant: the answer lacks output 'y'; expected y: float32[N]"),
        ({"y": 1.0, "z": 2.0}, "model m: constant: the model has no output 'z'; it has y"),
        ({"y": [1.0, 2.0]}, "model m: constant: output 'y' takes 1 values a row, the answer has 2"),
        ({"y": "much"}, "model m: constant: output 'y' is float32, and the answer is not"),
    ],
)
def test_a_constant_that_does_not_fit_is_refused_by_model_and_output(world, constant, said):
    with pytest.raises(AnswerRefused) as caught:
        world(constant=constant).bind()
    assert str(caught.value).startswith(said)


def test_a_constant_bool_is_true_or_false():
    signature = Signature(SIGNATURE.inputs, (TensorSpec("yes", 9, ("N",)),))
    assert Constant({"yes": True}, signature).answer(2)[1] == b"\x01\x01"
    with pytest.raises(AnswerRefused, match="write true or false"):
        Constant({"yes": "no"}, signature)


@pytest.mark.parametrize("rows", [0, INLINE_BYTES_MAX // 4 + 1, 2**31])
def test_a_constant_for_no_rows_or_too_many_leaves_the_refusal_as_it_is(world, rows):
    reply = world(constant={"y": 0.5}).bind().instead("constant", asked=request(rows=rows))
    assert (reply.ending, reply.reason) == (Ending.EXPIRED, Reason.TIMEOUT)


def test_the_last_answer_for_the_key_is_given_again(world):
    w = world().bind()
    w.keep("a", 0.7, 0.8)
    w.keep("b", 0.1, 0.2)
    reply = w.instead("last_good", asked=request(rows=2, key="a"))
    assert (reply.ending, reply.reason) == (Ending.LAST_GOOD, Reason.TIMEOUT)
    assert floats(reply) == pytest.approx((0.7, 0.8))
    assert reply.outputs == (Tensor(0, 1, (2,), 0, 8),)


def test_an_answer_that_came_inline_is_kept_as_it_came(world):
    w = world().bind()
    tensors = (Tensor(0, 1, (1,), 64, 4),)
    w.keep("a", 0.0, outputs=tensors, inline=bytes(64) + struct.pack("=f", 3.0))
    assert floats(w.instead("last_good", asked=request(key="a"))) == (3.0,)


@pytest.mark.parametrize(
    ("asked", "session"),
    [
        (request(), 1),
        (request(key="other"), 1),
        (request(key="a", rows=2), 1),
        (request(key="a"), 2),
    ],
    ids=["no_key", "other_key", "other_rows", "other_user"],
)
def test_there_is_no_last_answer_for(world, asked, session):
    w = world().bind()
    w.keep("a", 0.7)
    assert w.instead("last_good", asked=asked, session=session).ending == Ending.EXPIRED


def test_another_client_of_the_same_user_finds_the_last_answer(world):
    w = world().bind()
    w.keep("a", 0.7)
    assert w.instead("last_good", asked=request(key="a"), session=3).ending == Ending.LAST_GOOD


def test_a_last_answer_is_not_given_past_its_age(world):
    w = world(last_good=LastGoodConfig(max_age_ms=50)).bind()
    w.keep("a", 0.7)
    w.now_ns = 50 * MS
    assert w.instead("last_good", asked=request(key="a")).ending == Ending.LAST_GOOD
    w.now_ns += 1
    assert w.instead("last_good", asked=request(key="a")).ending == Ending.EXPIRED
    assert w.answering.facts(0)["last_good_keys"] == 0


@pytest.mark.parametrize("fields", [{"overflow": True}, {"outputs": (Tensor(0, 1, (9000,), 0, 36_000),)}])
def test_an_answer_too_large_for_a_reply_is_not_kept(world, fields):
    w = world().bind()
    w.keep("a", 0.7, **fields)
    assert w.answering.facts(0)["last_good_keys"] == 0


def test_answers_of_another_signature_are_forgotten(world):
    w = world().bind()
    w.keep("a", 0.7)
    w.answering.bind(0, SIGNATURE)
    assert w.answering.facts(0)["last_good_keys"] == 1
    w.answering.bind(0, Signature(SIGNATURE.inputs, (TensorSpec("y", 11, ("N",)),), True))
    assert w.answering.facts(0)["last_good_keys"] == 0


# Several steps


def test_steps_are_tried_in_order_and_the_first_that_answers_wins(world):
    w = world(rules=RISKY, constant={"y": 0.5}).bind()
    w.write((1, 0.9))
    assert w.instead("constant", "rules").ending == Ending.CONSTANT
    assert w.instead("rules", "constant").ending == Ending.RULES
    assert w.instead("last_good", "rules", "constant", asked=request(key="a")).ending == Ending.RULES


def test_rules_that_fail_make_way_for_the_next_step(world):
    w = world(rules=RulesConfig(rules=[RuleConfig(name="never", when="false", answer={"y": 1})]), constant={"y": 0.5})
    assert w.bind().instead("rules", "constant").ending == Ending.CONSTANT


def test_rules_that_fail_give_their_reason_to_the_refusal_and_leave_its_ending(world):
    w = world(rules=RulesConfig(rules=[RuleConfig(name="never", when="false", answer={"y": 1})])).bind()
    reply = w.instead("rules", "last_good", ending=Ending.FAILED, reason=Reason.GUARD, message="y is nan")
    assert (reply.ending, reply.reason) == (Ending.FAILED, Reason.RULE_ERROR)
    assert reply.message == (
        "y is nan; and the rules gave no answer: no rule holds; "
        "give the last rule no condition to have an answer always"
    )


def test_rules_that_are_busy_make_way_for_the_next_step_else_the_request_is_shed(world):
    w = world(rules=RulesConfig(rules=RISKY.rules, features=RISKY.features, rows_max=3), constant={"y": 0.5}).bind()
    assert w.instead("rules", asked=request(rows=2)).ending == Ending.RULES
    assert w.instead("rules", "constant", asked=request(rows=2)).ending == Ending.CONSTANT
    reply = w.instead("rules", asked=request(rows=2))
    assert (reply.ending, reply.reason) == (Ending.SHED, Reason.RULES_BUSY)
    assert reply.retry_after_ms > 0
    # One that is not paid for takes nothing from the others' share.
    assert w.instead("rules").ending == Ending.RULES
    w.answering.ruling.start_turn()
    assert w.instead("rules", asked=request(rows=2)).ending == Ending.RULES


def test_what_rows_cost_is_bounded_in_a_turn_whoever_asks(world, monkeypatch):
    w = world(rules=RISKY).bind()
    book = w.answering.ruling.books[0]
    monkeypatch.setattr(book, "row_ns", ruling.TURN_NS // 10)
    ends = [w.instead("rules").ending for _ in range(12)]
    assert ends == [Ending.RULES] * 9 + [Ending.SHED] * 3 or ends == [Ending.RULES] * 10 + [Ending.SHED] * 2


def test_a_large_input_counts_against_the_turn_even_where_rules_are_cheap(world):
    w = world(rules=RISKY).bind()
    book = w.answering.ruling.books[0]
    assert book.cost_ns(1, 2**20) > book.row_ns + 200_000


@pytest.mark.parametrize(
    "asked",
    [
        request(rows=2**31),
        request(tensors=(Tensor(0, 1, (1, 2), 0, 2**40),)),
        request(tensors=(Tensor(9, 1, (1, 2), 0, 8),)),
        request(slot=60_000),
        request(rows=0),
    ],
    ids=["rows", "bytes", "index", "slot", "no_rows"],
)
def test_a_request_that_nobody_has_checked_is_refused_and_not_the_end_of_the_router(world, asked):
    reply = world(rules=RISKY).bind().instead("rules", asked=asked)
    assert reply.reason in (Reason.RULE_ERROR, Reason.RULES_BUSY)


@pytest.mark.parametrize("step", ["rules", "constant", "last_good"])
def test_before_a_worker_has_loaded_the_model_the_refusal_stands(world, step):
    w = world(rules=RISKY, constant={"y": 0.5})
    reply = w.instead(step, asked=request(key="a"), ending=Ending.SHED, reason=Reason.NO_WORKER)
    assert (reply.ending, reply.reason) == (Ending.SHED, Reason.NO_WORKER)


def test_of_a_client_that_is_gone_nothing_is_read(world):
    w = world(rules=RISKY).bind()
    assert w.instead("rules", session=9).ending == Ending.EXPIRED
    w.keep("a", 0.7, session=9)
    assert w.answering.facts(0)["last_good_keys"] == 0


# Agreement


def test_rules_agree_when_every_row_does(world):
    w = world(rules=RISKY).bind()
    w.write((1, 0.9), (1, 0.1))
    assert w.compare(0.95, 0.3) == (1, 1)
    assert w.compare(0.95, 0.4) == (2, 1)
    assert w.compare(float("nan"), 0.25) == (3, 1)
    facts = w.answering.facts(0)
    assert (facts["rules_compared"], facts["rules_agree_share"]) == (3, 1 / 3)


def test_agreement_by_threshold_and_by_tolerance(world):
    for how, agrees in ((AgreeConfig(threshold=0.5), (1, 1)), (AgreeConfig(tolerance=0.3), (1, 0))):
        w = world(rules=RulesConfig(rules=RISKY.rules, features=RISKY.features, agree={"y": how})).bind()
        w.write((1, 0.9))
        assert w.compare(0.51) == agrees


def test_what_the_rules_have_no_answer_for_is_not_counted(world):
    w = world(rules=RulesConfig(rules=[RuleConfig(name="never", when="false", answer={"y": 1})])).bind()
    assert w.compare(0.5) == (0, 0)


def test_a_comparison_is_left_out_when_the_turn_is_spent(world):
    w = world(rules=RulesConfig(rules=RISKY.rules, features=RISKY.features, rows_max=1)).bind()
    w.write((1, 0.9))
    assert w.instead("rules").ending == Ending.RULES
    assert w.compare(1.0) == (0, 0)


@pytest.mark.parametrize(
    ("output", "said"), [("z", "agree.z: the model has no such output; it has y"), ("y", "holds no numbers")]
)
def test_agreement_on_an_output_that_is_none_is_refused(world, output, said):
    rules = RulesConfig(rules=[RuleConfig(name="r", answer={"y": True})], agree={output: AgreeConfig(threshold=1)})
    signature = Signature(SIGNATURE.inputs, (TensorSpec("y", 9, ("N",)),))
    with pytest.raises(AnswerRefused, match=said):
        world(rules=rules).answering.bind(0, signature)
