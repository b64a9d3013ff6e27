"""What the demo prints, at most 100 columns wide: pure, from lines of the service to text."""

from __future__ import annotations

from collections.abc import Sequence

from farm.demo.service import Answered, Bulk, Line, Refused, Shed
from farm.embedded import Records

SHOWN = 12
COLUMNS = 100
STAGES = ("client", "to_router", "queue", "to_worker", "run", "from_worker", "to_client")
_HEAD = 54
"""Columns before the stages."""
_HEADS = ("call", "sent", "queue", "given", "run", "back", "reply")


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what was missing."""


def records_table(lines: Sequence[Line], records: Records) -> list[str]:
    """The first records that were asked one at a time, and where each one's time went."""
    answered = [line for line in lines if isinstance(line, Answered) and not line.hurried]
    text = [
        f"{'microseconds in each stage':>{_HEAD + 6 * len(STAGES)}}",
        f"{'record':>6}  {'answer':<15} {'truth':<9} {'by':<6} {'ms':>6} {'of ms':>6}"
        + "".join(f"{head:>6}" for head in _HEADS),
    ]
    text += [_row(line, records) for line in answered[:SHOWN]]
    if len(answered) > SHOWN:
        text.append(f"{'...':>6}  and {len(answered) - SHOWN} more, one at a time")
    return text


def hurried_table(lines: Sequence[Line], records: Records) -> list[str]:
    """The records whose deadline was too short for the model, and which rule answered each."""
    hurried = [line for line in lines if isinstance(line, Answered | Refused) and line.hurried]
    by_model = {line.record: line.malignant for line in lines if isinstance(line, Answered) and not line.hurried}
    bulks = [line for line in lines if isinstance(line, Bulk)]
    text = []
    if bulks and hurried:
        text.append(
            f"All workers busy, {len(bulks)} times, with {bulks[0].requests} requests of {bulks[0].rows:,} rows, "
            f"{min(b.run_ms_min for b in bulks):.0f} to {max(b.run_ms_max for b in bulks):.0f} ms each."
        )
        text.append("Meanwhile some records again, with a deadline shorter than that (model: what it said before):")
    text.append(
        f"{'record':>6}  {'answer':<15} {'truth':<9} {'by':<6} {'ms':>6} {'of ms':>6} "
        f"{'rule':<15} {'decision':<8} {'why':<14} {'model':>5}"
    )
    for line in hurried:
        if isinstance(line, Refused):
            text.append(f"{line.record:>6}  no answer: {line.error}"[:COLUMNS])
            continue
        said = by_model.get(line.record)
        text.append(
            f"{_head(line, records)} {line.rule or '-':<15} {line.decision or '-':<8} {line.reason:<14.14} "
            f"{'-' if said is None else format(said, '.3f'):>5}"
        )
    return text


def told(lines: Sequence[Line]) -> list[str]:
    """One that came too late for the model, and one that was too much, each in a sentence.

    Raises:
        DemoFailed: there was none.
    """
    late = next((n for n in lines if isinstance(n, Answered) and n.hurried and n.source == "rules"), None)
    if late is None:
        raise DemoFailed("no record was answered by a rule; the table says what came instead")
    shed = next((line for line in lines if isinstance(line, Shed)), None)
    if shed is None or not shed.refused:
        raise DemoFailed(f"no record was refused of {shed.asked if shed else 0} that were asked at a time")
    return [
        f"too late  record {late.record}, due in {late.deadline_ms:.3g} ms: answered by rule {late.rule} in "
        f"{late.latency_ms:.3g} ms ({late.reason})",
        f"too much  {shed.asked} at a time: {shed.answered} answered, {shed.refused} {shed.error} in "
        f"{shed.latency_ms:.3g} ms ({shed.reason}), retry_after_ms={shed.retry_after_ms}",
    ]


def summary(lines: Sequence[Line], records: Records) -> list[str]:
    """Accuracy against the diagnoses, and latencies.

    Raises:
        DemoFailed: a record was not answered, or not by whom it should have been, or too late.
    """
    for line in lines:
        if isinstance(line, Refused) and not line.hurried:
            raise DemoFailed(f"record {line.record} was not answered: {line.error}")
    answered = [line for line in lines if isinstance(line, Answered) and not line.hurried]
    hurried = [line for line in lines if isinstance(line, Answered) and line.hurried]
    if len(answered) != len(records.malignant):
        raise DemoFailed(f"{len(answered)} of {len(records.malignant)} records were answered")
    rules = [line for line in hurried if line.source == "rules"]
    asked = sum(isinstance(line, Answered | Refused) for line in lines)
    in_time = [line for line in (*answered, *hurried) if line.latency_ms <= line.deadline_ms]
    by_model = [line for line in answered if line.source == "model"]
    latencies = sorted(line.latency_ms for line in answered)
    right = sum(_says_malignant(line) == _truth(line, records) for line in by_model)
    rules_right = sum(_says_malignant(line) == _truth(line, records) for line in rules)
    return [
        f"accuracy  {right} of {len(by_model)} answers of the model are right ({right / max(1, len(by_model)):.1%}), "
        f"{rules_right} of {len(rules)} by rule",
        f"latency   p50 {_quantile(latencies, 0.5):.2f} ms, p99 {_quantile(latencies, 0.99):.2f} ms, "
        f"one record at a time, seen by the service",
        f"deadlines {len(in_time)} of {asked} answered in time",
    ]


def _row(line: Answered, records: Records) -> str:
    return _head(line, records) + "".join(f"{_microseconds(line.stages.get(stage)):>6}" for stage in STAGES)


def _microseconds(stage_ns: int | None) -> str:
    if stage_ns is None:
        return "-"
    return f"{stage_ns / 1e3:.0f}" if stage_ns < 99_999_500 else f"{stage_ns / 1e6:.0f}ms"


def _head(line: Answered, records: Records) -> str:
    says = "malignant" if _says_malignant(line) else "benign"
    truth = "malignant" if _truth(line, records) else "benign"
    return (
        f"{line.record:>6}  {says:<9} {line.malignant:.3f} {truth:<9} {line.source:<6} "
        f"{line.latency_ms:>6.2f} {line.deadline_ms:>6.3g}"
    )


def _says_malignant(line: Answered) -> bool:
    return line.malignant > 0.5


def _truth(line: Answered, records: Records) -> bool:
    return bool(records.malignant[line.record - 1])


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
