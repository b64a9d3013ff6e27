"""A model's signature, as a test writes it; and outputs of the shape that it promises for a request."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from farm.client.options import Outputs
from farm.testing.misuse import FakeMisused
from shm.layout import CODES, DTYPES, STRING, Signature, TensorSpec
from shm.tensors import NUMPY, Array

Inputs = dict[str, Array]
Function = Callable[[Inputs], Any]
Declared = Signature | Mapping[str, Any]


def parse(model: str, declared: Declared) -> Signature:
    """`{"inputs": {name: (dtype, dims)}, "outputs": {...}}` as a Signature.

    dtype: as numpy names it, or `string`. dims: sizes and names of free dimensions, None where one has no name. A third
    element, "optional", marks an input that may be left out.

    Raises:
        FakeMisused: it is not of that form.
    """
    if isinstance(declared, Mapping):
        unknown = set(declared) - {"inputs", "outputs", "independent_rows"}
        if unknown or "inputs" not in declared or "outputs" not in declared:
            raise FakeMisused(f"{model}: a signature has the keys inputs and outputs, this one {sorted(declared)}")
        specs = [_specs(f"{model}: {side}", declared[side]) for side in ("inputs", "outputs")]
        declared = Signature(specs[0], specs[1], bool(declared.get("independent_rows", False)))
    try:
        # The limits of the wire, such as 64 inputs, are checked when a struct is decoded.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(declared), type=Signature)
    except msgspec.ValidationError as error:
        raise FakeMisused(f"{model}: no farm could serve this signature: {error}") from error


def of_function(model: str, function: Function) -> Signature | None:
    """The signature that a function's annotations carry, None where they carry none.

    >>> def score(inputs: Annotated[dict, {"x": ("float32", ["N", 4])}]) -> Annotated[dict, {"y": ("float32", ["N"])}]:
    ...     return {"y": inputs["x"].sum(axis=1)}
    """
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters)
    except (NameError, TypeError, ValueError):
        return None  # annotations that only a type checker can read, or a callable that has none
    told = {
        side: next((m for m in getattr(hints.get(name), "__metadata__", ()) if isinstance(m, Mapping)), None)
        for side, name in (("inputs", parameters[0] if parameters else ""), ("outputs", "return"))
    }
    if told["inputs"] is None and told["outputs"] is None:
        return None
    if told["inputs"] is None or told["outputs"] is None:
        raise FakeMisused(f"{model}: annotate both the inputs and the return value with their signature, or neither")
    return parse(model, told)


def _specs(what: str, tensors: Any) -> tuple[TensorSpec, ...]:
    if not isinstance(tensors, Mapping):
        raise FakeMisused(f"{what}: expected a dict of name to (dtype, dims), got {tensors!r}")
    return tuple(_spec(f"{what}[{name!r}]", name, entry) for name, entry in tensors.items())


def _spec(what: str, name: str, entry: Any) -> TensorSpec:
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) not in (2, 3):
        raise FakeMisused(f'{what}: expected (dtype, dims) or (dtype, dims, "optional"), got {entry!r}')
    dtype, dims, *more = entry
    if more not in ([], ["optional"]):
        raise FakeMisused(f'{what}: the third element can only be "optional", got {more[0]!r}')
    if isinstance(dims, str) or not isinstance(dims, Sequence):
        raise FakeMisused(f"{what}: dims must be a list of sizes and names, got {dims!r}")
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int | str | None) or (isinstance(dim, int) and dim < 0):
            raise FakeMisused(f"{what}: a dimension is a size, a name or None, not {dim!r}")
    return TensorSpec(name, _code(what, dtype), tuple("?" if dim is None else dim for dim in dims), bool(more))


def _code(what: str, dtype: Any) -> int:
    if dtype in (str, "str", "string"):
        return STRING
    try:
        return CODES[np.dtype(dtype).name]
    except (TypeError, KeyError):
        known = ", ".join(sorted(CODES))
        raise FakeMisused(f"{what}: {dtype!r} is no dtype of this farm; there are {known}") from None


class Sizes:
    """The free dimensions of one request, by name, to shape its outputs with."""

    def __init__(self, signature: Signature, inputs: Inputs) -> None:
        self._named: dict[str, int] = {}
        self.rows = 1
        first = True
        for spec in signature.inputs:
            array = inputs.get(spec.name)
            if array is None:
                continue
            if first and array.ndim:
                self.rows = array.shape[0]
            first = False
            for dim, size in zip(spec.dims, array.shape, strict=True):
                if isinstance(dim, str) and dim != "?":
                    self._named.setdefault(dim, size)

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """A free dimension that no input has is as long as the request has rows where it is the first, else 1."""
        return tuple(
            dim if isinstance(dim, int) else self._named.get(dim, self.rows if axis == 0 else 1)
            for axis, dim in enumerate(spec.dims)
        )


def zeros(signature: Signature, inputs: Inputs) -> Outputs:
    """Outputs of the declared shapes; empty strings for strings."""
    sizes = Sizes(signature, inputs)
    return {
        spec.name: np.full(sizes.shape(spec), "", object)
        if spec.dtype == STRING
        else np.zeros(sizes.shape(spec), NUMPY[spec.dtype])
        for spec in signature.outputs
    }


def check_names(model: str, signature: Signature | None, given: Any) -> None:
    """Outputs that a test wrote are those of the model: all, and no others.

    Raises:
        FakeMisused: they are not.
    """
    if not isinstance(given, Mapping):
        if signature is None or len(signature.outputs) != 1:
            have = "no signature" if signature is None else f"{len(signature.outputs)} outputs"
            raise FakeMisused(f"{model} answers with one array, but it has {have}: answer with a dict of name to array")
        return
    for name in given:
        if not isinstance(name, str):
            raise FakeMisused(f"{model} answers with the key {name!r}; keys must be output names")
    if signature is not None and (names := {spec.name for spec in signature.outputs}) != set(given):
        raise FakeMisused(f"{model} answers with {sorted(given)}; its signature has the outputs {sorted(names)}")


def conform(model: str, signature: Signature | None, inputs: Inputs, given: Any) -> Outputs:
    """What a function or a script gave, as private arrays of the declared dtypes.

    A value of fewer dimensions than declared, such as one number or one row, is repeated to the declared shape; one
    of as many stays as it is, for sessions too may give other shapes than the model declares.

    Raises:
        FakeMisused: names, dtypes or ranks are not those of the signature.
    """
    check_names(model, signature, given)
    if signature is None:
        return {name: _own(model, name, value, None) for name, value in given.items()}
    named = given if isinstance(given, Mapping) else {signature.outputs[0].name: given}
    sizes = Sizes(signature, inputs)
    outputs = {}
    for spec in signature.outputs:
        array = _own(model, spec.name, named[spec.name], spec)
        if array.ndim < len(spec.dims):
            try:
                array = np.array(np.broadcast_to(array, sizes.shape(spec)))
            except ValueError:
                pass
        if array.ndim != len(spec.dims):
            raise FakeMisused(f"{model}: output {spec.name!r}: expected {spec}, got the shape {list(array.shape)}")
        outputs[spec.name] = array
    return outputs


def _own(model: str, name: str, value: Any, spec: TensorSpec | None) -> Array:
    array = np.array(value)
    if array.dtype.kind in "USTO":
        if spec is not None and spec.dtype != STRING:
            raise FakeMisused(f"{model}: output {name!r}: expected {DTYPES[spec.dtype][0]}, got {array.dtype}")
        texts = np.empty(array.shape, object)
        for place, text in np.ndenumerate(array):
            texts[place] = text.decode() if isinstance(text, bytes) else str(text)
        return texts
    want = array.dtype.newbyteorder("=") if spec is None else NUMPY.get(spec.dtype)
    # Python's numbers come as float64 and int64; nothing is lost that the test would notice.
    fits = want is not None and (
        np.can_cast(array.dtype, want, "same_kind") or (array.dtype.kind in "iu" and want.kind in "iu")
    )
    if want is None or not fits or want.name not in CODES:
        expected = "a dtype of this farm" if spec is None else DTYPES[spec.dtype][0]
        raise FakeMisused(f"{model}: output {name!r}: expected {expected}, got {array.dtype}")
    return array.astype(want)
