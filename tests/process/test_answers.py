"""Right answers by every way of asking, compared with in-process ONNX Runtime; and where the memory of them lies."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import farm
from farm import control
from shm.control import InspectWanted
from tests import models

pytestmark = pytest.mark.slow

LANES = ["direct", "zeromq"]
DEADLINE_MS = 20_000


def session_of(path: Path) -> ort.InferenceSession:
    """As a worker has it: one thread, all optimisations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "mlp": models.mlp(folder / "mlp.onnx"),
        "big": models.big_output(folder / "big.onnx"),
        "grown": models.grown_output(folder / "grown.onnx"),
        "slow": models.slow(folder / "slow.onnx", nodes=200, size=128),
        "text": models.strings(folder / "text.onnx"),
    }


@pytest.fixture(scope="module")
def served(paths: dict[str, Path]) -> Iterator[farm.Farm]:
    with farm.Farm({name: str(path) for name, path in paths.items()}, workers=1) as running:
        yield running


@pytest.fixture(params=LANES)
def client(served: farm.Farm, request: pytest.FixtureRequest) -> Iterator[farm.Client]:
    with served.client(lane=request.param) as made:
        made.wait_ready(20)
        assert made.lane == request.param
        yield made


def rows(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 64), np.float32)


def assert_same_batch(session: ort.InferenceSession, asked: list[np.ndarray], replies: list[Any]) -> None:
    """Put each run together again as it was, and run it here: every bit must agree."""
    name = session.get_inputs()[0].name
    output = session.get_outputs()[0].name
    runs: dict[int, list[tuple[int, int]]] = {}
    for index, reply in enumerate(replies):
        runs.setdefault(reply.batch.run, []).append((reply.batch.row, index))
    for members in runs.values():
        members.sort()
        batch = np.concatenate([asked[index] for _, index in members])
        assert len(batch) == replies[members[0][1]].batch.rows, "a run had members that nobody here asked for"
        expected = session.run(None, {name: batch})[0]
        for row, index in members:
            mine = expected[row : row + len(asked[index])]
            np.testing.assert_array_equal(replies[index].outputs[output], mine)


def test_infer_answers_bit_for_bit(client, paths):
    session, asked = session_of(paths["mlp"]), [rows(n, n) for n in (1, 1, 3, 8)]
    assert_same_batch(session, asked, [client.infer("mlp", x, deadline_ms=DEADLINE_MS) for x in asked])


def test_infer_many_and_submit_answer_bit_for_bit_on_the_batches_they_ran_in(client, paths):
    session, asked = session_of(paths["mlp"]), [rows(1 + n % 3, n) for n in range(60)]
    many = client.infer_many("mlp", asked, deadline_ms=DEADLINE_MS)
    assert_same_batch(session, asked, many)
    assert max(reply.batch.rows for reply in many) > 3, "nothing ran together, so nothing was shown"
    tickets = [client.submit("mlp", x, deadline_ms=DEADLINE_MS, flush=False) for x in asked]
    done: list[Any] = []
    while len(done) < len(tickets):
        done += client.completions(10)
    assert {ticket.request_id for ticket in done} == {ticket.request_id for ticket in tickets}
    assert_same_batch(session, asked, [ticket.result() for ticket in tickets])


def test_a_lease_answers_bit_for_bit_and_copies_nothing(client, served, paths):
    session, x = session_of(paths["mlp"]), rows(1)
    before = served.status()["router"]["counters"]
    with client.lease("mlp", {"x": (x.shape, x.dtype)}) as lease:
        lease.inputs["x"][...] = x
        reply = lease.infer(deadline_ms=DEADLINE_MS)
        assert not lease.inputs["x"].flags.writeable
        assert_same_batch(session, [x], [reply])
        assert not next(iter(reply.outputs.values())).flags.owndata
    after = served.status()["router"]["counters"]
    assert after["inputs_in_place"] == before["inputs_in_place"] + 1
    assert after["outputs_in_place"] == before["outputs_in_place"] + 1
    assert after["input_copies"] == before["input_copies"]
    assert after["output_copies"] == before["output_copies"]


def test_views_of_a_lease_hold_its_slots_and_the_last_one_gives_them_back(served):
    with served.client(slot_count=1) as narrow:
        narrow.wait_ready(20)
        x = rows(1)
        with narrow.lease("mlp", {"x": (x.shape, x.dtype)}) as lease:
            lease.inputs["x"][...] = x
            view = next(iter(lease.infer(deadline_ms=DEADLINE_MS).outputs.values()))[:1]
        del lease
        with pytest.raises(farm.NoFreeSlot):
            narrow.infer("mlp", x, deadline_ms=50)
        del view
        gc.collect()
        assert narrow.infer("mlp", x, deadline_ms=DEADLINE_MS).source == "model"


@pytest.mark.parametrize("lane", LANES)
async def test_async_answers_bit_for_bit_and_a_cancelled_await_gives_its_slot_back(served, paths, lane):
    session, asked = session_of(paths["mlp"]), [rows(1, n) for n in range(40)]
    async with served.async_client(lane=lane, slot_count=40) as client:
        await client.wait_ready(20)
        replies = await asyncio.gather(*(client.infer("mlp", x, deadline_ms=DEADLINE_MS) for x in asked))
        assert_same_batch(session, asked, list(replies))
        slow = np.zeros((64, 128), np.float32)
        tasks = [asyncio.ensure_future(client.infer("slow", slow, deadline_ms=DEADLINE_MS)) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=True))
        # All forty slots are to be had again: that many requests at once are answered.
        replies = await asyncio.gather(*(client.infer("mlp", x, deadline_ms=DEADLINE_MS) for x in asked))
        assert_same_batch(session, asked, list(replies))


def test_the_sessions_input_lies_in_the_memory_file_at_the_slots_offset(served):
    with served.client(slot_count=4) as client:
        client.wait_ready(20)
        client.infer("mlp", rows(1), deadline_ms=DEADLINE_MS)
        workers = {w["worker"]: w for w in served.status()["router"]["workers"] if w["model"] == "mlp"}
        (worker,) = workers
        facts = control.ask(served.endpoint, InspectWanted(worker))
        run = facts["last_run"]
        ((session, slot, _, _),) = run["members"]
        (address,) = run["input_addresses"]
        arena = next(a for a in facts["arenas"] if a["session"] == session)
        assert address == arena["in_address"] + slot * 16384
        maps = Path(f"/proc/{workers[worker]['pid']}/maps").read_text().splitlines()
        (line,) = [m for m in maps if (r := m.split()[0].split("-")) and int(r[0], 16) <= address < int(r[1], 16)]
        assert "memfd:shmfarm-in" in line
        assert line.split()[1].startswith("r--"), "the farm maps what clients write for reading only"


def test_outputs_larger_than_the_room_come_right_and_are_counted(client, served, paths):
    """In its slot, inside the reply, and in a memory file of its own: 4 kB, 20 kB and 4 MB."""
    before = served.status()["router"]["counters"]["overflows"]
    for count in (1000, 5000, 1_000_000):
        reply = client.infer("grown", np.array([count], np.int64), deadline_ms=DEADLINE_MS)
        np.testing.assert_array_equal(reply.outputs["y"], np.ones(count, np.float32))
    assert served.status()["router"]["counters"]["overflows"] == before + 1


def test_large_outputs_are_written_in_place(client, served):
    before = served.status()["router"]["counters"]
    reply = client.infer("big", np.full((8, 1), 3, np.float32), deadline_ms=DEADLINE_MS)
    np.testing.assert_array_equal(reply.outputs["y"], np.full((8, 4096), 3, np.float32))
    after = served.status()["router"]["counters"]
    assert after["outputs_in_place"] == before["outputs_in_place"] + 1
    assert after["output_copies"] == before["output_copies"]


def test_forty_threads_share_one_client_and_each_gets_its_own_answer(client, paths):
    session = session_of(paths["mlp"])
    wrong: list[str] = []

    def caller(number: int) -> None:
        for turn in range(15):
            x = rows(1, 1000 * number + turn)
            reply = client.infer("mlp", x, deadline_ms=DEADLINE_MS)
            expected = session.run(None, {"x": x})[0]
            if not np.allclose(next(iter(reply.outputs.values())), expected, rtol=1e-5, atol=1e-6):
                wrong.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a call never came back"
    assert not wrong


def in_child(client: farm.Client, results: Any) -> None:
    """Runs in a forked child of a process that uses `client`."""
    x = rows(1, os.getpid())
    replies = [client.infer("mlp", x, deadline_ms=DEADLINE_MS) for _ in range(20)]
    results.put((os.getpid(), [next(iter(r.outputs.values())).tolist() for r in replies]))
    client.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_children_attach_anew_and_share_nothing_with_their_parent(client, served, paths):
    session = session_of(paths["mlp"])
    x = rows(1)
    client.infer("mlp", x, deadline_ms=DEADLINE_MS)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=in_child, args=(client, results)) for _ in range(3)]
    for child in children:
        child.start()
    mine = [client.infer("mlp", x, deadline_ms=DEADLINE_MS) for _ in range(50)]
    told = dict(results.get() for _ in children)
    for child in children:
        child.join(20)
        assert child.exitcode == 0
        child.close()
    expected = session.run(None, {"x": x})[0]
    assert all(np.allclose(next(iter(reply.outputs.values())), expected, rtol=1e-5) for reply in mine)
    for pid, answers in told.items():
        expected = session.run(None, {"x": rows(1, pid)})[0]
        assert all(np.allclose(answer, expected, rtol=1e-5) for answer in answers)
    end = time.monotonic() + 10
    while len(served.status()["router"]["sessions"]) > 1:
        assert time.monotonic() < end, "a child's session outlived it"
        time.sleep(0.01)
