"""What the property tests of the shared layer draw from: arrays of every kind, signatures, tensors right and wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shm.layout import BYTES_MAX, DTYPES, STRING, Signature, Tensor, TensorSpec
from shm.limits import RANK_MAX, TENSORS_MAX
from shm.tensors import NUMPY, Array

quick = settings(
    max_examples=60,
    deadline=None,  # the machine is shared; a slow example says nothing about the code
    database=None,  # a failure is repeated by the blob that is printed with it
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
"""For properties of one call; those over sequences ask for more or fewer examples themselves."""

# One to four bytes of UTF-8 each; drawing from all of Unicode costs a table of a second.
words = st.text("ab\0é€\U0001f600", max_size=6)
sizes = st.integers(0, 4)
codes = st.sampled_from(sorted(DTYPES))
number_codes = st.sampled_from(sorted(NUMPY))


@st.composite
def number_arrays(draw: st.DrawFn) -> Array:
    """Any dtype of the wire, rank 0 to 4, sizes down to 0, any byte order, order and stride."""
    dtype = NUMPY[draw(number_codes)]
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array: Array = np.asarray(draw(hnp.arrays(dtype, shape)))
    if draw(st.booleans()):
        array = array.astype(dtype.newbyteorder("S"))
    match draw(st.integers(0, 3)):
        case 0:
            array = np.asfortranarray(array) if array.ndim else array
        case 1 if array.ndim:
            array = array[::-1]
        case 2 if array.ndim:
            array = np.repeat(array, 2, axis=-1)[..., ::2]
        case 3:
            array = array.T
    return array


string_arrays = hnp.arrays(object, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements=words)


@st.composite
def specs(draw: st.DrawFn, *, optional: bool = True) -> list[TensorSpec]:
    """Declared inputs: fixed, free and shared first dimensions, strings among them."""
    dims = st.lists(st.one_of(sizes, st.sampled_from(["N", "M", "?"])), max_size=4).map(tuple)
    spec = st.builds(TensorSpec, words, codes, dims, st.booleans() if optional else st.just(False))
    return draw(st.lists(spec, max_size=4))


@st.composite
def row_specs(draw: st.DrawFn) -> list[TensorSpec]:
    """Inputs whose signature alone decides the layout."""
    in_rows = draw(st.booleans())
    tails = draw(st.lists(st.lists(sizes, max_size=3), min_size=int(in_rows), max_size=4))
    first: tuple[str, ...] = ("N",) if in_rows else ()
    return [TensorSpec(f"x{i}", draw(number_codes), (*first, *tail)) for i, tail in enumerate(tails)]


signatures = st.builds(
    Signature, row_specs().map(tuple), row_specs().map(tuple), st.booleans()
)  # those that the router plans with

extents = st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**39, BYTES_MAX]), st.integers(0, BYTES_MAX))
tensors = st.builds(
    Tensor,
    st.one_of(st.integers(0, 5), st.integers(0, TENSORS_MAX - 1)),
    st.integers(1, 16),
    st.lists(extents, max_size=5).map(tuple) | st.lists(extents, max_size=RANK_MAX).map(tuple),
    st.one_of(st.integers(0, 16).map(lambda n: n * 64), extents),
    extents,
)
"""Every value that a frame can hold: a code without a dtype, sizes whose product passes any integer of 64 bits."""


@st.composite
def nearly_right(draw: st.DrawFn, declared: list[TensorSpec]) -> list[Tensor]:
    """Tensors that agree with a signature, some of them spoilt in one field."""
    found = []
    for index, spec in enumerate(declared):
        dims = tuple(d if isinstance(d, int) else draw(sizes) for d in spec.dims)
        count = int(np.prod(dims, dtype=object)) if dims else 1
        payload = 8 * (count + 1) if spec.dtype == STRING else count * DTYPES[spec.dtype][1]
        fields: dict[str, Any] = {
            "index": index,
            "dtype": spec.dtype,
            "dims": dims,
            "offset": 64 * draw(st.integers(0, 8)),
            "payload_bytes": payload,
        }
        if draw(st.integers(0, 5)) == 0:
            spoilt = draw(tensors)
            field = draw(st.sampled_from(sorted(fields)))
            fields[field] = getattr(spoilt, field)
        if draw(st.integers(0, 8)):
            found.append(Tensor(**fields))
    return draw(st.permutations(found))
