"""Answers that the router makes itself: one row of every output, written down in the configuration, put together for
the rows of a request. They always travel inside the reply, since a run that is still going may write to `out`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from router.config import Scalar, Value
from shm.layout import CODES, DTYPES, STRING, RowPlan, Signature, Tensor, TensorSpec, place
from shm.limits import INLINE_BYTES_MAX

Row = list[bytes]
"""One row of every output, in the signature's order. A string output's row is the UTF-8 of its one value."""
Made = tuple[tuple[Tensor, ...], bytes]
"""Descriptors of the outputs, and their bytes."""


class AnswerRefused(ValueError):
    """An answer cannot be used as it is written, or could not be given to this request; the message says which, why."""


def by_row(spec: TensorSpec) -> bool:
    """Whether the output has a row for each row of the request."""
    return bool(spec.dims) and isinstance(spec.dims[0], str)


def rows_of(rows: int, row_form: bool) -> int:
    """The rows to answer; a request of a model without rows has one.

    Raises:
        AnswerRefused: there could be rows and are none, or more than an answer has bytes.
    """
    if not rows and row_form:
        raise AnswerRefused("the request has no rows, so there is nothing to decide on")
    if rows > INLINE_BYTES_MAX:
        raise AnswerRefused(f"the answer has {rows} rows; at most {INLINE_BYTES_MAX} bytes travel in a reply")
    return rows or 1


def encode_row(what: str, answer: Mapping[str, Value], outputs: Sequence[TensorSpec]) -> Row:
    """One row as it is written, fitted to the outputs. `what` names it in messages.

    Raises:
        AnswerRefused: an output is missing, unknown, of a free shape, or its value does not fit.
    """
    row: Row = []
    given = dict(answer)
    for spec in outputs:
        if spec.name not in given:
            raise AnswerRefused(f"{what}: the answer lacks output {spec.name!r}; expected {spec}")
        values = _flat(given.pop(spec.name))
        tail = spec.dims[1:] if by_row(spec) else spec.dims
        if not all(isinstance(dim, int) for dim in tail):
            raise AnswerRefused(f"{what}: output {spec} has a free shape; no answer can be written down for it")
        count = prod(int(dim) for dim in tail)
        if len(values) == 1 and count > 1:
            values = values * count
        if len(values) != count:
            raise AnswerRefused(
                f"{what}: output {spec.name!r} takes {count} values a row, the answer has {len(values)}"
            )
        row.append(_pack(what, spec, values))
    if given:
        known = ", ".join(spec.name for spec in outputs)
        raise AnswerRefused(f"{what}: the model has no output {sorted(given)[0]!r}; it has {known}")
    return row


def assemble(outputs: Sequence[TensorSpec], rows: Sequence[Row]) -> Made:
    """These rows as the outputs of one reply; an output without rows is taken from the first.

    Raises:
        AnswerRefused: they are too large for a reply.
    """
    chunks: list[bytes] = []
    dims: list[tuple[int, ...]] = []
    for index, spec in enumerate(outputs):
        rowed = by_row(spec)
        column = [row[index] for row in rows] if rowed else [rows[0][index]]
        tail = tuple(int(dim) for dim in (spec.dims[1:] if rowed else spec.dims))
        dims.append((len(rows), *tail) if rowed else tail)
        chunks.append(_join_strings(column) if spec.dtype == STRING else b"".join(column))
    offsets, end = place([len(chunk) for chunk in chunks])
    if end > INLINE_BYTES_MAX:
        raise AnswerRefused(f"the answer takes {end} bytes; at most {INLINE_BYTES_MAX} travel in a reply")
    inline = bytearray(end)
    tensors = []
    for index, (offset, chunk) in enumerate(zip(offsets, chunks, strict=True)):
        inline[offset : offset + len(chunk)] = chunk
        tensors.append(Tensor(index, outputs[index].dtype, dims[index], offset, len(chunk)))
    return tuple(tensors), bytes(inline)


class Constant:
    """The answer of [models.NAME.constant], the same for every row.

    Raises:
        AnswerRefused: it does not fit the model's outputs.
    """

    def __init__(self, answer: Mapping[str, Value], signature: Signature) -> None:
        self._outputs = signature.outputs
        self._row_form = RowPlan(signature.inputs).row_form
        self._row = encode_row("constant", answer, signature.outputs)
        self._alone = assemble(self._outputs, [self._row])

    def answer(self, rows: int) -> Made:
        """Raises AnswerRefused: too large for a reply, or for no rows."""
        rows = rows_of(rows, self._row_form)
        return assemble(self._outputs, [self._row] * rows) if rows > 1 else self._alone


def _flat(value: Value | list[Scalar]) -> list[Any]:
    if isinstance(value, list):
        return [element for item in value for element in _flat(item)]
    return [value]


def _pack(what: str, spec: TensorSpec, values: list[Any]) -> bytes:
    name, _, code = DTYPES[spec.dtype]
    if spec.dtype == STRING:
        if len(values) != 1 or not isinstance(values[0], str):
            raise AnswerRefused(f"{what}: output {spec.name!r} takes one string a row")
        return values[0].encode()
    if spec.dtype == CODES["bool"] and not all(isinstance(value, bool) for value in values):
        raise AnswerRefused(f"{what}: output {spec.name!r} is bool, and the answer is not: write true or false")
    try:
        return struct.pack(f"={len(values)}{code}", *values)
    except (struct.error, OverflowError) as error:
        raise AnswerRefused(f"{what}: output {spec.name!r} is {name}, and the answer is not: {error}") from error


def _join_strings(rows: list[bytes]) -> bytes:
    ends = [0]
    for row in rows:
        ends.append(ends[-1] + len(row))
    return struct.pack(f"={len(ends)}q", *ends) + b"".join(rows)
