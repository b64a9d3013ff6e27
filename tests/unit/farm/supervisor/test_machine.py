"""The supervisor's decisions, event by event, and then at random."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm import exits
from farm.cpus import CpuPool
from farm.supervisor import events as ev
from farm.supervisor.machine import Machine
from farm.supervisor.seats import ModelPlan, Phase, Plan, SeatState

MS = 1_000_000
S = 1000 * MS
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)


class World:
    """A machine with its clock; keeps what it ordered, and what lives because of that."""

    def __init__(self, workers=(2,), cpus=8):
        models = tuple(ModelPlan(f"m{n}", 1, f"/m{n}.onnx", count, 1, 1000.0) for n, count in enumerate(workers))
        plan = Plan(models, 60 * S, 2 * S, 5 * S, 2 * S, S // 10, 30 * S, 60 * S)
        self.now = 1000 * S
        self.router = False
        self.prepared = 0
        self.workers: dict[int, int] = {}
        self.introduced: dict[int, int] = {}
        self.ends: list[ev.End] = []
        self.machine = Machine(plan, CpuPool(range(cpus), None, [1] * sum(workers), pin=True), epoch=5)
        self.last = self._follow(self.machine.start(self.now))

    def do(self, event, after=0):
        self.now += after
        self.last = self._follow(self.machine.handle(event, self.now))
        return self.last

    def passes(self, duration):
        """Time passes; the machine is woken whenever it asked to be."""
        end = self.now + duration
        orders = []
        for _ in range(10_000):
            due = self.machine.due_ns()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            orders += self.do(ev.TimePassed())
        else:
            raise AssertionError("the machine asks to be woken again and again")
        self.now = end
        return orders

    def beats(self, duration):
        """Time passes with a router that beats."""
        orders = []
        for _ in range(duration // (250 * MS)):
            self.do(ev.BeatCame())
            orders += self.passes(250 * MS)
        return orders

    def up(self):
        self.do(ev.RouterListened(self.machine.router.epoch))
        for worker in list(self.workers):
            self.do(ev.WorkerReported(worker))
        return self

    def router_dies(self, how="signal SIGKILL", status=-9):
        self.router = False
        return self.do(ev.RouterDied(status, how))

    def worker_dies(self, worker, how="signal SIGSEGV"):
        del self.workers[worker]
        return self.do(ev.WorkerDied(worker, how))

    def dies_as_told(self, orders):
        """Whoever was sent a signal ends by it."""
        for order in orders:
            if isinstance(order, ev.SignalWorker) and order.worker in self.workers:
                self.worker_dies(order.worker)
            elif isinstance(order, ev.SignalRouter) and self.router:
                self.router_dies()

    def _follow(self, orders):
        for order in orders:
            match order:
                case ev.PrepareRouter(epoch):
                    assert epoch > self.prepared
                    assert not self.router
                    self.prepared = epoch
                case ev.SpawnRouter(epoch):
                    assert not self.router
                    assert epoch == self.prepared
                    self.router = True
                case ev.SpawnWorker(worker, model, _, epoch):
                    assert worker not in self.introduced, "a worker's number was used twice"
                    assert epoch == self.prepared
                    self.workers[worker] = model
                    self.introduced[worker] = epoch
                case ev.IntroduceWorker(worker, _, _, epoch):
                    assert worker in self.workers
                    assert epoch == self.prepared > self.introduced[worker]
                    self.introduced[worker] = epoch
                case ev.SignalRouter():
                    assert self.router
                case ev.SignalWorker(worker, _) | ev.RetireWorker(worker):
                    assert worker in self.workers
                case ev.End():
                    self.ends.append(order)
        self.check_invariants()
        return orders

    def check_invariants(self):
        machine = self.machine
        assert machine.router.alive == self.router or machine.phase is Phase.ENDED
        filled = {seat.worker for seat in machine.staff.seats if seat.worker is not None}
        assert filled == set(self.workers) or machine.phase is Phase.ENDED
        for seat in machine.staff.seats:
            assert seat.alive == (seat.state is not SeatState.EMPTY)
        pinned = [cpu for seat in machine.staff.seats for cpu in seat.cpus]
        assert len(pinned) == len(set(pinned)), "two workers hold a CPU"
        assert len(self.ends) <= 1


def kinds(orders, *wanted):
    return [order for order in orders if isinstance(order, wanted)]


def test_everything_is_spawned_at_once_and_models_take_turns():
    world = World(workers=(2, 1))
    spawned = kinds(world.last, ev.PrepareRouter, ev.SpawnRouter, ev.SpawnWorker)
    assert [type(order).__name__ for order in spawned[:2]] == ["PrepareRouter", "SpawnRouter"]
    assert [order.model for order in spawned[2:]] == [0, 1, 0]
    assert [order.cpus for order in spawned[2:]] == [(1,), (2,), (3,)]


def test_ready_is_announced_once_when_every_worker_has_reported():
    world = World()
    assert not kinds(world.do(ev.RouterListened(5)), ev.AnnounceReady)
    assert not kinds(world.do(ev.WorkerReported(0)), ev.AnnounceReady)
    assert world.machine.state == "starting"
    assert kinds(world.do(ev.WorkerReported(1)), ev.AnnounceReady)
    assert world.machine.state == "ready"
    world.worker_dies(0)
    assert world.machine.state == "degraded"
    assert not kinds(world.do(ev.WorkerReported(2)), ev.AnnounceReady)
    assert world.machine.ready


def test_listening_of_another_epoch_is_not_believed():
    world = World()
    world.do(ev.RouterListened(4))
    assert world.machine.router.listening_ns is None


def test_a_dead_worker_is_replaced_at_once_and_the_second_time_later():
    world = World().up()
    assert kinds(world.worker_dies(0), ev.SpawnWorker)[0].worker == 2
    assert not kinds(world.worker_dies(2), ev.SpawnWorker)
    assert not kinds(world.beats(0), ev.SpawnWorker)
    world.do(ev.BeatCame())
    assert kinds(world.passes(101 * MS), ev.SpawnWorker)[0].worker == 3


def test_a_replaced_worker_keeps_its_seats_cpus():
    world = World().up()
    spawned = kinds(world.worker_dies(1), ev.SpawnWorker)
    assert spawned[0].cpus == (2,)


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason():
    world = World()
    world.do(ev.LoadRefused(0, "/m0.onnx: [ONNXRuntimeError] : 7 : INVALID_PROTOBUF"))
    assert world.ends == [
        ev.End(exits.GAVE_UP, "model m0 cannot be served from /m0.onnx: [ONNXRuntimeError] : 7 : INVALID_PROTOBUF")
    ]


def test_a_model_that_was_ready_once_is_tried_again_for_ever():
    world = World().up()
    for _ in range(10):
        for worker in list(world.workers):
            world.do(ev.LoadRefused(worker, "gone"))
            world.worker_dies(worker, "exit status 3")
        world.beats(31 * S)
        assert len(world.workers) == 2
    assert not world.ends
    assert world.machine.state == "degraded"


def test_a_model_scaled_up_from_nothing_does_not_end_a_farm_that_serves():
    world = World(workers=(1, 0)).up()
    world.do(ev.ScaleAsked("m1", 1))
    world.do(ev.LoadRefused(1, "gone"))
    for _ in range(5):
        world.worker_dies(max(world.workers))
        world.beats(2 * S)
    assert not world.ends


def test_workers_that_die_before_any_was_ready_end_the_start():
    world = World()
    world.worker_dies(0)
    world.worker_dies(1)
    assert not world.ends
    world.worker_dies(2, "signal SIGILL")
    assert world.ends[0].code == exits.GAVE_UP
    assert (
        "model m0 (/m0.onnx): 3 workers died before one was ready, the last by signal SIGILL" in world.ends[0].message
    )


def test_a_worker_that_never_reports_ends_the_start():
    world = World()
    world.do(ev.RouterListened(5))
    world.beats(61 * S)
    assert "no worker became ready within 60 s" in world.ends[0].message


def test_a_silent_replacement_is_killed_and_replaced():
    world = World().up()
    world.worker_dies(0)
    orders = world.beats(61 * S)
    assert kinds(orders, ev.SignalWorker) == [ev.SignalWorker(2, KILL)]
    world.worker_dies(2)
    world.beats(S)
    assert set(world.workers) == {1, 3}
    assert not world.ends


def test_the_next_router_is_introduced_to_every_living_worker_with_a_higher_epoch():
    world = World().up()
    orders = kinds(world.router_dies(), ev.PrepareRouter, ev.IntroduceWorker, ev.SpawnRouter)
    assert [type(order).__name__ for order in orders] == [
        "PrepareRouter", "IntroduceWorker", "IntroduceWorker", "SpawnRouter"
    ]  # fmt: skip
    assert len({order.epoch for order in orders}) == 1
    assert orders[0].epoch > 5
    assert not world.machine.ready
    world.up()
    assert world.machine.ready
    assert set(world.workers) == {0, 1}


def test_epochs_lie_below_those_of_a_farm_that_starts_later():
    world = World().up()
    for _ in range(20):
        world.router_dies()
        world.passes(31 * S)
        world.up()
    assert world.machine.router.epoch <= world.now // MS


def test_a_worker_that_does_not_report_to_the_next_router_is_killed():
    world = World().up()
    world.router_dies()
    world.do(ev.RouterListened(world.machine.router.epoch))
    world.do(ev.WorkerReported(0))
    assert kinds(world.beats(7 * S), ev.SignalWorker) == [ev.SignalWorker(1, KILL)]


def test_a_warm_worker_waits_for_a_router_that_is_slow_to_come():
    world = World().up()
    for _ in range(8):
        world.router_dies()
        world.passes(20 * S)
    assert not kinds(world.last, ev.SignalWorker)
    assert len(world.workers) == 2


def test_a_router_without_a_beat_is_killed_once_and_replaced():
    world = World().up()
    orders = world.passes(10 * S)
    assert kinds(orders, ev.SignalRouter) == [ev.SignalRouter(KILL)]
    assert kinds(world.router_dies(), ev.SpawnRouter)


def test_a_router_that_beats_is_left_alone():
    assert not kinds(World().up().beats(60 * S), ev.SignalRouter)


def test_a_router_gets_longer_to_start_than_between_beats():
    world = World()
    assert not kinds(world.passes(50 * S), ev.SignalRouter)
    assert kinds(world.passes(11 * S), ev.SignalRouter) or world.ends


def test_a_host_that_stood_still_is_no_hung_router():
    world = World().up()
    world.now += 60 * S
    assert not kinds(world.do(ev.TimePassed()), ev.SignalRouter)
    assert kinds(world.passes(3 * S), ev.SignalRouter)


def test_a_router_that_dies_before_it_ever_listens_ends_the_start():
    world = World()
    for _ in range(3):
        world.router_dies("exit status 1", 1)
        world.passes(S)
    assert world.ends[0].code == exits.GAVE_UP


def test_a_router_that_refuses_its_configuration_ends_the_start_at_once():
    world = World()
    world.router_dies("exit status 2", exits.USAGE)
    assert world.ends[0].code == exits.GAVE_UP


def test_stop_drains_then_retires_workers_then_ends_the_router():
    world = World().up()
    assert kinds(world.do(ev.StopAsked(False, "SIGTERM")), ev.StartDrain) == [ev.StartDrain(5000)]
    assert world.machine.state == "stopping"
    assert kinds(world.do(ev.DrainEnded(0)), ev.RetireWorker) == [ev.RetireWorker(0), ev.RetireWorker(1)]
    assert not kinds(world.worker_dies(0, "exit status 0"), ev.SignalRouter, ev.SpawnWorker)
    assert kinds(world.worker_dies(1, "exit status 0"), ev.SignalRouter) == [ev.SignalRouter(TERM)]
    world.router_dies("exit status 0", 0)
    assert world.ends == [ev.End(exits.OK)]


def test_nobody_answers_a_stop_and_it_ends_all_the_same():
    world = World().up()
    started = world.now
    world.do(ev.StopAsked(False, "SIGTERM"))
    orders = world.passes(60 * S)
    # Nobody dies: drain, workers' own end, SIGTERM, SIGKILL.
    assert kinds(orders, ev.SignalWorker) == [
        ev.SignalWorker(0, TERM), ev.SignalWorker(1, TERM), ev.SignalWorker(0, KILL), ev.SignalWorker(1, KILL)
    ]  # fmt: skip
    world.dies_as_told(orders)
    orders = world.last + world.passes(5 * S)
    assert kinds(orders, ev.SignalRouter) == [ev.SignalRouter(TERM), ev.SignalRouter(KILL)]
    world.router_dies()
    assert world.ends == [ev.End(exits.OK)]
    assert world.now - started < 70 * S


def test_a_second_stop_kills():
    world = World().up()
    world.do(ev.StopAsked(False, "SIGINT"))
    orders = world.do(ev.StopAsked(False, "SIGINT"))
    assert {order.signum for order in kinds(orders, ev.SignalWorker, ev.SignalRouter)} >= {KILL}
    world.dies_as_told(orders)
    assert world.ends == [ev.End(exits.OK)]


def test_what_even_sigkill_does_not_end_is_not_waited_for():
    world = World().up()
    world.do(ev.StopAsked(True, "farm stop"))
    world.passes(6 * S)
    assert world.ends == [ev.End(exits.OK)]


def test_a_stop_before_the_router_listens_needs_no_drain():
    world = World()
    orders = world.do(ev.StopAsked(False, "SIGTERM"))
    assert not kinds(orders, ev.StartDrain)
    world.dies_as_told(orders)
    world.dies_as_told(world.last)
    assert world.ends == [ev.End(exits.OK)]


def test_a_router_that_dies_while_the_farm_stops_is_not_replaced():
    world = World().up()
    world.do(ev.StopAsked(False, "SIGTERM"))
    orders = world.router_dies()
    assert not kinds(orders, ev.SpawnRouter)
    world.dies_as_told(orders)
    assert world.ends == [ev.End(exits.OK)]


def test_a_worker_that_dies_while_the_farm_drains_is_not_replaced():
    world = World().up()
    world.do(ev.DrainAsked())
    orders = world.worker_dies(0) + world.beats(60 * S)
    assert not kinds(orders, ev.SpawnWorker)
    world.do(ev.StopAsked(False, "SIGTERM"))
    world.worker_dies(1)
    assert not kinds(world.last, ev.SpawnWorker)


def test_an_operators_drain_stays_up_and_tells_the_next_router_too():
    world = World().up()
    assert kinds(world.do(ev.DrainAsked()), ev.StartDrain)
    assert world.machine.state == "draining"
    assert world.do(ev.DrainAsked()) == []
    world.do(ev.DrainEnded(3))
    assert world.machine.state == "drained"
    world.router_dies()
    assert kinds(world.do(ev.RouterListened(world.machine.router.epoch)), ev.StartDrain)
    with pytest.raises(ev.ScaleRefused, match="this farm is drained"):
        world.do(ev.ScaleAsked("m0", 3))
    assert kinds(world.do(ev.StopAsked(False, "farm stop")), ev.StartDrain) == []


def test_scale_up_spawns_and_scale_down_retires_without_replacement():
    world = World().up()
    assert len(kinds(world.do(ev.ScaleAsked("m0", 4)), ev.SpawnWorker)) == 2
    world.up()
    assert world.machine.wanted(0) == 4
    orders = world.do(ev.ScaleAsked("m0", 1))
    assert kinds(orders, ev.RetireWorker) == [ev.RetireWorker(3), ev.RetireWorker(2), ev.RetireWorker(1)]
    assert world.machine.wanted(0) == 1
    for worker in (1, 2, 3):
        assert not kinds(world.worker_dies(worker, "exit status 0"), ev.SpawnWorker)
    assert set(world.workers) == {0}
    assert world.machine.ready


def test_scale_down_takes_those_that_still_load_first():
    world = World().up()
    world.worker_dies(0)
    orders = world.do(ev.ScaleAsked("m0", 1))
    assert ev.SignalWorker(2, TERM) in orders
    world.worker_dies(2)
    assert set(world.workers) == {1}


def test_a_retired_worker_that_does_not_end_is_ended():
    world = World().up()
    world.do(ev.ScaleAsked("m0", 1))
    assert kinds(world.beats(9 * S), ev.SignalWorker) == [ev.SignalWorker(1, TERM), ev.SignalWorker(1, KILL)]


def test_a_retired_worker_whose_router_dies_is_ended():
    world = World().up()
    world.do(ev.ScaleAsked("m0", 1))
    orders = world.router_dies()
    assert kinds(orders, ev.SignalWorker) == [ev.SignalWorker(1, TERM)]
    assert [order.worker for order in kinds(orders, ev.IntroduceWorker)] == [0]


@pytest.mark.parametrize(("model", "said"), [("nope", "no model 'nope' here; there are: m0"), ("", "no model ''")])
def test_an_unknown_model_is_not_scaled(model, said):
    world = World().up()
    with pytest.raises(ev.ScaleRefused, match=said):
        world.do(ev.ScaleAsked(model, 3))
    assert world.machine.wanted(0) == 2


def test_a_stopping_farm_is_neither_scaled_nor_drained():
    world = World().up()
    world.do(ev.StopAsked(False, "SIGTERM"))
    for event in (ev.ScaleAsked("m0", 3), ev.DrainAsked()):
        with pytest.raises(ev.ScaleRefused, match="stopping"):
            world.do(event)


def test_a_farm_without_workers_is_ready_with_its_router():
    world = World(workers=(0,))
    assert kinds(world.do(ev.RouterListened(5)), ev.AnnounceReady)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.sampled_from([1, 100, 250, 2500, 40_000])),
        st.tuples(st.just("beat"), st.just(0)),
        st.tuples(st.just("listen"), st.just(0)),
        st.tuples(st.just("report"), st.integers(0, 7)),
        st.tuples(st.just("kill"), st.integers(0, 7)),
        st.tuples(st.just("kill_router"), st.just(0)),
        st.tuples(st.just("scale"), st.integers(0, 5)),
        st.tuples(st.just("refuse"), st.integers(0, 7)),
        st.tuples(st.just("drain"), st.just(0)),
        st.tuples(st.just("drained"), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.slow
@given(steps=STEPS, workers=st.tuples(st.integers(0, 3), st.integers(0, 2)))
def test_whatever_happens_a_stop_ends_it(steps, workers):
    world = World(workers=workers, cpus=6)
    for step, value in steps:
        if world.ends:
            break
        living = sorted(world.workers)
        worker = living[value % len(living)] if living else None
        match step:
            case "pass":
                orders = world.passes(value * MS)
                # SIGKILL works; SIGTERM may not.
                world.dies_as_told([order for order in orders if getattr(order, "signum", 0) == KILL])
            case "beat" if world.router:
                world.do(ev.BeatCame())
            case "listen" if world.router:
                world.do(ev.RouterListened(world.machine.router.epoch))
            case "report" if worker is not None and world.machine.router.listening_ns is not None:
                world.do(ev.WorkerReported(worker))
            case "kill" if worker is not None:
                world.worker_dies(worker)
            case "kill_router" if world.router:
                world.router_dies()
            case "scale" | "drain":
                event = ev.DrainAsked() if step == "drain" else ev.ScaleAsked(f"m{value % 2}", value)
                try:
                    world.do(event)
                except ev.ScaleRefused:
                    pass
            case "refuse" if worker is not None:
                world.do(ev.LoadRefused(worker, "no"))
            case "drained" if world.router and world.machine.draining:
                world.do(ev.DrainEnded(0))
    if not world.ends:
        world.do(ev.StopAsked(False, "SIGTERM"))
        for _ in range(20):
            if world.ends:
                break
            orders = world.last + world.passes(10 * S)
            world.dies_as_told([order for order in orders if getattr(order, "signum", 0) == KILL])
    assert len(world.ends) == 1
    assert world.machine.handle(ev.TimePassed(), world.now) == []
