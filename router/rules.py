"""Answers by rule: what a service gets when the model's answer cannot be there in time.

A rule is a condition in CEL (the Common Expression Language) over named features and an answer for every output. Rules
are compiled at start, tried in order for each row of a request, and given only the variables that they name: 2 us an
evaluation, against 50 us when handed sixty unused ones. The macros that walk lists (`all`, `exists`, `map` ...) are
refused: a triple `all` over 200 items took 2.8 s. What a row costs is measured when a book is bound to its model, and
a book that costs too much is refused then: what it costs when time runs out is taken from everybody's requests.

Only copies of a client's input are looked at here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from time import perf_counter_ns
from typing import Any, Final

from router import celcore
from router.answers import AnswerRefused, Made, Row, assemble, encode_row, rows_of
from router.config import RuleConfig, RulesConfig
from shm.client import Request
from shm.layout import DTYPES, STRING, RowPlan, Signature, Tensor, TensorSpec

ROW_NS_MAX: Final = 50_000
"""All conditions of a book, evaluated once: ten rows then spend what a turn may (`router.ruling`). Thirty rules of
one comparison each take this long; in one condition a comparison takes a twelfth of a microsecond."""
READ_BYTE_NS: Final = 0.35
"""To copy an input out of its slots: 0.37 ms a MiB where pages are touched for the first time."""
CHOOSE_NS_MAX: Final = 5_000_000
"""Of one request, where a branch that no sample took costs far more than was measured: its other rows are left."""
LAYOUTS_KEPT: Final = 1024
"""As many row counts; clients use a few."""
SAMPLES: Final = (0, 1, -1, 100, 100_000)
"""Values that every feature is given in turn to try rules out with: the half of a condition that is not needed is not
evaluated, so that one sample would leave much of it untried."""
COST_REPEATS: Final = 15
COST_ATTEMPTS: Final = 3
"""A machine that is busy makes medians larger, never smaller, so the least of some is the nearest to the truth."""

MACROS: Final = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter|transformList|transformMap)\s*\(")
_NO_CODE: Final = re.compile(
    r'''[rR](?:"""(?s:.*?)"""|\'{3}(?s:.*?)\'{3}|"[^"\n\r]*"|\'[^\'\n\r]*\')'''
    r'''|"""(?s:\\.|[^\\])*?"""|\'{3}(?s:\\.|[^\\])*?\'{3}'''
    r"""|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//[^\n]*"""
)
"""String literals and comments: what looks like a macro in them is none."""


class RuleRefused(AnswerRefused):
    """A rule cannot be used as it is written, or could not answer this request; the message says which and why."""


class Rule:
    """One compiled rule."""

    __slots__ = ("answer", "decision", "name", "program", "variables")

    def __init__(self, config: RuleConfig) -> None:
        self.name = config.name
        self.decision = config.decision
        self.answer = config.answer
        self.program: Any = None
        self.variables: tuple[str, ...] = ()
        if config.when is not None:
            # Blanks of the same length keep the position that is told.
            bare = _NO_CODE.sub(lambda found: " " * len(found.group()), config.when)
            if macro := MACROS.search(bare):
                raise RuleRefused(
                    f"rule {config.name!r}: the macro {macro.group(1)!r} at position {macro.start() + 1} walks lists "
                    "and has no bound on its time; rules may not use it"
                )
            try:
                self.program = celcore.load().compile(config.when)
            except ValueError as error:
                raise RuleRefused(f"rule {config.name!r}: {_first_line(error)}") from error
            if "matches" in self.program.functions():
                # An expression of 30 characters took 2.8 ms, in a branch that no sample went into.
                raise RuleRefused(
                    f"rule {config.name!r}: 'matches' compiles its expression for every row, which has no bound on its "
                    "time; rules may not use it"
                )
            self.variables = tuple(self.program.variables())

    def holds(self, features: dict[str, Any]) -> bool:
        return self._evaluate(features) is True

    def _evaluate(self, features: dict[str, Any]) -> Any:
        if self.program is None:
            return True
        try:
            return self.program.execute({name: features[name] for name in self.variables})
        except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
            raise RuleRefused(f"rule {self.name!r} could not be evaluated: {_first_line(error)}") from error

    def cost_sample(self, features: dict[str, Any]) -> None:
        """Evaluate for its time alone."""
        try:
            self.holds(features)
        except RuleRefused:
            pass  # arithmetic that fails for this sample

    def try_out(self, features: dict[str, Any]) -> None:
        """Functions and types are looked up when a condition is evaluated: once at start, then, and not first when
        a request has run out of time. Arithmetic and places in lists depend on values and are no fault of the rule."""
        try:
            said = self._evaluate(features)
        except RuleRefused as refused:
            if not isinstance(refused.__cause__, ArithmeticError | LookupError):
                raise
        else:
            if not isinstance(said, bool):
                raise RuleRefused(f"rule {self.name!r}: the condition gives {said!r}; it must give true or false")


class RuleBook:
    """The rules of one model, compiled; bound to its signature once that is known.

    row_ns: what one row costs at most, 0 until bound. rule_ns: of that each rule's own, by name.

    Raises (on construction and `bind`):
        AnswerRefused: a condition does not compile, names no feature or costs too much, or an answer does not fit.
    """

    def __init__(self, config: RulesConfig) -> None:
        self.rows_max = config.rows_max
        self.row_ns = 0
        self.rule_ns: dict[str, int] = {}
        self._features = config.features
        self._rules = [Rule(rule) for rule in config.rules]
        names = [rule.name for rule in self._rules]
        if len(set(names)) != len(names):
            raise RuleRefused(f"two rules have the same name: {sorted(n for n in names if names.count(n) > 1)[0]!r}")
        for before, after in pairwise(config.rules):
            if before.when is None:
                raise RuleRefused(f"rule {after.name!r} is never reached: {before.name!r} before it has no condition")
        for column in (column for columns in config.features.values() for column in columns):
            if not column.isidentifier():
                raise RuleRefused(f"feature {column!r} is no name that a condition can use: letters, digits and _ are")
        self._readers: dict[str, _Reader] = {}
        self._inputs: RowPlan = RowPlan(())
        self._outputs: RowPlan = RowPlan(())
        self._layouts: dict[int, tuple[tuple[int, ...], int]] = {}
        self._answers: dict[str, Row] = {}
        self._alone: dict[str, Made] = {}

    @property
    def variables(self) -> set[str]:
        return {name for rule in self._rules for name in rule.variables}

    def bind(self, signature: Signature) -> None:
        """Find each variable's place in the inputs, encode each answer for the outputs, measure what a row costs."""
        self._inputs, self._outputs = RowPlan(signature.inputs), RowPlan(signature.outputs)
        self._layouts.clear()
        readers = self._find_readers(signature)
        for rule in self._rules:
            for variable in rule.variables:
                if variable not in readers:
                    raise RuleRefused(
                        f"rule {rule.name!r}: {variable!r} is no feature; known are {_some(sorted(readers)) or 'none'}"
                    )
        self._readers = {name: readers[name] for name in self.variables}
        for features in self._samples():
            for rule in self._rules:
                rule.try_out(features)
        self._answers = {
            rule.name: encode_row(f"rule {rule.name!r}", rule.answer, signature.outputs) for rule in self._rules
        }
        # Most requests have one row, and to put an answer together takes longer than to find it.
        self._alone = {name: assemble(signature.outputs, [row]) for name, row in self._answers.items()}
        self._measure()

    def _find_readers(self, signature: Signature) -> dict[str, _Reader]:
        readers: dict[str, _Reader] = {}
        for name in self._features:
            if name not in {spec.name for spec in signature.inputs}:
                inputs = ", ".join(spec.name for spec in signature.inputs)
                raise RuleRefused(f"features of input {name!r}: the model has no such input; it has {inputs}")
        named: set[str] = set()
        for index, spec in enumerate(signature.inputs):
            columns = self._features.get(spec.name)
            width = self._width(spec)
            if columns is not None:
                if width != len(columns):
                    have = f"{width} columns" if width else "no fixed number of columns"
                    raise RuleRefused(f"features of input {spec.name!r}: {len(columns)} names, but {spec} has {have}")
                for column, name in enumerate(columns):
                    if name in named:
                        raise RuleRefused(f"features of input {spec.name!r}: {name!r} is the name of two columns")
                    named.add(name)
                    readers[name] = _Reader(spec, index, column, width)
            elif width == 1:
                readers.setdefault(spec.name, _Reader(spec, index, 0, 1))
        return readers

    def _width(self, spec: TensorSpec) -> int:
        """Elements a row, 0 where that is not fixed or the input cannot be a feature."""
        tail = spec.dims[1:] if self._inputs.row_form or (spec.dims and isinstance(spec.dims[0], str)) else spec.dims
        if spec.dtype == STRING or not all(isinstance(dim, int) for dim in tail):
            return 0
        return prod(int(dim) for dim in tail)

    def _measure(self) -> None:
        self.row_ns = 0
        for _ in range(COST_ATTEMPTS):
            costs = {rule.name: self._cost_of(rule) for rule in self._rules}
            row_ns = sum(costs.values()) + self._cost_of_reading()
            if not self.row_ns or row_ns < self.row_ns:
                self.row_ns, self.rule_ns = row_ns, costs
            if self.row_ns <= ROW_NS_MAX:
                return
        worst = max(self.rule_ns, key=lambda name: self.rule_ns[name])
        raise RuleRefused(
            f"the rules take {self.row_ns / 1e3:.1f} us for a row, at most {ROW_NS_MAX // 1000} are allowed; "
            f"{worst!r} takes {self.rule_ns[worst] / 1e3:.1f} of them"
        )

    def _samples(self) -> list[dict[str, Any]]:
        return [{name: reader.sample(value) for name, reader in self._readers.items()} for value in SAMPLES]

    def _cost_of(self, rule: Rule) -> int:
        return max(_median_ns(partial(rule.cost_sample, features)) for features in self._samples())

    def _cost_of_reading(self) -> int:
        starts = [0] * len(self._inputs.specs)
        payload = bytes(max((reader.stride for reader in self._readers.values()), default=0))
        return _median_ns(lambda: self._read(payload, starts, 0))

    def cost_ns(self, rows: int, payload_bytes: int) -> int:
        """What a request of so many rows takes at most, the copy of its input included."""
        return int((rows or 1) * self.row_ns + payload_bytes * READ_BYTE_NS)

    def payload_bytes(self, request: Request) -> int:
        """How much of the request's slots `answer` reads."""
        if not self._readers:
            return 0
        if request.tensors is None:
            return self._layout(request.rows)[1]
        return max((tensor.offset + tensor.payload_bytes for tensor in request.tensors), default=0)

    def choose(self, request: Request, payload: bytes) -> list[Rule]:
        """The rule that answers each row. `payload`: a copy of the request's slots, from the start of its run.

        Raises:
            AnswerRefused: no rule holds for a row, or one could not be evaluated.
        """
        rows = rows_of(request.rows, self._inputs.row_form)
        starts: Sequence[int | None]
        if request.tensors is None:
            starts = self._layout(request.rows)[0]
        else:
            told = {tensor.index: tensor.offset for tensor in request.tensors}
            starts = [told.get(index) for index in range(len(self._inputs.specs))]
        chosen: list[Rule] = []
        end_ns = perf_counter_ns() + CHOOSE_NS_MAX
        for row in range(rows):
            chosen.append(self._first(self._read(payload, starts, row)))
            if row % 8 == 7 and perf_counter_ns() > end_ns:
                raise RuleRefused(f"the rules took more than {CHOOSE_NS_MAX / 1e6:g} ms for {row + 1} of {rows} rows")
        return chosen

    def answer(self, request: Request, payload: bytes) -> tuple[tuple[Tensor, ...], bytes, str, str | None]:
        """Evaluate the rules for each row.

        Returns: descriptors of the outputs, their bytes, and the name and decision of the rule that answered the
            first row (rows of one request may be answered by different rules; `a+b` names both).

        Raises:
            AnswerRefused: no rule holds for a row, a rule could not be evaluated, or the answer is too large to inline.
        """
        chosen = self.choose(request, payload)
        if len(chosen) == 1:
            rule = chosen[0]
            return *self._alone[rule.name], rule.name, rule.decision
        names = list(dict.fromkeys(rule.name for rule in chosen))
        tensors, inline = assemble(self._outputs.specs, [self._answers[rule.name] for rule in chosen])
        return tensors, inline, "+".join(names)[:512], chosen[0].decision

    def _layout(self, rows: int) -> tuple[tuple[int, ...], int]:
        """Where each input begins when the signature says it, and where the last one ends."""
        layout = self._layouts.get(rows)
        if layout is None:
            layout = self._inputs.offsets(rows), self._inputs.payload_bytes(rows)
            if len(self._layouts) < LAYOUTS_KEPT:
                self._layouts[rows] = layout
        return layout

    def row_of(self, rule: Rule) -> Row:
        """What this rule answers, as bytes a row and output."""
        return self._answers[rule.name]

    def _first(self, features: dict[str, Any]) -> Rule:
        for rule in self._rules:
            if rule.holds(features):
                return rule
        raise RuleRefused("no rule holds; give the last rule no condition to have an answer always")

    def _read(self, payload: bytes, starts: Sequence[int | None], row: int) -> dict[str, Any]:
        """The features of one row. `starts`: where each input begins, None where it was left out."""
        return {name: reader.read(payload, starts, row) for name, reader in self._readers.items()}


class _Reader:
    """One feature's place: a column of an input."""

    __slots__ = ("_column", "_form", "_index", "_input", "_unpack", "stride")

    def __init__(self, spec: TensorSpec, index: int, column: int, width: int) -> None:
        _, size, code = DTYPES[spec.dtype]
        form = struct.Struct("=" + code)
        self._unpack = form.unpack_from
        self._input = spec.name
        self._index = index
        self._column = column * size
        self.stride = width * size

        self._form = form

    def sample(self, value: int) -> Any:
        """This value as the input's dtype has it; 1 where it has no such value."""
        try:
            return self._form.unpack(self._form.pack(value))[0]
        except (struct.error, OverflowError):
            return self._form.unpack(self._form.pack(1))[0]

    def read(self, payload: bytes, starts: Sequence[int | None], row: int) -> Any:
        start = starts[self._index]
        if start is None:
            raise RuleRefused(f"input {self._input!r} was left out and a rule reads it")
        try:
            return self._unpack(payload, start + row * self.stride + self._column)[0]
        except struct.error as error:
            raise RuleRefused(f"input {self._input!r} has no row {row}, and a rule reads it") from error


def _median_ns(call: Callable[[], object]) -> int:
    times = []
    for _ in range(COST_REPEATS):
        began = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - began)
    return sorted(times)[(len(times) - 1) // 2]


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
