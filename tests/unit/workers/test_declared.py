"""What a model declares is held against what it returns, and the difference is said in full."""

from __future__ import annotations

import numpy as np
import pytest

from shm.layout import CODES, STRING, Signature, Tensor, TensorSpec
from shm.worker import Member
from workers.declared import named_dims, refuse_outputs

F32 = CODES["float32"]
ROWS = Signature((TensorSpec("x", F32, ("N", 4)),), (TensorSpec("y", F32, ("N", 1)),))
THREE = Member(1, 0, 1, 3)


@pytest.mark.parametrize(
    ("output", "returned"),
    [
        (np.zeros((3, 2), np.float32), "float32 [3, 2]"),
        (np.zeros((2, 1), np.float32), "float32 [2, 1]"),
        (np.zeros((3,), np.float32), "float32 [3]"),
        (np.zeros((3, 1, 1), np.float32), "float32 [3, 1, 1]"),
        (np.zeros((3, 1), np.float64), "float64 [3, 1]"),
        (np.array([["a"]] * 3, object), "object [3, 1]"),
    ],
)
def test_what_differs_is_refused_with_both_sides(output, returned):
    wrong = refuse_outputs(ROWS, THREE, [output])
    assert wrong.startswith(
        f"output 'y': the model declares float32 [N, 1] with N = 3 and returned {returned}; export it"
    )


def test_what_agrees_passes():
    assert refuse_outputs(ROWS, THREE, [np.zeros((3, 1), np.float32)]) is None
    text = Signature(ROWS.inputs, (TensorSpec("y", STRING, ("N",)),))
    assert refuse_outputs(text, THREE, [np.array(["a", "b", "c"], object)]) is None
    assert "declares string [N]" in refuse_outputs(text, THREE, [np.zeros(3, np.float32)])


def test_the_second_of_two_outputs_is_looked_at_too():
    two = Signature(ROWS.inputs, (ROWS.outputs[0], TensorSpec("z", F32, (2,))))
    good = np.zeros((3, 1), np.float32)
    assert refuse_outputs(two, THREE, [good, np.zeros(2, np.float32)]) is None
    assert "output 'z'" in refuse_outputs(two, THREE, [good, np.zeros(3, np.float32)])


@pytest.mark.parametrize("name", ["M", "?"])
def test_a_name_that_inputs_have_not_is_free(name):
    free = Signature(ROWS.inputs, (TensorSpec("y", F32, (name, 1)),))
    for rows in (0, 1, 7):
        assert refuse_outputs(free, THREE, [np.zeros((rows, 1), np.float32)]) is None
    assert refuse_outputs(free, THREE, [np.zeros((7, 2), np.float32)]) is not None


def test_names_come_from_described_inputs_and_not_from_those_that_disagree():
    inputs = (TensorSpec("x", F32, ("N", "T")), TensorSpec("k", F32, ("N", "?")), TensorSpec("o", F32, ("K",), True))
    signature = Signature(inputs, ())
    described = Member(1, 0, 1, 0, (Tensor(0, F32, (2, 5), 0, 40), Tensor(1, F32, (2, 9), 64, 72)))
    assert named_dims(signature, described) == {"N": 2, "T": 5}
    differing = Member(1, 0, 1, 0, (Tensor(0, F32, (2, 5), 0, 40), Tensor(1, F32, (3, 9), 64, 108)))
    assert named_dims(signature, differing) == {"T": 5}
