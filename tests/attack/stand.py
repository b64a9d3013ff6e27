"""A farm to be attacked, with honest services that never stop asking it, and what one attack did to it."""

from __future__ import annotations

import contextlib
import grp
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

import farm
from shm.client import Cancel, Request, Submit
from shm.endings import Reason
from shm.errors import PeerGone
from tests import models
from tests.crowd import Service, answers, write_script
from tests.farmprocess import wait_until
from tests.killing import LATE_MS, LONG_MS, QUICK, whole
from tests.routerharness import RawClient

LANES = ("direct", "zeromq")
WIDE = 512
UNIQUE = 4096
TOP = 600
"""k of TopK: above 500 ONNX Runtime takes another algorithm, which trusts its input to keep still."""

ROUTER_GROWTH_KIB_MAX = 160 * 1024
"""What the router may take more than before for one client that does not read: 1,000 frames of 128 KiB, and change."""

REFUSALS = {"Overloaded/no_worker", "Overloaded/predicted_late", "DeadlineExceeded/timeout", "RunFailed/worker_died"}
"""How an honest call may end, beside its model's answer, where the workers that it asks are being killed."""


def wide_gather(path: Path) -> Path:
    """x int64[N, 512], indexes below 10, to y float32[N, 512]."""
    table = np.arange(10, dtype=np.float32)
    node = models.node("Gather", ["table", "x"], ["y"])
    return models.save(path, [node], [("x", "int64", ("N", WIDE))], [("y", "float32", ("N", WIDE))], {"table": table})


def wide_top(path: Path) -> Path:
    """x float32[N, 4096] to y, its 600 largest."""
    node = models.node("TopK", ["x", "k"], ["y", "where"], axis=1)
    return models.save(
        path,
        [node],
        [("x", "float32", ("N", UNIQUE))],
        [("y", "float32", ("N", TOP)), ("where", "int64", ("N", TOP))],
        {"k": np.array([TOP], np.int64)},
    )


def wide_unique(path: Path) -> Path:
    """x float32[1, 4096] to y float32[M], its values without repetition."""
    graph = helper.make_graph(
        [models.node("Unique", ["x"], ["y"], sorted=1)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, UNIQUE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("M",))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def honest_rows(name: str) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(5)
    if name == "gather":
        return rng.integers(0, 10, (24, 1, WIDE), dtype=np.int64)
    return np.stack([rng.permutation(UNIQUE).astype(np.float32)[None] for _ in range(24)])


MAKERS: dict[str, Callable[[Path], Path]] = {"gather": wide_gather, "topk": wide_top, "unique": wide_unique}


class Told(NamedTuple):
    """What one lie got. `moved`: counters of the router that are not what they were."""

    lie: str
    lane: str
    got: dict[str, int]
    moved: dict[str, int]
    seconds: float
    router_kib: int
    deaths: int


class Liar(RawClient):
    """A client whose frames are made by hand, each for this farm's epoch; it counts what it gets."""

    def __init__(self, stand: Stand, lane: str, **options: Any) -> None:
        super().__init__(stand.running.endpoint, lane=lane, **options)
        self.number = 0
        self.index = {model.name: model.index for model in self.models.values()}

    def ask(self, **fields: Any) -> Request:
        """A request that is right but for what `fields` say."""
        self.number += 1
        deadline_ns = time.monotonic_ns() + 5_000_000_000
        honest = {"id": self.number, "model": self.index["chain"], "deadline_ns": deadline_ns, "slot": 0}
        return Request(**{**honest, "slot_count": 1, "rows": 1} | fields)

    def tell(self, *requests: Request) -> None:
        self.send(Submit(self.attached.epoch, list(requests)))

    def ends(self, count: int, limit_s: float = 20.0) -> Counter[str]:
        """The reasons of so many replies, and of frames that were rejected; each takes part once."""
        end = time.monotonic() + limit_s
        while len(self.replies) + len(self.rejected) < count:
            assert self.pump(max(0.0, end - time.monotonic())), f"{self.replies}, {self.rejected} of {count}"
        return self.taken()

    def taken(self) -> Counter[str]:
        got = Counter(Reason(reply.reason).code for reply in self.replies.values())
        got.update("rejected:" + Reason(rejected.reason).code for rejected in self.rejected)
        self.replies.clear()
        self.rejected.clear()
        return got

    def cut_off(self, limit_s: float = 30.0) -> bool:
        """Read until the router has ended this session."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                if not self.take_welcome(0.05):
                    self.replies.clear()
                    self.rejected.clear()
            except PeerGone:
                return True
        return False

    def cancel(self, *ids: int) -> None:
        self.send(Cancel(list(ids)))


class Stand:
    """A running farm under honest load. `attacked`: models that an honest service asks too while they are attacked."""

    def __init__(self, running: farm.Farm, services: Sequence[tuple[str, Service]], isolation: str) -> None:
        self.running = running
        self.services = services
        self.isolation = isolation
        self.told: list[Told] = []
        self.refusals: set[str] = set()
        """How an honest call of the model `chain` may end beside its answer."""

    def status(self) -> dict[str, Any]:
        return self.running.status()

    def pids(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for row in self.status()["processes"]:
            found.setdefault(row["role"], set()).add(row["pid"])
        return found

    def router_peak_kib(self, *, reset: bool = False) -> int:
        """The most that the router has had resident since this was reset."""
        pid = next(row["pid"] for row in self.status()["processes"] if row["role"] == "router")
        if reset:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def counters(self) -> dict[str, int]:
        return dict(self.status()["router"]["counters"])

    @contextlib.contextmanager
    def client(self, lane: str, **options: Any) -> Iterator[Liar]:
        liar = Liar(self, lane, **options)
        try:
            yield liar
        finally:
            liar.close()

    def judge(self, lie: str, lane: str, tell: Callable[[Stand, str], Counter[str]], *, may_die: bool = False) -> Told:
        """Tell one lie; everything that it must not have done is looked at afterwards."""
        pids, before, kib = self.pids(), self.counters(), self.router_peak_kib(reset=True)
        began = time.monotonic()
        got = tell(self, lane)
        took = time.monotonic() - began
        if may_die:
            wait_until(lambda: whole(self.running), "the dead were replaced", 60)
        after, now = self.counters(), self.pids()
        for role in pids if not may_die else pids.keys() - {"worker"}:
            assert now[role] == pids[role], f"{lie}: {role} was {pids[role]}, is {now[role]}"
        moved = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        grown = self.router_peak_kib() - kib
        assert grown <= ROUTER_GROWTH_KIB_MAX, f"{lie}: the router has grown by {grown} KiB"
        told = Told(lie, lane, dict(got), moved, took, grown, moved.get("workers_lost", 0))
        self.told.append(told)
        self.look()
        return told

    def look(self) -> None:
        """Every honest service goes on, and each of its calls has ended rightly and in time."""
        for name, service in self.services:
            had = answers(service.told())
            wait_until(lambda s=service, had=had: answers(s.told()) > had, f"{name} is answered", 60)
            judge_service(name, service.told(), self.refusals)


def judge_service(name: str, told: dict[str, Any], refusals: set[str]) -> None:
    assert not told["failed"] and not told["wrong"], (name, told)
    for end, count in told["ends"].items():
        how = end.split(" ")[1]
        fits = refusals if name == "chain" else REFUSALS
        assert how == "model/ok" or how in fits, f"{name}: {count} calls ended {how}: {told}"
    assert told["late_ms_max"] < LATE_MS, (name, told)


@contextlib.contextmanager
def stand(folder: Path, isolation: str = "same-uid", attacked: Sequence[str] = (), **options: Any) -> Iterator[Stand]:
    """A farm with the models `chain` (asked by honest services of both lanes), `shout` (strings), and each that is
    attacked, which an honest service asks as well."""
    group = {"isolation": "group", "service_group": grp.getgrgid(os.getegid()).gr_name}
    served: dict[str, Any] = {"chain": {"path": models.slow(folder / "chain.onnx", nodes=20, size=64)}}
    served["shout"] = {"path": models.strings(folder / "shout.onnx"), "workers": 1}
    scripts = {}
    for name in attacked:
        path = MAKERS[name](folder / f"{name}.onnx")
        served[name] = {"path": path, "workers": 2}
        (folder / name).mkdir()
        scripts[name] = write_script(folder / name, path, [LONG_MS], rows=honest_rows(name))
    scripts["chain"] = write_script(folder, folder / "chain.onnx", [LONG_MS])
    for model in served.values():
        model.setdefault("workers", 1)
    chosen = group if isolation == "group" else {}
    with farm.Farm(served, **QUICK, **chosen, **options) as running, contextlib.ExitStack() as stack:
        wait_until(lambda: whole(running), "it is whole", 60)
        crowd = [("chain", "direct", "threads"), ("chain", "zeromq", "submit")]
        crowd += [(name, "direct", "submit") for name in attacked]
        services = [
            (name, stack.enter_context(Service(running.endpoint, lane, way, scripts[name])))
            for name, lane, way in crowd
        ]
        for _, service in services:
            wait_until(lambda service=service: answers(service.told()) > 5, "it has had answers", 60)
        attackable = Stand(running, services, isolation)
        yield attackable
        for name, service in services:
            told = service.finish()
            judge_service(name, told, attackable.refusals)
            assert told["open"] == 0
            print(f"  honest service of {name}: {told['asked']} calls ended {told['ends']}, {told['exact']} of them ")
            print(
                f"  were compared bit for bit, none later than {told['late_ms_max']:.0f} ms after its deadline",
                flush=True,
            )
