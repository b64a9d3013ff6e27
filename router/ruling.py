"""The rule books at work, within what one turn of the router may spend on them.

Rules are evaluated in the loop that times everybody's deadlines. So a turn has a share for them, whoever's they are:
beyond it the next behaviour of the table is tried, and a sampled comparison is left out.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Final

from router.answers import AnswerRefused, Made
from router.arena import Arena
from router.config import ModelConfig
from router.rules import Rule, RuleBook, RuleRefused
from shm.client import Request
from shm.layout import Signature

TURN_NS: Final = 500_000
"""Half a millisecond: half of what a turn may take at all, and near what is kept as reserve before a deadline, so that
who times out next to many others is still answered in time. 300 rows of one plain rule, which takes 1.6 us.
A request takes 5 us more around its rows, which is not charged: what a turn takes in at all bounds that."""


class RulesBusy(Exception):
    """This turn has spent on rules what it may."""


class Ruling:
    """One book a model that has rules.

    Raises:
        RuleRefused: a rule does not compile; the message names model, rule and position.
    """

    def __init__(self, models: list[ModelConfig]) -> None:
        self.books = [_compile(model) for model in models]
        self.spent = False
        """Something was evaluated since `start_turn`."""
        self._left_ns = TURN_NS
        self._rows = [0] * len(models)

    def start_turn(self) -> None:
        self.spent = False
        self._left_ns = TURN_NS
        self._rows = [0] * len(self._rows)

    def answer(self, model: int, request: Request, arena: Arena) -> tuple[Made, str, str | None]:
        """The outputs, which rule gave them, and its decision.

        Raises:
            RulesBusy: not in this turn.
            AnswerRefused: the rules have no answer for it.
        """
        book = self._book(model)
        payload, end_ns = self._payload(book, model, request, arena)
        try:
            tensors, inline, rule, decision = book.answer(request, payload)
        finally:
            self._charge_rest(end_ns)
        return (tensors, inline), rule, decision

    def choose(self, model: int, request: Request, arena: Arena) -> list[Rule]:
        """The rule for each row. Raises as `answer`."""
        book = self._book(model)
        payload, end_ns = self._payload(book, model, request, arena)
        try:
            return book.choose(request, payload)
        finally:
            self._charge_rest(end_ns)

    def bind(self, model: int, signature: Signature) -> None:
        """Raises AnswerRefused: a rule names no feature of the model, costs too much, or its answer does not fit."""
        book = self.books[model]
        if book is not None:
            book.bind(signature)

    def _book(self, model: int) -> RuleBook:
        book = self.books[model]
        if book is None:
            raise AnswerRefused("the model has no rules")
        return book

    def _payload(self, book: RuleBook, model: int, request: Request, arena: Arena) -> tuple[bytes, int]:
        """A copy of what the rules read, paid for, and by when they are to be done for that price."""
        payload_bytes = book.payload_bytes(request)
        if payload_bytes > request.slot_count * arena.slot_bytes:
            raise AnswerRefused(f"its inputs take {payload_bytes} bytes, which pass its slots")
        rows, cost_ns = request.rows or 1, book.cost_ns(request.rows, payload_bytes)
        if rows > book.rows_max - self._rows[model] or cost_ns > self._left_ns:
            raise RulesBusy
        self.spent = True
        self._rows[model] += rows
        self._left_ns -= cost_ns
        end_ns = perf_counter_ns() + cost_ns
        return arena.read(request.slot, payload_bytes), end_ns

    def _charge_rest(self, end_ns: int) -> None:
        """A branch that no sample took may cost more than was measured; the turn is not lengthened for it twice."""
        self._left_ns -= max(0, perf_counter_ns() - end_ns)


def _compile(model: ModelConfig) -> RuleBook | None:
    if model.rules is None:
        return None
    try:
        return RuleBook(model.rules)
    except RuleRefused as refused:
        raise RuleRefused(f"model {model.name}: {refused}") from refused
