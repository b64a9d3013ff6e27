"""How the supervisor drains and stops; and that it does, whatever happened before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm import exits
from farm.supervisor import events as ev
from tests.supervisorworld import KILL, MS, TERM, S, World, kinds


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


def test_a_stopping_farm_is_neither_scaled_nor_drained():
    world = World().up()
    world.do(ev.StopAsked(False, "SIGTERM"))
    for event in (ev.ScaleAsked("m0", 3), ev.DrainAsked()):
        with pytest.raises(ev.ScaleRefused, match="stopping"):
            world.do(event)


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
