"""Models of the fake: how signatures are written, what inputs are refused, what outputs come of functions."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest

import farm
from farm.client.inputs import InputLayout
from farm.testing import FakeFarm, FakeMisused
from farm.testing.signatures import parse
from shm.errors import TensorRefused
from shm.layout import Signature, TensorSpec

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
SIGNATURE = {
    "inputs": {"x": ("float32", ["N", 4]), "k": ("int64", ["N"]), "note": ("str", [None], "optional")},
    "outputs": {"y": ("float64", ["N", 2]), "names": ("str", ["N"]), "total": ("float32", []), "free": ("bool", ["M"])},
}
ONE = {"inputs": {"x": ("float32", ["N", 4])}, "outputs": {"y": ("float32", ["N", 1])}}


def ask(model, inputs=ROWS, **options):
    with FakeFarm({"m": model}) as fake, fake.client() as client:
        return client.infer("m", inputs, **options).outputs


def test_signature_is_written_as_a_dict_or_taken_from_a_farm():
    want = Signature(
        (TensorSpec("x", 1, ("N", 4)), TensorSpec("k", 7, ("N",)), TensorSpec("note", 8, ("?",), True)),
        (
            TensorSpec("y", 11, ("N", 2)),
            TensorSpec("names", 8, ("N",)),
            TensorSpec("total", 1, ()),
            TensorSpec("free", 9, ("M",)),
        ),
    )
    assert parse("m", SIGNATURE) == want
    with FakeFarm({"m": SIGNATURE}) as fake, fake.client() as client:
        (model,) = client.models()
        assert model.signature == want
        with FakeFarm({"n": model.signature}) as other, other.client() as second:
            assert second.models()[0].signature == want


def test_signature_alone_answers_zeros_of_the_right_shape():
    outputs = ask(SIGNATURE, {"x": ROWS, "k": [1, 2, 3]})
    assert {name: (array.shape, array.dtype.name) for name, array in outputs.items()} == {
        "y": ((3, 2), "float64"),
        "names": ((3,), "object"),
        "total": ((), "float32"),
        "free": ((3,), "bool"),
    }
    assert outputs["names"].tolist() == ["", "", ""]
    assert not outputs["y"].any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"inputs": {}}, "keys inputs and outputs"),
        ({"inputs": {}, "outputs": {}, "input": {}}, "keys inputs and outputs"),
        ({"inputs": [], "outputs": {}}, "m: inputs: expected a dict"),
        ({"inputs": {"x": "float32"}, "outputs": {}}, r"inputs\['x'\]: expected \(dtype, dims\)"),
        ({"inputs": {"x": ("float33", [1])}, "outputs": {}}, "'float33' is no dtype"),
        ({"inputs": {"x": ("complex64", [1])}, "outputs": {}}, "'complex64' is no dtype"),
        ({"inputs": {"x": ("float32", "N")}, "outputs": {}}, "dims must be a list"),
        ({"inputs": {"x": ("float32", [-1])}, "outputs": {}}, "not -1"),
        ({"inputs": {"x": ("float32", [1], True)}, "outputs": {}}, 'can only be "optional"'),
        ({"inputs": {f"x{i}": ("float32", [1]) for i in range(65)}, "outputs": {}}, "no farm could serve"),
        (7, "expected a function or a signature, got 7"),
    ],
)
def test_signature_that_cannot_be_read_is_refused(wrong, says):
    with pytest.raises(FakeMisused, match=says):
        FakeFarm({"m": wrong})


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"x": ROWS},
        {"x": ROWS, "k": [1, 2, 3], "z": 1},
        {"x": ROWS.astype("f8"), "k": [1, 2, 3]},
        {"x": ROWS[0], "k": [1, 2, 3]},
        {"x": ROWS[:, :3], "k": [1, 2, 3]},
        {"x": ROWS, "k": [1.5, 2, 3]},
        {"x": ROWS, "k": [1, 2, 3], "note": [1]},
        ROWS,
    ],
)
def test_wrong_inputs_are_refused_in_the_words_of_the_real_client(inputs):
    with pytest.raises(TensorRefused) as told:
        InputLayout("m", parse("m", SIGNATURE)).pack(inputs)
    with FakeFarm({"m": SIGNATURE}) as fake, fake.client() as client:
        with pytest.raises(farm.InvalidRequest) as caught:
            client.infer("m", inputs)
        assert str(caught.value) == f"m: {told.value}"
        assert caught.value.model == "m"
        assert fake.calls == []


def test_unknown_models_and_versions_are_not_found():
    with FakeFarm({"m": ONE}) as fake, fake.client() as client:
        with pytest.raises(farm.ModelNotFound, match=r"no model 'n' here; there are: m \(version 1\)"):
            client.infer("n", ROWS)
        with pytest.raises(farm.ModelNotFound, match="no version 2"):
            client.infer("m", ROWS, version=2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"deadline_ms": 0}, "deadline_range"),
        ({"deadline_ms": float("nan")}, "deadline_range"),
        ({"deadline_ms": 10**9}, "deadline_range"),
        ({"priority": 8}, "priority_range"),
        ({"key": "k" * 129}, "usage"),
        ({"trace": 5}, "usage"),
        ({"fallback": {}}, "usage"),
    ],
)
def test_options_out_of_range_are_refused(options, reason):
    with pytest.raises(farm.InvalidRequest) as caught:
        ask(ONE, **options)
    assert caught.value.reason == reason


def test_inputs_larger_than_the_arena_are_refused():
    with (
        FakeFarm({"m": ONE}) as fake,
        fake.client(slot_count=2, slot_bytes=64) as client,
        pytest.raises(farm.InvalidRequest, match="do not fit the client's 2 slots"),
    ):
        client.infer("m", np.zeros((9, 4), np.float32))


def test_function_gets_native_read_only_copies_by_name():
    seen = {}

    def look(inputs):
        seen.update(inputs)
        return np.zeros((3, 1), np.float32)

    turned = np.asfortranarray(ROWS.astype(">f4"))
    ask((look, ONE), turned)
    assert seen["x"].dtype == np.float32 and seen["x"].dtype.isnative
    assert seen["x"].flags.c_contiguous and not seen["x"].flags.writeable
    assert seen["x"].tolist() == ROWS.tolist()


def test_strings_reach_the_function_and_come_back():
    signature = {"inputs": {"s": ("str", ["N"])}, "outputs": {"upper": ("str", ["N"])}}
    outputs = ask((lambda inputs: [s.upper() for s in inputs["s"]], signature), ["grün", b"b"])
    assert outputs["upper"].tolist() == ["GRÜN", "B"]


def test_left_out_input_is_not_in_the_functions_dict():
    seen = []
    ask((lambda inputs: seen.append(sorted(inputs)) or zeros_of(inputs), SIGNATURE), {"x": ROWS, "k": [1, 2, 3]})
    assert seen == [["k", "x"]]


def zeros_of(inputs):
    return {"y": 0, "names": "", "total": 0, "free": False}


def test_outputs_have_the_declared_dtype():
    assert ask((lambda inputs: inputs["x"].astype("f8").sum(axis=1, keepdims=True), ONE))["y"].dtype == np.float32


def test_one_number_or_one_row_stands_for_every_row():
    assert ask((lambda inputs: 0.5, ONE))["y"].tolist() == [[0.5]] * 3
    assert ask((lambda inputs: {"y": [0.25]}, ONE))["y"].tolist() == [[0.25]] * 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"z": 1.0}, r"answers with \['z'\]; its signature has the outputs \['y'\]"),
        ("text", "expected float32, got <U4"),
        (np.zeros((3, 1), np.complex64), "expected float32, got complex64"),
        (np.zeros(3, np.float32), r"expected y: float32\[N, 1\], got the shape \[3\]"),
        (np.zeros((3, 1, 1), np.float32), r"got the shape \[3, 1, 1\]"),
    ],
)
def test_outputs_that_do_not_fit_are_the_tests_fault(given, says):
    with pytest.raises(FakeMisused, match=says):
        ask((lambda inputs: given, ONE))


def test_function_without_signature_takes_what_comes():
    outputs = ask(lambda inputs: {"sum": inputs["a"].sum(), "n": len(inputs)}, {"a": [1.5, 2.5], "b": "text"})
    assert outputs["sum"] == 4.0
    assert outputs["n"] == 2


def test_function_without_signature_needs_names():
    with pytest.raises(farm.InvalidRequest, match="no signature: pass a dict"):
        ask(lambda inputs: {"y": 1}, ROWS)
    with pytest.raises(FakeMisused, match="no signature: answer with a dict"):
        ask(lambda inputs: 1, {"x": ROWS})
    with pytest.raises(farm.InvalidRequest, match="complex64"):
        ask(lambda inputs: {"y": 1}, {"x": ROWS.astype("c8")})


def annotated(
    inputs: Annotated[dict, {"x": ("float32", ["N", 4])}],
) -> Annotated[dict, {"y": ("float32", ["N", 1])}]:
    return {"y": inputs["x"][:, :1]}


def half_annotated(inputs: Annotated[dict, {"x": ("float32", ["N", 4])}]) -> dict:
    return {}


def test_signature_is_taken_from_annotations():
    assert ask(annotated)["y"].tolist() == [[0.0], [4.0], [8.0]]
    with pytest.raises(farm.InvalidRequest, match="expected dimension 1 to be 4"):
        ask(annotated, ROWS[:, :2])
    with pytest.raises(FakeMisused, match="or neither"):
        FakeFarm({"m": half_annotated})


def test_versions_and_aliases_are_found_as_in_a_farm():
    with FakeFarm({}) as fake, fake.client() as client:
        for version in (1, 2):
            alias = ("canary",) if version == 2 else ("stable",)
            fake.add("m", lambda inputs, v=version: v, signature=ONE, version=version, aliases=alias, deadline_ms=50)
        asked = [None, "latest", 1, 2, "stable", "canary"]
        replies = [client.infer("m", ROWS, version=version) for version in asked]
        assert [reply.model_version for reply in replies] == [2, 2, 1, 2, 1, 2]
        assert [reply.outputs["y"][0, 0] for reply in replies] == [2, 2, 1, 2, 1, 2]
        assert [call.version for call in fake.calls] == asked
        assert [(m.name, m.version, m.ready) for m in client.models()] == [("m", 1, True), ("m", 2, True)]


def test_model_added_later_is_seen_by_clients_that_are_there():
    with FakeFarm({}) as fake, fake.client() as client:
        assert client.models() == []
        fake.add("m", ONE)
        assert client.infer("m", ROWS).outputs["y"].shape == (3, 1)
        fake.add("m", lambda inputs: 1.0, signature=ONE)
        assert client.infer("m", ROWS).outputs["y"].tolist() == [[1.0]] * 3
        assert len(client.models()) == 1
