"""Read a quarantined input: a request that two workers died of, kept by the router in RUNTIME_DIR/quarantine.

from farm import quarantine
facts, inputs = quarantine.load("/run/farm/quarantine/20261123T121314.567Z-fraud-1a2b3c4d")
onnxruntime.InferenceSession(facts["path"]).run(None, inputs)   # in a process that may die
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from farm.errors import ConfigError
from shm import tensors
from shm.layout import CODES, STRING
from shm.tensors import Array


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The facts, and the inputs by name. The file facts.json says which model, how many rows, who asked, who died.

    Raises:
        ConfigError: this is no such folder, or the input was too large to be kept.
    """
    try:
        with open(os.path.join(folder, "facts.json"), "rb") as file:
            facts: dict[str, Any] = msgspec.json.decode(file.read())
        if facts["left_out"] is not None:
            raise ConfigError(f"{os.fspath(folder)}: the input was not kept: {facts['left_out']}")
        with open(os.path.join(folder, "inputs.bin"), "rb") as file:
            payload = file.read()
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise ConfigError(f"{os.fspath(folder)} is no quarantined input: {error}; name one folder of it") from error
    inputs = {}
    for told in facts["tensors"]:
        code, shape = CODES[told["dtype"]], tuple(told["shape"])
        if code == STRING:
            inputs[told["name"]] = tensors.read_strings(told["name"], payload, told["offset"], told["bytes"], shape)
        else:
            inputs[told["name"]] = tensors.view(payload, told["offset"], code, shape).copy()
    return facts, inputs
