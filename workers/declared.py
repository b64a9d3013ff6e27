"""Whether outputs are what the model's signature declares, given the inputs that were there.

A number in a declared shape must be met. A name that inputs have too stands for what it is there: `y [N, 1]` of a
request with `x [N, 64]` has as many rows as x. A name that no input has, or that inputs disagree on, may be anything,
and so may "?". ONNX Runtime only logs such a difference; a service that trusts the signature would read wrong values.
"""

from __future__ import annotations

from collections.abc import Sequence

from shm.layout import DTYPES, STRING, Signature, TensorSpec
from shm.tensors import NUMPY, Array
from shm.worker import Member


def named_dims(signature: Signature, member: Member) -> dict[str, int]:
    """What each name in the inputs' shapes stands for in this request; without those that stand for two things."""
    found: dict[str, int] = {}
    unsure = {"?"}
    for spec, dims in _inputs(signature, member):
        for name, size in zip(spec.dims, dims, strict=False):
            if isinstance(name, str) and found.setdefault(name, size) != size:
                unsure.add(name)
    return {name: size for name, size in found.items() if name not in unsure}


def _inputs(signature: Signature, member: Member) -> list[tuple[TensorSpec, Sequence[int]]]:
    specs = signature.inputs
    if member.tensors is not None:
        return [(specs[tensor.index], tensor.dims) for tensor in member.tensors]
    # In row form only the first dimension is free, and it is the request's rows.
    return [(spec, [member.rows if isinstance(dim, str) else dim for dim in spec.dims]) for spec in specs]


def refuse_outputs(signature: Signature, member: Member, outputs: Sequence[Array]) -> str | None:
    """What is wrong with them, or None."""
    names = named_dims(signature, member)
    for spec, array in zip(signature.outputs, outputs, strict=True):
        if not (_is_of(spec, array) and _fits(spec, array.shape, names)):
            return _describe(spec, array, names)
    return None


def _is_of(spec: TensorSpec, array: Array) -> bool:
    return array.dtype.kind in "OUS" if spec.dtype == STRING else array.dtype == NUMPY[spec.dtype]


def _fits(spec: TensorSpec, shape: Sequence[int], names: dict[str, int]) -> bool:
    return len(spec.dims) == len(shape) and all(
        (names.get(dim, size) if isinstance(dim, str) else dim) == size
        for dim, size in zip(spec.dims, shape, strict=True)
    )


def _describe(spec: TensorSpec, array: Array, names: dict[str, int]) -> str:
    meant = [f"{dim} = {names[dim]}" for dim in spec.dims if isinstance(dim, str) and dim in names]
    return (
        f"output {spec.name!r}: the model declares {DTYPES[spec.dtype][0]} [{', '.join(map(str, spec.dims))}]"
        f"{' with ' + ', '.join(meant) if meant else ''} and returned {array.dtype.name} {list(array.shape)}; "
        "export it with shapes that hold, or with a name of its own for a dimension that is free"
    )
