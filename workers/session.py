"""One loaded model: ONNX Runtime's session, its signature in the farm's terms, and the ways to run it.

The only module that imports onnxruntime. Its Linux wheels (1.29 and later) start a telemetry thread at import, open a
database in the home directory and look up names; the variable below keeps that off and must be set before the import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from shm.layout import CODES, RowPlan, Signature, TensorSpec
from shm.limits import NAME_BYTES_MAX, RANK_MAX, TENSORS_MAX
from shm.tensors import NUMPY, Array, address
from workers.config import SessionConfig
from workers.files import refuse_file
from workers.log import log
from workers.memory import explain, ran_out

ORT_VERSION: Final[str] = onnxruntime.__version__

ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    *(c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
"""What a load or a run may raise. ONNX Runtime's own classes have no base but Exception; its binding adds the rest."""

_CODES: Final[dict[str, int]] = {
    **{f"tensor({name})": code for name, code in CODES.items()},
    "tensor(float)": CODES["float32"],
    "tensor(double)": CODES["float64"],
}

_LEVELS: Final = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

_FATAL: Final = 4
"""Errors come back as exceptions; logged as well, one bad client would fill the log."""


_ADVICE: Final = (
    ("Protobuf parsing failed", "it is no ONNX file, or was cut short: export or copy it again"),
    ("No graph was found", "it is no ONNX file, or was cut short: export or copy it again"),
    ("is not a registered function/op", "custom operators are not loaded: export it with ONNX's own"),
    ("External data path", "tensors beside the model must lie in its folder or below, and not behind a link"),
)
"""What to do, by words of ONNX Runtime."""


class LoadRefused(Exception):
    """The model cannot be served; the message says why, in ONNX Runtime's words where it was that."""


class ModelFailed(Exception):
    """A run raised, or was terminated; the message is ONNX Runtime's."""


class Bound:
    """A run prepared on fixed memory. Keeps the arrays that ONNX Runtime holds bare pointers to."""

    __slots__ = ("addresses", "binding", "inputs", "outputs", "slot_count")

    def __init__(self, binding: Any, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        self.binding = binding
        self.slot_count = 1
        """The least slots that hold these arrays, for runs prepared on an arena."""
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.addresses = tuple(address(a) for a in inputs)


class Session:
    """A warm model. Not safe for two runs at a time; `options.terminate` may be set from another thread."""

    def __init__(self, inference: Any, signature: Signature, memory_mib: int = 0) -> None:
        """memory_mib: the worker's limit, for what is told when a run meets it."""
        self.signature = signature
        self.memory_mib = memory_mib
        self.input_plan = RowPlan(signature.inputs)
        self.output_plan = RowPlan(signature.outputs)
        self.input_row_end = self.input_plan.payload_bytes(1)
        self.output_row_end = self.output_plan.payload_bytes(1)
        self.input_names = [spec.name for spec in signature.inputs]
        self.output_names = [spec.name for spec in signature.outputs]
        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = _FATAL
        # Without the entry ONNX Runtime's Python layer looks it up by a C++ exception, 30 us at each bound run.
        self.options.add_run_config_entry("gpu_graph_id", "0")
        self.outputs_bound = self.output_plan.fits and all(self.output_plan.row_bytes)
        """Whether outputs may be bound to memory of the declared layout. Cleared by `unbind_outputs`."""
        self._inference = inference
        # The Python layer asks for the graph id and for WebGPU's state first: 0.75 us a run, 1.2 on a cold CPU. Its
        # names may change, and then the public way serves.
        inner: Any = getattr(inference, "_sess", None)
        self._bare = inner is not None and hasattr(inference.io_binding(), "_iobinding")
        self.run_binding: Callable[[Any, Any], object] = (inner if self._bare else inference).run_with_iobinding
        """`run_binding(bound.binding, options)`: what `run_bound` calls. Raises ORT_ERRORS."""

    def unbind_outputs(self) -> None:
        """The model was found to return other shapes than it declares: let ONNX Runtime allocate from now on."""
        self.outputs_bound = False
        log("outputs_unbound", reason="the model returns other shapes than it declares")

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run on these inputs; they are not copied when they are C-contiguous. The outputs are the caller's.

        Raises:
            ModelFailed: an input was not to the model's liking, or the run was terminated.
        """
        try:
            outputs: list[Array] = self._inference.run(self.output_names, feed, self.options)
        except ORT_ERRORS as error:
            raise ModelFailed(self.told(error)) from error
        return outputs

    def told(self, error: Exception) -> str:
        """An error of a run in words for whoever asked."""
        return f"{explain(self.memory_mib)}: {error}" if ran_out(error) else str(error)

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Bound:
        """Prepare runs from these arrays into those, by pointer. No strings, no array without elements."""
        binding = self._inference.io_binding()
        for spec, array in zip(self.signature.inputs, inputs, strict=True):
            binding.bind_input(spec.name, "cpu", 0, NUMPY[spec.dtype].type, array.shape, address(array))
        for spec, out in zip(self.signature.outputs, outputs, strict=True):
            binding.bind_output(spec.name, "cpu", 0, NUMPY[spec.dtype].type, out.shape, address(out))
        return Bound(binding._iobinding if self._bare else binding, inputs, outputs)

    def run_bound(self, bound: Bound) -> None:
        """Raises ModelFailed, also when an output's shape is not the bound one."""
        try:
            self.run_binding(bound.binding, self.options)
        except ORT_ERRORS as error:
            raise ModelFailed(str(error)) from error

    def with_independent_rows(self, independent: bool) -> None:
        """Set what the probe has found."""
        self.signature = Signature(self.signature.inputs, self.signature.outputs, independent)


def load(path: str, config: SessionConfig, memory_mib: int = 0) -> Session:
    """Load a model file.

    Raises:
        LoadRefused: no such file, not a model, an operator that is not there, tensors outside its folder, types that
            the farm does not carry, more memory than there is.
    """
    refused = refuse_file(path)
    if refused is not None:
        raise LoadRefused(f"{path}: {refused}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.intra_op_threads
    options.inter_op_num_threads = config.inter_op_threads
    parallel = config.inter_op_threads > 1
    mode = onnxruntime.ExecutionMode
    options.execution_mode = mode.ORT_PARALLEL if parallel else mode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS[config.optimization]
    options.log_severity_level = _FATAL
    # ONNX Runtime's other defaults stay. Measured with small dense models: without memory patterns a run takes 0.4 us
    # more; without the CPU arena, with the environment's allocators or with denormals as zero none takes less.
    spinning = "1" if config.spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    try:
        inference = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        advice = explain(memory_mib) if ran_out(error) else next((b for a, b in _ADVICE if a in str(error)), "")
        raise LoadRefused(f"{path}: {advice + ': ' if advice else ''}{error}") from error
    inputs = [_spec(path, "input", arg) for arg in inference.get_inputs()]
    inputs += [_spec(path, "input", arg, optional=True) for arg in inference.get_overridable_initializers()]
    outputs = [_spec(path, "output", arg) for arg in inference.get_outputs()]
    for side, specs in (("inputs", inputs), ("outputs", outputs)):
        if len(specs) > TENSORS_MAX:
            raise LoadRefused(f"{path}: the model has {len(specs)} {side}, the farm carries {TENSORS_MAX}")
    return Session(inference, Signature(tuple(inputs), tuple(outputs)), memory_mib)


def _spec(path: str, side: str, arg: Any, *, optional: bool = False) -> TensorSpec:
    code = _CODES.get(arg.type)
    if code is None:
        raise LoadRefused(
            f"{path}: {side} {arg.name!r} has type {arg.type}; served are tensors of {', '.join(CODES)}. "
            "Export the model with plain tensors (for scikit-learn: ZipMap off)"
        )
    if len(arg.name.encode()) > NAME_BYTES_MAX:
        raise LoadRefused(f"{path}: {side} {arg.name[:40]!r}... has a name of more than {NAME_BYTES_MAX} bytes")
    if len(arg.shape) > RANK_MAX:
        raise LoadRefused(f"{path}: {side} {arg.name!r} has rank {len(arg.shape)}, the farm carries {RANK_MAX}")
    return TensorSpec(arg.name, code, tuple(_dim(d) for d in arg.shape), optional)


def _dim(dim: int | str | None) -> int | str:
    if isinstance(dim, int):
        return dim if dim >= 0 else "?"
    return dim or "?"


def empty(code: int, dims: Sequence[int]) -> Array:
    """Private memory for a tensor that is no string."""
    return np.empty(tuple(dims), NUMPY[code])
