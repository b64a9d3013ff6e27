"""Answers by rule: what a service gets when the model's answer cannot be there in time.

A rule is a condition in CEL (the Common Expression Language) over named features and an answer for every output. Rules
are compiled at start, tried in order for each row of a request, and given only the variables that they name: 2 us an
evaluation, against 50 us when handed sixty unused ones. The macros that walk lists (`all`, `exists`, `map` ...) are
refused: a triple `all` over 200 items took 2.8 s.

Only this module of the router looks at a client's input, and it is given a copy.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from math import prod
from typing import Any, Final

import cel

from router.config import RuleConfig, RulesConfig, Scalar, Value
from shm.client import Request
from shm.layout import DTYPES, STRING, RowPlan, Signature, Tensor, TensorSpec, place
from shm.limits import INLINE_BYTES_MAX

MACROS: Final = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter|transformList|transformMap)\s*\(")
_NO_CODE: Final = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//[^\n]*')
"""String literals and comments: what looks like a macro in them is none."""


class RuleRefused(ValueError):
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
                self.program = cel.compile(config.when)
            except ValueError as error:
                raise RuleRefused(f"rule {config.name!r}: {_first_line(error)}") from error
            self.variables = tuple(self.program.variables())

    def holds(self, features: dict[str, Any]) -> bool:
        if self.program is None:
            return True
        try:
            return self.program.execute({name: features[name] for name in self.variables}) is True
        except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
            raise RuleRefused(f"rule {self.name!r} could not be evaluated: {_first_line(error)}") from error

    def try_out(self, features: dict[str, Any]) -> None:
        """Functions and types are looked up when a condition is evaluated: once at start, then, and not first when
        a request has run out of time. Arithmetic depends on values and is no fault of the rule."""
        try:
            self.holds(features)
        except RuleRefused as refused:
            if not isinstance(refused.__cause__, ArithmeticError):
                raise


class RuleBook:
    """The rules of one model, compiled; bound to its signature once that is known.

    Raises (on construction and `bind`):
        RuleRefused: a condition does not compile, names no feature, or an answer does not fit the outputs.
    """

    def __init__(self, config: RulesConfig) -> None:
        self.rows_max = config.rows_max
        self._features = config.features
        self._rules = [Rule(rule) for rule in config.rules]
        names = [rule.name for rule in self._rules]
        if len(set(names)) != len(names):
            raise RuleRefused(f"two rules have the same name: {sorted(n for n in names if names.count(n) > 1)[0]!r}")
        self._named = {name for columns in config.features.values() for name in columns}
        self._readers: dict[str, tuple[int, int, int]] = {}
        self._inputs: RowPlan = RowPlan(())
        self._outputs: RowPlan = RowPlan(())
        self._answers: dict[str, list[bytes]] = {}

    @property
    def variables(self) -> set[str]:
        return {name for rule in self._rules for name in rule.variables}

    def bind(self, signature: Signature) -> None:
        """Find each variable's place in the inputs and encode each answer for the outputs."""
        self._inputs, self._outputs = RowPlan(signature.inputs), RowPlan(signature.outputs)
        readers: dict[str, tuple[int, int, int]] = {}
        for index, spec in enumerate(signature.inputs):
            columns = self._features.get(spec.name)
            width = self._width(spec)
            if columns is not None:
                if width != len(columns):
                    have = f"{width} columns" if width else "no fixed number of columns"
                    raise RuleRefused(f"features of input {spec.name!r}: {len(columns)} names, but {spec} has {have}")
                readers.update({name: (index, column, width) for column, name in enumerate(columns)})
            elif width == 1:
                readers.setdefault(spec.name, (index, 0, 1))
        for name in self._features:
            if name not in {spec.name for spec in signature.inputs}:
                inputs = ", ".join(spec.name for spec in signature.inputs)
                raise RuleRefused(f"features of input {name!r}: the model has no such input; it has {inputs}")
        for rule in self._rules:
            for variable in rule.variables:
                if variable not in readers:
                    raise RuleRefused(
                        f"rule {rule.name!r}: {variable!r} is no feature; known are {_some(sorted(readers)) or 'none'}"
                    )
        self._readers = {name: readers[name] for name in self.variables}
        zeros = {name: _zero(signature.inputs[index]) for name, (index, _, _) in self._readers.items()}
        for rule in self._rules:
            rule.try_out(zeros)
        self._answers = {rule.name: self._encode_row(rule, signature.outputs) for rule in self._rules}

    def _width(self, spec: TensorSpec) -> int:
        """Elements a row, 0 where that is not fixed or the input cannot be a feature."""
        tail = spec.dims[1:] if self._inputs.row_form or (spec.dims and isinstance(spec.dims[0], str)) else spec.dims
        if spec.dtype == STRING or not all(isinstance(dim, int) for dim in tail):
            return 0
        return prod(int(dim) for dim in tail)

    def _encode_row(self, rule: Rule, outputs: Iterable[TensorSpec]) -> list[bytes]:
        """One row of every output, as bytes. A string output's row is the UTF-8 of its one value."""
        encoded = []
        given = dict(rule.answer)
        for spec in outputs:
            if spec.name not in given:
                raise RuleRefused(f"rule {rule.name!r}: the answer lacks output {spec.name!r}; expected {spec}")
            values = _flat(given.pop(spec.name))
            tail = spec.dims[1:] if spec.dims and isinstance(spec.dims[0], str) else spec.dims
            if not all(isinstance(dim, int) for dim in tail):
                raise RuleRefused(f"rule {rule.name!r}: output {spec} has a free shape; a rule cannot answer it")
            count = prod(int(dim) for dim in tail)
            if len(values) == 1 and count > 1:
                values = values * count
            if len(values) != count:
                raise RuleRefused(
                    f"rule {rule.name!r}: output {spec.name!r} takes {count} values a row, the answer has {len(values)}"
                )
            encoded.append(_pack(rule.name, spec, values))
        if given:
            raise RuleRefused(f"rule {rule.name!r}: the model has no output {sorted(given)[0]!r}")
        return encoded

    def payload_bytes(self, request: Request) -> int:
        """How much of the request's slots `answer` reads."""
        if request.tensors is None:
            return self._inputs.payload_bytes(request.rows)
        return max((tensor.offset + tensor.payload_bytes for tensor in request.tensors), default=0)

    def answer(self, request: Request, payload: bytes) -> tuple[tuple[Tensor, ...], bytes, str, str | None]:
        """Evaluate the rules for each row.

        payload: a copy of the request's slots, from the start of its run.

        Returns: descriptors of the outputs, their bytes, and the name and decision of the rule that answered the
            first row (rows of one request may be answered by different rules; `a+b` names both).

        Raises:
            RuleRefused: no rule holds for a row, a rule could not be evaluated, or the answer is too large to inline.
        """
        if not request.rows and self._inputs.row_form:
            raise RuleRefused("the request has no rows, so there is nothing to decide on")
        rows = request.rows or 1
        firsts: list[Rule] = [self._first(self._features_of(request, payload, row)) for row in range(rows)]
        names = list(dict.fromkeys(rule.name for rule in firsts))
        tensors, inline = self._assemble([self._answers[rule.name] for rule in firsts], rows)
        return tensors, inline, "+".join(names)[:512], firsts[0].decision if firsts else None

    def _first(self, features: dict[str, Any]) -> Rule:
        for rule in self._rules:
            if rule.holds(features):
                return rule
        raise RuleRefused("no rule holds; give the last rule no condition to have an answer always")

    def _features_of(self, request: Request, payload: bytes, row: int) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for name, (index, column, width) in self._readers.items():
            spec = self._inputs.specs[index]
            _, size, code = DTYPES[spec.dtype]
            start = self._start_of(request, index)
            if start is None:
                raise RuleRefused(f"input {spec.name!r} was left out and a rule reads {name!r}")
            try:
                features[name] = struct.unpack_from("=" + code, payload, start + (row * width + column) * size)[0]
            except struct.error as error:
                raise RuleRefused(f"input {spec.name!r} has no row {row} for {name!r}") from error
        return features

    def _start_of(self, request: Request, index: int) -> int | None:
        if request.tensors is None:
            return self._inputs.offsets(request.rows)[index]
        return next((tensor.offset for tensor in request.tensors if tensor.index == index), None)

    def _assemble(self, answers: list[list[bytes]], rows: int) -> tuple[tuple[Tensor, ...], bytes]:
        chunks: list[bytes] = []
        dims: list[tuple[int, ...]] = []
        for index, spec in enumerate(self._outputs.specs):
            by_row = bool(spec.dims) and isinstance(spec.dims[0], str)
            column = [answer[index] for answer in answers] if by_row else [answers[0][index]]
            tail = tuple(int(dim) for dim in (spec.dims[1:] if by_row else spec.dims))
            dims.append((rows, *tail) if by_row else tail)
            chunks.append(_join_strings(column) if spec.dtype == STRING else b"".join(column))
        offsets, end = place([len(chunk) for chunk in chunks])
        if end > INLINE_BYTES_MAX:
            raise RuleRefused(f"the answer by rule takes {end} bytes; at most {INLINE_BYTES_MAX} travel in a reply")
        inline = bytearray(end)
        tensors = []
        for index, (offset, chunk) in enumerate(zip(offsets, chunks, strict=True)):
            inline[offset : offset + len(chunk)] = chunk
            tensors.append(Tensor(index, self._outputs.specs[index].dtype, dims[index], offset, len(chunk)))
        return tuple(tensors), bytes(inline)


def _zero(spec: TensorSpec) -> Any:
    _, size, code = DTYPES[spec.dtype]
    return struct.unpack("=" + code, bytes(size))[0]


def _flat(value: Value | list[Scalar]) -> list[Any]:
    if isinstance(value, list):
        return [element for item in value for element in _flat(item)]
    return [value]


def _pack(rule: str, spec: TensorSpec, values: list[Any]) -> bytes:
    name, _, code = DTYPES[spec.dtype]
    if spec.dtype == STRING:
        if len(values) != 1 or not isinstance(values[0], str):
            raise RuleRefused(f"rule {rule!r}: output {spec.name!r} takes one string a row")
        return values[0].encode()
    try:
        return struct.pack(f"={len(values)}{code}", *values)
    except (struct.error, OverflowError) as error:
        raise RuleRefused(f"rule {rule!r}: output {spec.name!r} is {name}, and the answer is not: {error}") from error


def _join_strings(rows: list[bytes]) -> bytes:
    ends = [0]
    for row in rows:
        ends.append(ends[-1] + len(row))
    return struct.pack(f"={len(ends)}q", *ends) + b"".join(rows)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
