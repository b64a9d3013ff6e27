"""The supervisor's decisions while it serves, event by event."""

from __future__ import annotations

import pytest

from farm import exits
from farm.supervisor import events as ev
from tests.supervisorworld import KILL, MS, TERM, S, World, kinds


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


def test_a_farm_without_workers_is_ready_with_its_router():
    world = World(workers=(0,))
    assert kinds(world.do(ev.RouterListened(5)), ev.AnnounceReady)
