"""What the demo prints and refuses to print, and how it finds what was left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from farm.demo import show, table
from farm.demo.leftovers import Traces
from farm.demo.service import Answered, Bulk, Line, Refused, Shed
from farm.embedded import Records
from farm.errors import Unavailable

RECORDS = Records(("x",), np.zeros((3, 1), np.float32), np.array([True, False, True]))
STAGES = dict.fromkeys(table.STAGES, 123_456_000) | {"total": 900_000}


def answered(record: int, malignant: float = 0.9, *, hurried: bool = False, source: str = "model") -> Answered:
    rule = "large_perimeter" if source == "rules" else None
    return Answered(
        record=record,
        deadline_ms=12.3 if hurried else 100.0,
        hurried=hurried,
        latency_ms=0.9,
        malignant=malignant,
        source=source,
        reason="timeout" if rule else "ok",
        rule=rule,
        decision="refer" if rule else None,
        stages=STAGES,
    )


def lines(*others: Line) -> list[Line]:
    shed = Shed(40, 8, 32, 33, "Overloaded", "queue_full", 60_000, 123.4)
    return [answered(1), answered(2), answered(3, 0.1), *others, Bulk(2, 65_536, 35.0, 39.0), shed]


def test_tables_fit_a_hundred_columns():
    said = lines(answered(1, hurried=True, source="rules"), Refused(2, 9.0, True, "DeadlineExceeded: " + "late " * 40))
    printed = [
        *table.records_table(said, RECORDS),
        *table.hurried_table(said, RECORDS),
        *table.told(said),
        *table.summary(said, RECORDS),
    ]
    assert max(map(len, printed)) <= 100


def test_accuracy_counts_the_models_answers_against_the_diagnoses():
    told = "\n".join(table.summary(lines(answered(1, hurried=True, source="rules")), RECORDS))
    assert "1 of 3 answers of the model are right" in told
    assert "1 of 1 by rule" in told


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (
            lines(Refused(2, 100.0, False, "DeadlineExceeded: late")),
            "record 2 was not answered: DeadlineExceeded: late",
        ),
        ([answered(1, hurried=True, source="rules"), answered(1)], "1 of 3 records were answered"),
    ],
)
def test_demo_that_showed_less_than_it_promises_fails(said, complaint):
    with pytest.raises(table.DemoFailed, match=complaint):
        table.summary(said, RECORDS)


def test_what_came_too_late_and_what_was_too_much_are_a_sentence_each():
    late, much = table.told(lines(answered(1, hurried=True, source="rules")))
    assert late == "too late  record 1, due in 12.3 ms: answered by rule large_perimeter in 0.9 ms (timeout)"
    assert much == ("too much  40 at a time: 32 answered, 8 Overloaded in 123 ms (queue_full), retry_after_ms=60000")


NONE_SHED = Shed(40, 0, 40, 0, "", "", 0, 0.0)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (lines(), "no record was answered by a rule"),
        (lines(answered(1, hurried=True)), "no record was answered by a rule"),
        ([answered(1, hurried=True, source="rules")], "no record was refused of 0"),
        ([answered(1, hurried=True, source="rules"), NONE_SHED], "no record was refused of 40"),
    ],
)
def test_demo_without_a_rule_or_a_refusal_fails(said, complaint):
    with pytest.raises(table.DemoFailed, match=complaint):
        table.told(said)


def test_a_farm_that_does_not_start_is_one_line_and_exit_code_one(monkeypatch, capsys):
    def refuse(**_: object) -> None:
        raise Unavailable("the farm did not start: no memory")

    monkeypatch.setattr(show, "Farm", refuse)
    assert show.show() == 1
    assert capsys.readouterr().err == "farm demo: the farm did not start: no memory\n"


def test_a_process_that_stays_is_found_and_an_ended_one_is_not(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        traces = Traces.of_children(str(tmp_path / "gone"))
        assert child.pid in {pid for pid, _ in traces.processes}
        assert f"process {child.pid}" in traces._look()
    finally:
        child.communicate(b"\n", timeout=30)
    assert traces.left() == []


def test_a_runtime_directory_and_a_memory_file_that_stay_are_found(tmp_path):
    (tmp_path / "attach.sock").touch()
    fd = os.memfd_create("arena")
    try:
        found = Traces(frozenset(), str(tmp_path))._look()
    finally:
        os.close(fd)
    assert str(tmp_path / "attach.sock") in found
    assert any("memory file" in one for one in found)
