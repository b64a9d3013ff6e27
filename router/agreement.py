"""Whether the rules would have said the same as the model: put to the rules on a sample of what the model answered.

Only a sample tells it truly. The requests that rules do answer are those that came when the farm was busy or broken,
and nobody knows what the model would have said to them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Final

from router.answers import AnswerRefused, Made, Row, by_row
from router.config import AgreeConfig
from shm.layout import CODES, DTYPES, STRING, Signature, Tensor, TensorSpec

FLOAT_TOLERANCE: Final = 0.1
"""For floats without an entry: what a rule says of a score is a round number."""
FLOATS: Final = frozenset(CODES[name] for name in ("float16", "float32", "float64"))
VALUES_MAX: Final = 4096
"""Of a request's outputs together; it takes 0.1 us to compare one. Larger ones are not compared."""


class Agreement:
    """How the outputs of one model are compared; and counts, which only rise.

    Raises:
        AnswerRefused: `agree` names an output that the model does not have, or one that is no number.
    """

    def __init__(self, agree: Mapping[str, AgreeConfig], signature: Signature) -> None:
        known = {spec.name: spec for spec in signature.outputs}
        for name in agree:
            if name not in known:
                raise AnswerRefused(f"agree.{name}: the model has no such output; it has {', '.join(known)}")
            if known[name].dtype in (STRING, CODES["bool"]):
                raise AnswerRefused(f"agree.{name}: {known[name]} holds no numbers, so it can only be equal")
        self._outputs = signature.outputs
        self._agree = [_as_held(agree.get(spec.name), spec.dtype) for spec in signature.outputs]
        self.compared = 0
        self.agreed = 0

    def compare(self, made: Made, rules: Sequence[Row]) -> bool | None:
        """Whether each row of each output agrees, counted. None, and not counted: they cannot be compared.

        made: the model's outputs. rules: what the rule that holds for each row answers.
        """
        agrees = self._agrees(made, rules)
        if agrees is not None:
            self.compared += 1
            self.agreed += agrees
        return agrees

    def _agrees(self, made: Made, rules: Sequence[Row]) -> bool | None:
        tensors, payload = made
        if sum(prod(tensor.dims) for tensor in tensors) > VALUES_MAX or len(tensors) != len(self._outputs):
            return None
        for tensor in tensors:
            spec = self._outputs[tensor.index]
            rowed = by_row(spec)
            if tensor.dtype != spec.dtype or (rowed and tensor.dims[:1] != (len(rules),)):
                return None
            have = _values(tensor, payload)
            want: list[Any] = []
            for row in rules if rowed else rules[:1]:
                want += _row_values(spec, row[tensor.index])
            if len(have) != len(want):
                return None
            how = self._agree[tensor.index]
            if not all(_same(spec.dtype, how, one, other) for one, other in zip(have, want, strict=True)):
                return False
        return True


def _as_held(how: AgreeConfig | None, dtype: int) -> AgreeConfig | None:
    """With the threshold as the output would hold it: 0.7 in float32 is a little less than 0.7."""
    if how is None or how.threshold is None or dtype not in FLOATS:
        return how
    code = DTYPES[dtype][2]
    try:
        return AgreeConfig(threshold=struct.unpack(f"={code}", struct.pack(f"={code}", how.threshold))[0])
    except OverflowError:
        return how  # beyond all that the output can hold


def _same(dtype: int, how: AgreeConfig | None, model: Any, rule: Any) -> bool:
    """NaN agrees with nothing."""
    if how is not None and how.threshold is not None:
        return bool(model == model and (model >= how.threshold) == (rule >= how.threshold))
    tolerance = how.tolerance if how is not None else FLOAT_TOLERANCE if dtype in FLOATS else None
    if tolerance is None:
        return bool(model == rule)
    # A millionth more, for what float32 rounds: 0.3 as the model holds it and 0.2 are 0.1 apart.
    return bool(model == rule or abs(model - rule) <= tolerance * (1 + 1e-6))


def _values(tensor: Tensor, payload: bytes) -> list[Any]:
    if tensor.dtype != STRING:
        return list(struct.unpack_from(f"={prod(tensor.dims)}{DTYPES[tensor.dtype][2]}", payload, tensor.offset))
    count = prod(tensor.dims)
    ends = struct.unpack_from(f"={count + 1}q", payload, tensor.offset)
    start = tensor.offset + 8 * (count + 1)
    return [payload[start + one : start + other] for one, other in pairwise(ends)]


def _row_values(spec: TensorSpec, row: bytes) -> list[Any]:
    if spec.dtype == STRING:
        return [row]
    _, size, code = DTYPES[spec.dtype]
    return list(struct.unpack(f"={len(row) // size}{code}", row))
