"""Every counter of the router, declared once with its meaning. A counter only rises; gauges are read off the state."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import asdict

from shm.worker import Copies


class Counters(Struct):
    """One attribute a counter, so that the hot path is `counters.requests += 1`."""

    requests: Annotated[int, Meta(description="requests taken from clients")] = 0
    answers_model: Annotated[int, Meta(description="ended with the model's answer")] = 0
    answers_rules: Annotated[int, Meta(description="ended with a rule's answer")] = 0
    answers_last_good: Annotated[int, Meta(description="ended with the last answer for the same key")] = 0
    answers_constant: Annotated[int, Meta(description="ended with the constant answer")] = 0
    shed: Annotated[int, Meta(description="ended shed: refused for want of room or time")] = 0
    expired: Annotated[int, Meta(description="ended expired: no answer by the deadline and no rule to give one")] = 0
    invalid: Annotated[int, Meta(description="ended invalid: wrong in themselves")] = 0
    failed: Annotated[int, Meta(description="ended failed: the run went wrong")] = 0
    cancelled: Annotated[int, Meta(description="ended cancelled by their client")] = 0
    orphaned: Annotated[int, Meta(description="their client was gone before they ended")] = 0
    held: Annotated[int, Meta(description="answered while their run still held the slots")] = 0
    released: Annotated[int, Meta(description="slots given back after that")] = 0
    rerun: Annotated[int, Meta(description="run once more because a worker died")] = 0
    rerun_refused: Annotated[int, Meta(description="not run once more because the budget for that was spent")] = 0
    poison: Annotated[int, Meta(description="refused because two workers died with them")] = 0
    evicted: Annotated[int, Meta(description="queued and then shed for a request with more right to the time")] = 0
    dropped: Annotated[int, Meta(description="queued and not started because the run would have been late")] = 0
    quarantined: Annotated[int, Meta(description="inputs kept that two workers died of")] = 0
    quarantine_failed: Annotated[int, Meta(description="such inputs that could not be kept")] = 0
    rules_compared: Annotated[int, Meta(description="answers of the model that were put to the rules too")] = 0
    rules_agreed: Annotated[int, Meta(description="those where the rules said the same")] = 0
    runs: Annotated[int, Meta(description="runs dispatched to workers")] = 0
    runs_skipped: Annotated[int, Meta(description="runs that a worker did not start because it was too late")] = 0
    runs_terminated: Annotated[int, Meta(description="runs told to stop because nobody waited for them any more")] = 0
    runs_hung: Annotated[int, Meta(description="runs told to stop because they took far longer than predicted")] = 0
    worker_us_saved: Annotated[int, Meta(description="worker time that stopped runs would still have taken, us")] = 0
    rows: Annotated[int, Meta(description="rows dispatched to workers")] = 0
    frames_in: Annotated[int, Meta(description="frames that clients sent")] = 0
    frames_rejected: Annotated[int, Meta(description="frames that could not be taken as a whole")] = 0
    frames_unknown: Annotated[int, Meta(description="frames from peers without a session")] = 0
    replies_out: Annotated[int, Meta(description="replies sent to clients")] = 0
    frames_out: Annotated[int, Meta(description="frames sent to clients")] = 0
    overflows: Annotated[int, Meta(description="outputs that did not fit their slots")] = 0
    inputs_in_place: Annotated[int, Meta(description="inputs that a worker read in their slots")] = 0
    input_copies: Annotated[int, Meta(description="inputs that a worker copied")] = 0
    input_copy_bytes: Annotated[int, Meta(description="bytes of those")] = 0
    outputs_in_place: Annotated[int, Meta(description="outputs that a worker wrote in their slots")] = 0
    output_copies: Annotated[int, Meta(description="outputs that a worker copied")] = 0
    output_copy_bytes: Annotated[int, Meta(description="bytes of those")] = 0
    workers_lost: Annotated[int, Meta(description="workers whose socket ended")] = 0
    workers_killed: Annotated[int, Meta(description="workers killed because a run did not come back")] = 0
    clients_attached: Annotated[int, Meta(description="sessions granted")] = 0
    clients_refused: Annotated[int, Meta(description="sessions refused")] = 0
    clients_lost: Annotated[int, Meta(description="sessions ended")] = 0
    clients_cut: Annotated[int, Meta(description="sessions ended by the router, for faults or for not reading")] = 0
    strangers_cut: Annotated[int, Meta(description="connections without a session that were cut")] = 0
    lane_memory_cut: Annotated[int, Meta(description="connections cut because the router's memory grew")] = 0

    def count_copies(self, copies: Copies) -> None:
        """What a run copied and what it did not have to."""
        self.inputs_in_place += copies.inputs_in_place
        self.input_copies += copies.inputs
        self.input_copy_bytes += copies.input_bytes
        self.outputs_in_place += copies.outputs_in_place
        self.output_copies += copies.outputs
        self.output_copy_bytes += copies.output_bytes

    def snapshot(self) -> dict[str, int]:
        return asdict(self)
