"""The rule books at work: each AnswerInstead becomes a reply, with so many rows a turn and no more."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router import events as ev
from router.arena import Arena
from router.config import ModelConfig
from router.rules import RuleBook, RuleRefused
from shm.client import Reply
from shm.endings import Ending, Reason
from shm.layout import Signature
from shm.limits import MESSAGE_CHARS_MAX


class Ruling:
    """One book a model that has rules.

    Raises:
        RuleRefused: a rule does not compile; the message names model, rule and position.
    """

    def __init__(self, models: list[ModelConfig], arena_of: Callable[[int], Arena | None]) -> None:
        self._models = models
        self._arena_of = arena_of
        self._books = [self._compile(model) for model in models]
        self._rows = [0] * len(models)

    @staticmethod
    def _compile(model: ModelConfig) -> RuleBook | None:
        if model.rules is None:
            return None
        try:
            return RuleBook(model.rules)
        except RuleRefused as refused:
            raise RuleRefused(f"model {model.name}: {refused}") from refused

    def bind(self, model: int, signature: Signature) -> None:
        """Fit the book to what the model file says.

        Raises:
            RuleRefused: a rule names no feature of the model, or its answer does not fit the outputs.
        """
        book = self._books[model]
        if book is not None:
            try:
                book.bind(signature)
            except RuleRefused as refused:
                raise RuleRefused(f"model {self._models[model].name}: {refused}") from refused

    def start_turn(self) -> None:
        self._rows = [0] * len(self._rows)

    def answer(self, action: ev.AnswerInstead) -> Reply:
        """The reply with a rule's outputs; where none can be had it stays the refusal that it is."""
        request, book, arena = action.request, self._books[action.model], self._arena_of(action.session)
        changes: dict[str, object]
        self._rows[action.model] += request.rows or 1
        try:
            assert book is not None
            if arena is None:
                raise RuleRefused("the client is gone")
            if self._rows[action.model] > book.rows_max:
                changes = {"ending": Ending.SHED, "reason": Reason.RULES_BUSY, "retry_after_ms": 1}
            else:
                payload = arena.read(request.slot, book.payload_bytes(request))
                outputs, inline, rule, decision = book.answer(request, payload)
                changes = {
                    "ending": Ending.RULES,
                    "outputs": outputs,
                    "inline": inline,
                    "rule": rule,
                    "decision": decision,
                }
        except RuleRefused as refused:
            changes = {"reason": Reason.RULE_ERROR, "message": str(refused)[:MESSAGE_CHARS_MAX]}
        return msgspec.structs.replace(action.reply, **changes)
