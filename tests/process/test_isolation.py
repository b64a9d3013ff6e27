"""isolation = "group": a client that writes while the model runs changes nothing, since every input is copied first."""

from __future__ import annotations

import grp
import os

import numpy as np
import pytest

import farm
from farm import control
from shm.control import InspectWanted
from tests import models
from tests.crowd import in_process

pytestmark = pytest.mark.slow

GROUP = grp.getgrgid(os.getgid()).gr_name
CALLS = 5


@pytest.mark.parametrize("isolation", ["same-uid", "group"])
def test_inputs_are_read_in_place_or_copied_as_the_isolation_says_and_each_copy_is_counted(tmp_path, isolation):
    path = models.mlp(tmp_path / "mlp.onnx")
    options = {"isolation": "group", "service_group": GROUP} if isolation == "group" else {}
    x = np.random.default_rng(2).standard_normal((1, 64)).astype(np.float32)
    with farm.Farm({"mlp": path}, workers=1, pin=False, **options) as running, running.client() as client:
        for _ in range(CALLS):
            reply = client.infer("mlp", x, deadline_ms=5000)
            np.testing.assert_array_equal(reply.outputs["y"], in_process(path).run(["y"], {"x": x})[0])
        counters = running.status()["router"]["counters"]
        facts = control.ask(running.endpoint, InspectWanted(0))
        arena = facts["arenas"][0]
        end = arena["in_address"] + arena["slot_count"] * arena["slot_bytes"]
        lies_in_the_file = arena["in_address"] <= facts["last_run"]["input_addresses"][0] < end
        if isolation == "group":
            assert (counters["input_copies"], counters["input_copy_bytes"]) == (CALLS, CALLS * x.nbytes)
            assert counters["inputs_in_place"] == 0 and not lies_in_the_file
        else:
            assert (counters["inputs_in_place"], counters["input_copies"]) == (CALLS, 0)
            assert lies_in_the_file
