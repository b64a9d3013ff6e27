"""One model as the router sees it: its configuration, its signature once a worker has told it, its queue and costs."""

from __future__ import annotations

import math

from router.batching import ModelQueue
from router.config import Behaviour, ModelConfig
from router.costs import RunCosts
from router.fallback import FAILURE_OF, table
from router.forecast import Forecast
from router.retries import RetryBudget
from router.shedding import SURPLUS_MAX
from shm.client import Request
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import RowPlan, Signature, check_described
from shm.limits import FRAME_BYTES_MAX, MEMBERS_MAX

_ROW_SIZES_KEPT = 1024
NO_LIMIT = 2**63

# What msgpack takes at most for a member of a run, a tensor that it describes, and a dimension of that.
MEMBER_BYTES = 64
TENSOR_BYTES = 32
DIMENSION_BYTES = 9


class ModelState:
    """Configuration in ns, queue, costs, and the check of a request's tensors."""

    __slots__ = (
        "_payload_of_rows",
        "busy_until_ns",
        "config",
        "costs",
        "deadline_ns",
        "forecast",
        "half_requests",
        "hang_ns",
        "has_rules",
        "in_flight_max",
        "in_hand",
        "index",
        "input_plan",
        "instead",
        "keeps_answers",
        "max_batch",
        "max_delay_ns",
        "members_max",
        "queue",
        "queue_bytes_max",
        "queue_requests",
        "ready",
        "retried",
        "retries",
        "sample_every",
        "signature",
        "suspects",
        "to_sample",
    )

    def __init__(self, index: int, config: ModelConfig) -> None:
        self.index = index
        self.config = config
        self.deadline_ns = int(config.deadline_ms * 1e6)
        self.max_delay_ns = int(config.max_delay_ms * 1e6)
        self.hang_ns = int(config.hang_ms * 1e6)
        self.queue_requests = config.queue_requests
        self.half_requests = math.ceil(config.queue_requests * (1 - SURPLUS_MAX))
        """With fewer in the queue it is full for nobody."""
        self.in_flight_max = config.in_flight_max or NO_LIMIT
        self.queue_bytes_max = config.queue_mib * 1024 * 1024
        self.has_rules = config.rules is not None
        rows = table(config)
        self.instead: dict[int, tuple[Behaviour, ...]] = {}
        """What to try for each reason, `retry` and `reject` left out; a reason without anything is not in it."""
        self.retried = {reason for reason, failure in FAILURE_OF.items() if "retry" in rows[failure]}
        for reason, failure in FAILURE_OF.items():
            steps = tuple(step for step in rows[failure] if step not in ("retry", "reject"))
            if steps:
                self.instead[reason] = steps
        self.keeps_answers = any("last_good" in steps for steps in rows.values())
        self.sample_every = config.rules.sample_every if config.rules is not None else 0
        self.to_sample = self.sample_every
        self.max_batch = 1
        self.members_max = 1
        self.queue = ModelQueue()
        self.costs = RunCosts()
        self.forecast = Forecast(self.costs)
        self.retries = RetryBudget()
        self.in_hand = 0
        """Runs that its workers have."""
        self.busy_until_ns = 0
        """When the last of its workers is predicted to have done what it has in hand."""
        self.suspects = 0
        """Workers that were told to stop a run and have not said yet that they did."""
        self.ready = False
        self.signature: Signature | None = None
        self.input_plan: RowPlan | None = None
        self._payload_of_rows: dict[int, int] = {}

    def adopt(self, signature: Signature) -> None:
        """Take what a worker found in the model file. Workers of one version find the same."""
        self.signature = signature
        self.input_plan = RowPlan(signature.inputs)
        self.max_batch = self.config.max_batch if signature.independent_rows else 1
        self._payload_of_rows.clear()
        # A run's frame must stay within its limit, whatever its members describe.
        ranks = sum(TENSOR_BYTES + DIMENSION_BYTES * len(spec.dims) for spec in signature.inputs)
        member_bytes = MEMBER_BYTES if self.input_plan.fits else MEMBER_BYTES + ranks
        self.members_max = max(1, min(self.max_batch, MEMBERS_MAX, FRAME_BYTES_MAX // 2 // member_bytes))

    def payload_bytes(self, request: Request, room_bytes: int) -> int:
        """Bytes of the request's inputs, checked against signature and room.

        Raises:
            TensorRefused: they do not fit; the message names input, expected and given.
        """
        assert self.signature is not None
        assert self.input_plan is not None
        if request.tensors is not None:
            check_described(self.signature.inputs, request.tensors, room_bytes)
            self._check_rows(request)
            return sum(tensor.payload_bytes for tensor in request.tensors)
        if not self.input_plan.fits:
            raise TensorRefused(
                Reason.MISSING_INPUT,
                f"model {self.config.name} has inputs of free shape: each request must say where its tensors lie",
            )
        payload = self._payload_of_rows.get(request.rows)
        if payload is None:
            if request.rows and not self.input_plan.row_form:
                # Whatever the number, it would be charged and told to others as if it were true.
                raise TensorRefused(
                    Reason.DIMENSION,
                    f"the request names {request.rows} rows; inputs of model {self.config.name} have no rows, name 0",
                )
            payload = self.input_plan.payload_bytes(request.rows)
            if len(self._payload_of_rows) < _ROW_SIZES_KEPT:
                self._payload_of_rows[request.rows] = payload
        if payload > room_bytes:
            raise TensorRefused(
                Reason.BYTE_LENGTH,
                f"{request.rows} rows of model {self.config.name} take {payload} bytes, its slots have {room_bytes}",
            )
        return payload

    def _check_rows(self, request: Request) -> None:
        """`rows` is the first dimension that all inputs share, or 0: batches are cut and charged by it."""
        assert request.tensors is not None
        firsts = {tensor.dims[0] if tensor.dims else 0 for tensor in request.tensors}
        if request.rows != (next(iter(firsts)) if len(firsts) == 1 else 0):
            raise TensorRefused(
                Reason.DIMENSION, f"the request names {request.rows} rows, its inputs have {sorted(firsts)}"
            )

    def shape_of(self, request: Request) -> object:
        """What must agree for two requests to share a batch; None where the signature fixes it."""
        if request.tensors is None or self.max_batch == 1:
            return None
        return tuple((tensor.index, tensor.dtype, tensor.dims[1:]) for tensor in request.tensors)
