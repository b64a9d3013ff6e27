"""Rules: what is refused at start and how it is said, and what a request gets for an answer."""

from __future__ import annotations

import struct

import pytest

from router.answers import AnswerRefused
from router.config import RuleConfig, RulesConfig
from router.rules import ROW_NS_MAX, RuleBook, RuleRefused
from shm.client import Request
from shm.layout import Signature, Tensor, TensorSpec
from shm.limits import INLINE_BYTES_MAX
from tests.unit.router.build import request

F32, I64, STRING, F16, BOOL, I8 = 1, 7, 8, 10, 9, 3
XY = Signature((TensorSpec("x", F32, ("N", 2)),), (TensorSpec("y", F32, ("N",)),), True)
FEATURES = {"x": ["amount", "risk"]}


def book(*rules: RuleConfig, features: dict[str, list[str]] = FEATURES, signature: Signature = XY) -> RuleBook:
    made = RuleBook(RulesConfig(features=features, rules=list(rules)))
    made.bind(signature)
    return made


def rule(when: str | None = None, name: str = "r", **answer: object) -> RuleConfig:
    return RuleConfig(name=name, when=when, answer=answer or {"y": 1.0})


def floats(*values: float) -> bytes:
    return struct.pack(f"={len(values)}f", *values)


def values_of(answered: tuple, index: int = 0, code: str = "f") -> tuple:
    tensor, inline = answered[0][index], answered[1]
    count = tensor.payload_bytes // struct.calcsize(code)
    return struct.unpack_from(f"={count}{code}", inline, tensor.offset)


# At start


def test_a_condition_that_does_not_parse_is_refused_by_rule_and_position():
    with pytest.raises(AnswerRefused, match=r"'late'.*1:10"):
        book(rule("amount + ", name="late"))


@pytest.mark.parametrize("macro", ["all", "exists", "exists_one", "map", "filter"])
@pytest.mark.parametrize("between", ["", " ", "\n", " // one by one\n"])
def test_macros_that_walk_lists_are_refused(macro, between):
    with pytest.raises(AnswerRefused, match=rf"'r'.*macro '{macro}'"):
        book(rule(f"[1, 2].{between}{macro}{between}(i, i > 1) == true"))


def test_a_macro_is_refused_with_its_position_in_what_was_written():
    when = '"four" == "four" && [1].all(i, i > 0)'
    with pytest.raises(AnswerRefused, match=f"position {when.index('.all') + 1} "):
        book(rule(when))


@pytest.mark.parametrize("when", ['"x.all(" == "y"', "amount > 1.0 // not x.all(i, true)", "'a.map(' == 'b'"])
def test_what_looks_like_a_macro_in_a_string_or_comment_is_none(when):
    book(rule(when))


def test_a_variable_that_is_no_feature_is_refused_with_what_is_known():
    with pytest.raises(AnswerRefused, match=r"'r': 'amuont' is no feature; known are amount, risk"):
        book(rule("amuont > 1.0"))


def test_an_unknown_function_is_refused_at_start():
    with pytest.raises(AnswerRefused, match=r"'r'.*'ceiling'"):
        book(rule("ceiling(amount) > 1.0"))


@pytest.mark.parametrize("first", ["amount < 5.0", "amount > -1.0 && amount < 50.0", "amount == 0.0"])
def test_an_unknown_function_is_found_behind_what_is_usually_enough(first):
    with pytest.raises(AnswerRefused, match=r"'r'.*'ceiling'"):
        book(rule(f"{first} || ceiling(amount) > 1.0"))


def test_a_condition_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(AnswerRefused, match=r"'r': the condition gives 1\.0; it must give true or false"):
        book(rule("amount + 1.0"))


def test_types_that_do_not_go_together_are_refused_at_start():
    with pytest.raises(AnswerRefused, match="'r' could not be evaluated"):
        book(rule("amount + 'a' == 'b'"))


def test_arithmetic_that_fails_for_a_sample_only_is_accepted():
    book(rule("10 / size > 2"), features={}, signature=one_column("size", I64))


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(AnswerRefused, match="same name: 'r'"):
        book(rule(), rule())


def test_features_must_name_every_column():
    with pytest.raises(AnswerRefused, match=r"'x': 1 names, but x: float32\[N, 2\] has 2 columns"):
        book(rule(), features={"x": ["amount"]})


def test_features_of_an_input_that_is_not_there_are_refused():
    with pytest.raises(AnswerRefused, match=r"'z': the model has no such input; it has x"):
        book(rule(), features={"z": ["a"]})


def test_features_of_an_input_of_free_width_are_refused():
    free = Signature((TensorSpec("x", F32, ("N", "M")),), XY.outputs, True)
    with pytest.raises(AnswerRefused, match="no fixed number of columns"):
        book(rule(), signature=free)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"z": 1.0}, "lacks output 'y'"),
        ({"y": 1.0, "z": 1.0}, "no output 'z'"),
        ({"y": [1.0, 2.0]}, "takes 1 values a row, the answer has 2"),
        ({"y": "one"}, "is float32, and the answer is not"),
        ({"y": 1e39}, "is float32, and the answer is not"),
    ],
)
def test_an_answer_that_does_not_fit_the_outputs_is_refused(answer, complaint):
    with pytest.raises(AnswerRefused, match=complaint):
        book(RuleConfig(name="r", answer=answer))


@pytest.mark.parametrize(("dtype", "value"), [(I8, 200), (I64, 1.5), (STRING, 1.0), (F16, 1e6)])
def test_an_answer_out_of_the_dtypes_range_is_refused(dtype, value):
    signature = Signature(XY.inputs, (TensorSpec("y", dtype, ("N",)),))
    with pytest.raises(AnswerRefused, match="output 'y'"):
        book(rule(y=value), signature=signature)


def test_an_output_of_free_shape_cannot_be_answered():
    signature = Signature(XY.inputs, (TensorSpec("y", F32, ("N", "K")),))
    with pytest.raises(AnswerRefused, match="free shape"):
        book(rule(), signature=signature)


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(AnswerRefused, match=r"'x': 'amount' is the name of two columns"):
        book(rule(), features={"x": ["amount", "amount"]})


def test_what_a_row_costs_is_measured_rule_by_rule():
    cheap, dear = rule("risk > 0.5", "cheap"), rule(" || ".join(["risk > 2.0"] * 20), "dear")
    measured = book(cheap, dear)
    assert 0 < measured.rule_ns["cheap"] < measured.rule_ns["dear"]
    assert sum(measured.rule_ns.values()) < measured.row_ns < ROW_NS_MAX


def test_rules_that_cost_too_much_are_refused_with_the_figure_and_the_dearest():
    dear = rule(" || ".join(["risk > 2.0"] * 250), "dear")
    with pytest.raises(AnswerRefused, match=r"take [\d.]+ us for a row, at most 50 are allowed; 'dear' takes [\d.]+"):
        book(dear, *(rule("risk > 0.5", f"cheap{n}") for n in range(100)))


# Answers


def one_column(name: str, dtype: int) -> Signature:
    return Signature((TensorSpec(name, dtype, ("N",)),), XY.outputs, True)


def test_the_first_rule_that_holds_answers():
    rules = book(rule("amount > 10.0", "high", y=1.0), rule("amount > 5.0", "mid", y=0.5), rule(None, "low", y=0.0))
    assert values_of(rules.answer(request(), floats(7.0, 0.0))) == (0.5,)


def test_each_row_is_decided_by_itself():
    rules = book(rule("risk > 0.5", "risky", y=1.0), rule(None, "fine", y=0.0))
    answered = rules.answer(request(rows=3), floats(1, 0.9, 1, 0.1, 1, 0.7))
    assert values_of(answered) == (1.0, 0.0, 1.0)
    assert answered[0] == (Tensor(0, F32, (3,), 0, 12),)
    assert answered[2] == "risky+fine"


def test_the_decision_is_that_of_the_first_row():
    rules = book(RuleConfig(name="a", when="risk > 0.5", answer={"y": 1}, decision="deny"), rule(None, "b"))
    assert rules.answer(request(), floats(1, 1))[3] == "deny"
    assert rules.answer(request(), floats(1, 0))[3] is None


def test_only_variables_that_a_rule_names_are_read():
    rules = book(rule("risk > 0.5"))
    assert rules.variables == {"risk"}


@pytest.mark.parametrize(
    ("dtype", "code", "value"), [(F16, "e", 1.5), (I64, "q", 3), (BOOL, "?", True), (F32, "f", 2.0)]
)
def test_features_of_every_dtype_are_read_as_what_they_are(dtype, code, value):
    text = str(value).lower()
    rules = book(rule(f"v == {text}"), features={}, signature=one_column("v", dtype))
    assert rules.answer(request(), struct.pack("=" + code, value))[2] == "r"


def test_several_outputs_lie_aligned_behind_one_another():
    outputs = (TensorSpec("label", I64, ("N",)), TensorSpec("p", F32, ("N", 2)), TensorSpec("version", F32, (1,)))
    rules = book(rule(label=3, p=[0.25, 0.75], version=7.0), signature=Signature(XY.inputs, outputs))
    answered = rules.answer(request(rows=2), floats(0, 0, 0, 0))
    assert [(t.dims, t.offset) for t in answered[0]] == [((2,), 0), ((2, 2), 64), ((1,), 128)]
    assert values_of(answered, 0, "q") == (3, 3)
    assert values_of(answered, 1) == (0.25, 0.75, 0.25, 0.75)
    assert values_of(answered, 2) == (7.0,)


def test_one_value_fills_a_row():
    signature = Signature(XY.inputs, (TensorSpec("y", F32, ("N", 3)),))
    assert values_of(book(rule(y=0.5), signature=signature).answer(request(), floats(0, 0))) == (0.5, 0.5, 0.5)


def test_float16_outputs_are_rounded_to_it():
    signature = Signature(XY.inputs, (TensorSpec("y", F16, ("N",)),))
    assert values_of(book(rule(y=0.1), signature=signature).answer(request(), floats(0, 0)), 0, "e") == (
        pytest.approx(0.1, rel=1e-3),
    )


def test_string_outputs_are_offsets_and_utf8():
    signature = Signature(XY.inputs, (TensorSpec("y", STRING, ("N",)),))
    tensors, inline, _, _ = book(rule(y="prüfen"), signature=signature).answer(request(rows=2), floats(0, 0, 0, 0))
    assert struct.unpack_from("=3q", inline) == (0, 7, 14)
    assert inline[24 : tensors[0].payload_bytes] == "prüfen".encode() * 2


def test_described_requests_are_read_where_they_say():
    rules = book(rule("risk > 0.5", "risky"), rule(None, "fine", y=0.0))
    asked = request(tensors=(Tensor(0, F32, (1, 2), 64, 8),))
    assert rules.payload_bytes(asked) == 72
    assert rules.answer(asked, bytes(64) + floats(0, 1))[2] == "risky"


def test_a_rule_that_reads_an_input_that_was_left_out_refuses_by_name():
    inputs = (TensorSpec("x", F32, ("N", 2)), TensorSpec("age", F32, ("N",), optional=True))
    rules = book(rule("age > 1.0"), signature=Signature(inputs, XY.outputs))
    with pytest.raises(AnswerRefused, match="'age' was left out"):
        rules.answer(request(tensors=(Tensor(0, F32, (1, 2), 0, 8),)), floats(0, 0))


def test_no_rule_that_holds_is_a_refusal():
    with pytest.raises(AnswerRefused, match="no rule holds"):
        book(rule("risk > 0.5")).answer(request(), floats(0, 0))


@pytest.mark.parametrize(
    ("when", "value"), [("10 / v > 2", 0), ("10 % v > 2", 0), ("v + 1 > 2", 2**63 - 1), ("[1][v] > 0", -1)]
)
def test_arithmetic_that_fails_is_a_refusal_and_not_the_end_of_the_router(when, value):
    rules = book(rule(when), features={}, signature=one_column("v", I64))
    with pytest.raises(AnswerRefused, match="'r' could not be evaluated"):
        rules.answer(request(), struct.pack("=q", value))


@pytest.mark.parametrize("when", [None, "risk > 0.5"])
def test_a_request_without_rows_is_a_refusal(when):
    with pytest.raises(AnswerRefused, match="no rows"):
        book(rule(when)).answer(request(rows=0), b"")


def test_an_input_of_no_bytes_is_a_refusal():
    inputs = (TensorSpec("x", F32, ("N", 2)), TensorSpec("z", F32, ("M", 2)))
    rules = book(rule("risk > 0.5"), signature=Signature(inputs, XY.outputs))
    asked = Request(1, 0, 1, 0, 1, 0, tensors=(Tensor(0, F32, (0, 2), 0, 0), Tensor(1, F32, (3, 2), 0, 0)))
    with pytest.raises(AnswerRefused, match="no row 0"):
        rules.answer(asked, b"")


def test_an_answer_too_large_for_a_reply_is_a_refusal():
    """Of few long rows: rules have 5 ms a request, which thousands of short ones may take on a busy host."""
    wide = Signature(XY.inputs, (TensorSpec("y", F32, ("N", 1024)),), True)
    fit = INLINE_BYTES_MAX // 4096
    book(rule(), signature=wide).answer(request(rows=fit), b"")
    with pytest.raises(AnswerRefused, match=f"at most {INLINE_BYTES_MAX}"):
        book(rule(), signature=wide).answer(request(rows=fit + 1), b"")


def test_a_rule_behind_one_without_a_condition_is_refused_since_nothing_reaches_it():
    with pytest.raises(RuleRefused, match="rule 'b' is never reached: 'a' before it has no condition"):
        RuleBook(RulesConfig(features={}, rules=[rule(None, "a"), rule("x > 1.0", "b")]))


def test_a_feature_that_no_condition_can_name_is_refused():
    with pytest.raises(RuleRefused, match="feature 'mean texture' is no name"):
        RuleBook(RulesConfig(features={"x": ["mean texture"]}, rules=[rule()]))
