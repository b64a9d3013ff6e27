"""What a request gets that the model does not answer: the steps of its table's row, tried in order.

The machine decides which steps there are; here they are taken, since they read clients' memory. A step that has nothing
for the request makes way for the next; when none has, the refusal that the machine wrote goes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec.structs import replace

from router import events as ev
from router.agreement import Agreement
from router.answers import AnswerRefused, Constant, Made
from router.arena import Arena
from router.config import ModelConfig
from router.counters import Counters
from router.last_good import LastGood
from router.outputs import ModelOutputs
from router.ruling import RulesBusy, Ruling
from shm.client import Reply, Request
from shm.endings import Ending, Reason
from shm.layout import Signature
from shm.limits import MESSAGE_CHARS_MAX

BUSY_RETRY_MS = 1
"""The next turn has its own share for rules."""


class Owner(NamedTuple):
    """Whose request it is, and where its tensors lie. The arena is there until the machine wants it closed."""

    uid: int
    arena: Arena


class Fitted(NamedTuple):
    """What fits one signature of a model."""

    signature: Signature
    outputs: ModelOutputs
    constant: Constant | None
    agreement: Agreement | None


class Answering:
    """Rules, constants and last answers of all models. `owner_of(session)`: None when its memory is gone."""

    def __init__(
        self,
        models: list[ModelConfig],
        owner_of: Callable[[int], Owner | None],
        counters: Counters,
        clock_ns: Callable[[], int],
    ) -> None:
        """Raises RuleRefused: a rule does not compile."""
        self.ruling = Ruling(models)
        self._models = models
        self._owner_of = owner_of
        self._counters = counters
        self._clock_ns = clock_ns
        self._fitted: list[Fitted | None] = [None] * len(models)
        self._last_good = [LastGood(model.last_good) for model in models]

    def bytes_kept(self) -> int:
        """Of last answers, of all models."""
        return sum(store.bytes_kept for store in self._last_good)

    def bind(self, model: int, signature: Signature) -> None:
        """Fit what is configured to what the model file says. Workers of one version find the same.

        Raises:
            AnswerRefused: something does not fit; the message names the model and what.
        """
        fitted, config = self._fitted[model], self._models[model]
        if fitted is not None and fitted.signature == signature:
            return
        try:
            self.ruling.bind(model, signature)
            self._fitted[model] = Fitted(
                signature,
                ModelOutputs(signature),
                Constant(config.constant, signature) if config.constant is not None else None,
                Agreement(config.rules.agree, signature) if config.rules is not None else None,
            )
        except AnswerRefused as refused:
            raise AnswerRefused(f"model {config.name}: {refused}") from refused
        # Answers of another signature are none of this one's.
        self._last_good[model] = LastGood(config.last_good)

    def answer(self, action: ev.AnswerInstead) -> Reply:
        """The reply with the outputs of the first step that has some, else the refusal that it is."""
        reply, owner = action.reply, self._owner_of(action.session)
        if owner is None or self._fitted[action.model] is None:
            # No worker has loaded the model yet: nobody knows what an answer looks like.
            return reply
        refusal: dict[str, Any] = {}
        for step in action.steps:
            answered = None
            if step == "rules":
                try:
                    answered = self._by_rules(action.model, action.request, owner)
                except RulesBusy:
                    refusal = {"ending": Ending.SHED, "reason": Reason.RULES_BUSY, "retry_after_ms": BUSY_RETRY_MS}
                except AnswerRefused as refused:
                    own = f"{reply.message}; and " if reply.message else ""
                    message = f"{own}the rules gave no answer: {refused}"
                    refusal = {"reason": Reason.RULE_ERROR, "message": message[:MESSAGE_CHARS_MAX]}
            elif step == "last_good":
                answered = self._by_last_good(action.model, action.request, owner)
            elif step == "constant":
                answered = self._by_constant(action.model, action.request.rows)
            if answered is not None:
                return replace(reply, **answered)
        return replace(reply, **refusal) if refusal else reply

    def keep(self, action: ev.KeepAnswer) -> None:
        """Copy an answer of the model, for `last_good`."""
        owner, fitted, request = self._owner_of(action.session), self._fitted[action.model], action.request
        if owner is None or fitted is None or request.key is None:
            return
        made = fitted.outputs.copy(action.reply, owner.arena, request.slot)
        if made is not None:
            self._last_good[action.model].keep((owner.uid, request.key), request.rows, made, self._clock_ns())

    def compare(self, action: ev.CompareRules) -> None:
        """Would the rules have said the same? Left out when the turn has no time for it."""
        owner, fitted = self._owner_of(action.session), self._fitted[action.model]
        book = self.ruling.books[action.model]
        if owner is None or fitted is None or fitted.agreement is None or book is None:
            return
        made = fitted.outputs.copy(action.reply, owner.arena, action.request.slot)
        if made is None:
            return
        try:
            chosen = self.ruling.choose(action.model, action.request, owner.arena)
        except (RulesBusy, AnswerRefused):
            return
        agrees = fitted.agreement.compare(made, [book.row_of(rule) for rule in chosen])
        if agrees is not None:
            self._counters.rules_compared += 1
            self._counters.rules_agreed += agrees

    def facts(self, model: int) -> dict[str, Any]:
        """Of one model, for `farm status`."""
        book, fitted = self.ruling.books[model], self._fitted[model]
        agreement = fitted.agreement if fitted is not None else None
        share = agreement.agreed / agreement.compared if agreement is not None and agreement.compared else None
        return {
            "rules_row_us": book.row_ns / 1e3 if book is not None else None,
            "rules_compared": agreement.compared if agreement is not None else 0,
            "rules_agree_share": share,
            "last_good_keys": len(self._last_good[model]),
        }

    def _by_rules(self, model: int, request: Request, owner: Owner) -> dict[str, Any]:
        """Raises RulesBusy, or AnswerRefused: the rules have no answer for it."""
        made, rule, decision = self.ruling.answer(model, request, owner.arena)
        return _answered(Ending.RULES, made) | {"rule": rule, "decision": decision}

    def _by_last_good(self, model: int, request: Request, owner: Owner) -> dict[str, Any] | None:
        if request.key is None:
            return None
        made = self._last_good[model].find((owner.uid, request.key), request.rows, self._clock_ns())
        return _answered(Ending.LAST_GOOD, made) if made is not None else None

    def _by_constant(self, model: int, rows: int) -> dict[str, Any] | None:
        fitted = self._fitted[model]
        if fitted is None or fitted.constant is None:
            return None
        try:
            return _answered(Ending.CONSTANT, fitted.constant.answer(rows))
        except AnswerRefused:
            return None  # of so many rows, or none


def _answered(ending: Ending, made: Made) -> dict[str, Any]:
    return {"ending": ending, "outputs": made[0], "inline": made[1]}
