"""What a configuration comes to against the models themselves: rules, constants and guards fitted to the signatures.

The same code that router and workers run at their start, so that what `farm serve` would refuse is refused before.
The model files are read with ONNX Runtime; where that is not installed, this part is left out, and said to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from farm.config import Config, ModelSection
from farm.errors import ConfigError
from farm.strict import Place, show

if TYPE_CHECKING:
    from router.rules import RuleBook
    from shm.layout import Signature


class Checked(NamedTuple):
    """One model. `signature`: None where nothing had to fit it, or it could not be read; `unchecked` then says why.

    rule_us: what each rule costs a row, by name. row_us: all of them together, None without rules or signature.
    """

    signature: Signature | None
    unchecked: str | None
    row_us: float | None
    rule_us: dict[str, float]


def check_models(config: Config) -> dict[str, Checked]:
    """Fit what every model is configured with to what its file says.

    Raises:
        ConfigError: naming file, section and what does not fit; or a rule does not compile; or what compiles them is
            not installed.
    """
    return {name: _check(config.source, name, model) for name, model in config.models.items()}


def _check(source: str, name: str, model: ModelSection) -> Checked:
    section = f"[models.{name}"
    book = _compile(model, Place(source, f"{section}.rules]"))
    if book is None and model.constant is None and model.guard is None:
        return Checked(None, None, None, {})
    try:
        from workers.session import LoadRefused, load
    except ModuleNotFoundError as error:
        why = f"not checked against the model, since {error.name} is not installed: pip install 'shmfarm[server]'"
        return Checked(None, why, None, {})
    from workers.config import SessionConfig

    try:
        # Only the signature is wanted, and optimising takes most of the time.
        signature = load(model.path, SessionConfig(optimization="off")).signature
    except LoadRefused as refused:
        raise Place(source, f"{section}]").error(f"path = {show(model.path)}: it cannot be served: {refused}") from None
    _fit(model, signature, book, source, section)
    if book is None:
        return Checked(signature, None, None, {})
    return Checked(signature, None, book.row_ns / 1e3, {rule: ns / 1e3 for rule, ns in book.rule_ns.items()})


def _compile(model: ModelSection, place: Place) -> RuleBook | None:
    if model.rules is None:
        return None
    try:
        from router.rules import RuleBook, RuleRefused

        return RuleBook(model.rules)
    except ModuleNotFoundError as error:
        raise ConfigError(f"rules cannot be checked without {error.name}: pip install 'shmfarm[server]'") from error
    except RuleRefused as refused:
        raise place.error(str(refused)) from refused


def _fit(model: ModelSection, signature: Signature, book: RuleBook | None, source: str, section: str) -> None:
    from router.agreement import Agreement
    from router.answers import AnswerRefused, Constant
    from workers.guard import Guard, GuardRefused

    key = "rules"
    try:
        if book is not None and model.rules is not None:
            book.bind(signature)
            Agreement(model.rules.agree, signature)
        key = "constant"
        if model.constant is not None:
            Constant(model.constant, signature)
        key = "guard"
        if model.guard is not None:
            Guard(model.guard, signature)
    except (AnswerRefused, GuardRefused) as refused:
        raise Place(source, f"{section}.{key}]").error(str(refused).removeprefix("constant: ")) from refused
