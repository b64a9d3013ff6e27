"""The supervisor with real children: start, replacement, stop, and every death."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from farm import control, embedded, exits
from shm import paths, seqpacket
from shm.control import InspectWanted, StatusWanted, StopWanted, wanted_codec
from shm.errors import PeerGone
from tests.farmprocess import Serving, alive, gone, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def serve(farm_command, tmp_path):
    """Starts farms in the test's own directory."""

    def start(*arguments, **options):
        return Serving(farm_command, tmp_path / "run", *arguments, **options)

    yield start
    # A farm that was killed leaves socket files, which the next one would remove.
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def processes(farm):
    return {row["title"]: row for row in farm.status()["processes"]}


def test_it_says_one_ready_line_and_leaves_nothing_at_sigterm(serve, tmp_path):
    with serve() as farm:
        line = farm.line("farm ready: ")
        assert line == f"farm ready: wdbc v1 (2 workers), attach at {tmp_path / 'run'}"
        rows = processes(farm)
        assert set(rows) == {"supervisor", "router", "worker 0 wdbc v1", "worker 1 wdbc v1"}
        assert all(row["pss_kib"] > 1000 and row["threads"] >= 1 and row["open_fds"] > 3 for row in rows.values())
        assert rows["supervisor"]["threads"] == 1
        assert farm.stop() == exits.OK
        assert gone(row["pid"] for row in rows.values())
        assert not (tmp_path / "run").exists()
        assert sum(line.startswith("farm ready") for line in farm.lines) == 1


def test_the_supervisor_maps_no_arena_and_loads_neither_zmq_nor_numpy(serve):
    with serve() as farm:
        farm.ready()
        maps = Path(f"/proc/{farm.process.pid}/maps").read_text()
        for stranger in ("memfd:", "numpy", "zmq", "onnxruntime", "uvloop"):
            assert stranger not in maps


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_stop_it_too(serve, signum, tmp_path):
    with serve() as farm:
        farm.ready()
        assert farm.stop(signum) == exits.OK
        assert not (tmp_path / "run").exists()


def test_a_second_signal_does_not_wait_for_the_drain(serve):
    with serve() as farm:
        farm.ready()
        # A router that stands still never says that it is drained.
        os.kill(processes(farm)["router"]["pid"], signal.SIGSTOP)
        farm.process.send_signal(signal.SIGTERM)
        farm.line("farm: stopping ")
        started = time.monotonic()
        assert farm.stop() == exits.OK
        assert time.monotonic() - started < 3
        assert gone(farm.pids)


def test_a_router_that_stands_still_does_not_stop_the_stop(serve, tmp_path):
    config = tmp_path / "farm.toml"
    config.write_text(
        "[farm]\ndrain_timeout_ms = 100\nstop_timeout_ms = 100\nbeat_timeout_ms = 60000\n"
        f'[models.wdbc]\npath = "{embedded.MODEL_PATH}"\n'
    )
    with serve("--config", str(config)) as farm:
        farm.ready()
        os.kill(processes(farm)["router"]["pid"], signal.SIGSTOP)
        assert farm.stop() == exits.OK
        assert gone(farm.pids)


def test_sigkill_of_the_supervisor_leaves_no_process_and_nothing_that_stops_the_next_start(serve):
    with serve() as first:
        first.ready()
        first.process.kill()
        wait_until(lambda: gone(first.pids), "its processes have ended")
        with serve() as second:
            second.ready()
            assert second.status()["state"] == "ready"
            assert second.stop() == exits.OK


def test_sigkill_while_it_starts_leaves_no_process(serve):
    with serve() as farm:
        children = Path(f"/proc/{farm.process.pid}/task/{farm.process.pid}/children")
        wait_until(lambda: len(children.read_text().split()) == 3, "it has spawned its children")
        pids = [int(pid) for pid in children.read_text().split()]
        farm.process.kill()
        wait_until(lambda: gone(pids), "they have ended")


def test_a_dead_worker_is_replaced(serve):
    with serve() as farm:
        farm.ready()
        os.kill(processes(farm)["worker 0 wdbc v1"]["pid"], signal.SIGKILL)
        farm.line('farm: worker_died worker=0 model=wdbc how="signal SIGKILL"')
        farm.line("farm: worker_ready worker=2")
        wait_until(lambda: farm.status()["ready"], "it is ready again")
        assert processes(farm)["worker 2 wdbc v1"]["restarts"] == 1


def test_a_dead_router_is_replaced_and_workers_stay_warm(serve):
    with serve() as farm:
        farm.ready()
        before, epoch = processes(farm), farm.status()["epoch"]
        for _ in range(3):
            os.kill(processes(farm)["router"]["pid"], signal.SIGKILL)
            farm.line('farm: router_died how="signal SIGKILL"')
            wait_until(lambda: farm.status()["ready"], "it is ready again")
        after, later = processes(farm), farm.status()["epoch"]
        assert later >= epoch + 3
        for worker in ("worker 0 wdbc v1", "worker 1 wdbc v1"):
            assert after[worker]["pid"] == before[worker]["pid"]


def test_a_router_whose_beat_stops_is_replaced(serve, tmp_path):
    config = tmp_path / "farm.toml"
    config.write_text(f'[farm]\nbeat_timeout_ms = 600\n[models.wdbc]\npath = "{embedded.MODEL_PATH}"\n')
    with serve("--config", str(config)) as farm:
        farm.ready()
        os.kill(processes(farm)["router"]["pid"], signal.SIGSTOP)
        farm.line("farm: router_silent ", limit_s=5)
        wait_until(lambda: farm.status()["ready"], "it is ready again")


def test_a_model_file_that_is_none_ends_the_start_with_onnx_runtimes_reason(serve, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with serve(str(path)) as farm:
        assert farm.ended() == exits.GAVE_UP
        told = [line for line in farm.lines if line.startswith("farm: gave up: ")]
        assert len(told) == 1
        assert told[0].startswith(f"farm: gave up: model bad cannot be served from {path}: ")
        assert "INVALID_PROTOBUF" in told[0]
        assert not (tmp_path / "run").exists()


def test_a_worker_that_says_nothing_ends_the_start_after_its_time(serve, tmp_path):
    config = tmp_path / "farm.toml"
    config.write_text(f'[farm]\nstart_timeout_s = 0.02\n[models.wdbc]\npath = "{embedded.MODEL_PATH}"\n')
    with serve("--config", str(config)) as farm:
        assert farm.ended() == exits.GAVE_UP
        assert any("no worker became ready within 0.0" in line for line in farm.lines), farm.lines


def test_a_second_farm_on_the_same_directory_is_refused_by_name_and_pid(serve):
    with serve() as first:
        first.ready()
        with serve() as second:
            assert second.ended() == exits.HELD
            assert f"(pid {first.process.pid}, serving wdbc v1) already runs in" in second.lines[-1]
        assert first.status()["state"] == "ready"
        assert first.stop() == exits.OK


def test_pdeathsig_follows_the_supervisor_alone(serve):
    """The terminal's Ctrl-C goes to the foreground process group, in which only the supervisor is."""
    with serve() as farm:
        farm.ready()
        for pid in farm.pids - {farm.process.pid}:
            assert os.getpgid(pid) == pid
            os.kill(pid, signal.SIGINT)
        assert farm.status()["restarts"] == 0
        assert all(alive(pid) for pid in farm.pids)


def test_systemd_is_told_when_it_is_ready(serve, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(30)
        with serve(environment={"NOTIFY_SOCKET": address}) as farm:
            assert listener.recv(1000).startswith(b"READY=1")
            farm.ready()
            assert farm.stop() == exits.OK
            assert listener.recv(1000) == b"STOPPING=1"
    os.unlink(address)


def answered(sock):
    """A socket that is closed with something unread says so first, once, and then gives what had been sent."""
    try:
        return seqpacket.receive_within(sock, 5) is not None
    except PeerGone:
        return seqpacket.receive_within(sock, 5) is not None


def test_control_takes_one_command_a_connection_and_survives_nonsense(serve):
    with serve() as farm:
        farm.ready()
        path = paths.control_path(farm.runtime_dir)
        for frame in (b"\xc1", b"x" * 100_000, wanted_codec.encode(StatusWanted()) + b"x", b"\x91\x40"):
            with seqpacket.connect(path) as sock:
                seqpacket.send(sock, frame)
                assert answered(sock)
        with seqpacket.connect(path) as sock:
            for _ in range(2):
                seqpacket.send(sock, wanted_codec.encode(StatusWanted()))
            assert answered(sock)
        assert farm.status()["state"] == "ready"


def test_silent_connections_are_closed_and_do_not_keep_others_out_for_long(serve):
    with serve() as farm:
        farm.ready()
        silent = [seqpacket.connect(paths.control_path(farm.runtime_dir)) for _ in range(16)]
        try:
            told = farm.run("status")
            assert told.returncode == exits.REFUSED
            assert "try again" in told.stderr
            wait_until(lambda: farm.run("status").returncode == exits.OK, "they have been closed", 10)
        finally:
            for sock in silent:
                sock.close()


def test_a_worker_is_inspected_through_supervisor_and_router(serve):
    with serve() as farm:
        farm.ready()
        facts = control.ask(farm.runtime_dir, InspectWanted(1))
        assert facts["pid"] == processes(farm)["worker 1 wdbc v1"]["pid"]


def test_status_comes_without_the_router_when_it_stands_still(serve, tmp_path):
    config = tmp_path / "farm.toml"
    config.write_text(
        "[farm]\ndrain_timeout_ms = 100\nstop_timeout_ms = 100\nbeat_timeout_ms = 20000\n"
        f'[models.wdbc]\npath = "{embedded.MODEL_PATH}"\n'
    )
    with serve("--config", str(config)) as farm:
        farm.ready()
        assert farm.status()["router"]["epoch"] == farm.status()["epoch"]
        os.kill(processes(farm)["router"]["pid"], signal.SIGSTOP)
        assert farm.status()["router"] is None
        assert "router: does not answer" in farm.run("status").stdout


def test_stop_now_by_the_control_socket_ends_it_at_once(serve):
    with serve() as farm:
        farm.ready()
        _, pidfd = control.ask_and_hold(farm.runtime_dir, StopWanted(now=True))
        assert control.wait_gone(pidfd, 5)
        assert farm.ended() == exits.OK
        assert gone(farm.pids)


def test_an_idle_farm_costs_next_to_nothing(serve):
    with serve() as farm:
        farm.ready()

        def spent_s():
            ticks = 0
            for pid in farm.pids:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
            return ticks / os.sysconf("SC_CLK_TCK")

        # schedstat would be finer; ten beats in the 2.5 s are enough to see a loop that spins.
        before, started = spent_s(), time.monotonic()
        wait_until(lambda: time.monotonic() - started > 2.5, "some idle time has passed")
        assert spent_s() - before < 0.1
