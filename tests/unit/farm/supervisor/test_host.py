"""What the supervisor asks of the kernel, and how it logs."""

from __future__ import annotations

import os
import socket

import pytest

from farm import config as configuration
from farm.errors import ConfigError
from farm.supervisor import status
from farm.supervisor.children import Children
from farm.supervisor.host import notify_systemd, process_costs
from farm.supervisor.log import Log
from farm.supervisor.loop import Loop


def test_costs_of_a_process_are_told():
    costs = process_costs(os.getpid())
    assert 1000 < costs["uss_kib"] <= costs["pss_kib"] <= costs["rss_kib"]
    assert costs["threads"] >= 1
    assert costs["open_fds"] >= 3
    assert costs["cpu_s"] > 0


def test_costs_of_a_process_that_is_gone_are_none():
    assert set(process_costs(2**22 + 1).values()) == {None}


@pytest.mark.parametrize("prefix", ["", "@"])
def test_systemd_is_told_when_it_asked(tmp_path, monkeypatch, prefix):
    address = f"{prefix}{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify_systemd("READY=1")
        assert listener.recv(100) == b"READY=1"
    if not prefix:
        os.unlink(address)


def test_a_systemd_that_does_not_listen_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    notify_systemd("READY=1")


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_log_line_is_an_event_with_fields(pipe):
    Log(pipe[1]).event("worker_died", {"worker": 3, "how": 'signal "X"\nY', "note": ""})
    assert os.read(pipe[0], 4096) == b'farm: worker_died worker=3 how="signal \\"X\\"\\nY" note=""\n'


def test_a_log_that_nobody_reads_drops_lines_and_counts_them(pipe):
    log = Log(pipe[1])
    for _ in range(100):
        log.line("x" * 5000)
    assert log.dropped > 50
    assert len(os.read(pipe[0], 10_000)) % 4096 < 4096


def test_a_quiet_log_has_problems_only(pipe):
    log = Log(pipe[1], quiet=True)
    log.event("worker_ready", {})
    log.event("router_died", {})
    assert os.read(pipe[0], 4096) == b"farm: router_died\n"


def test_the_status_of_a_very_large_farm_is_shortened_and_says_so():
    facts = {
        "state": "ready",
        "processes": [{"title": f"worker {n} " + "x" * 100} for n in range(2000)],
        "router": {"workers": [{"worker": n} for n in range(5000)], "epoch": 1},
    }
    short = status.bounded(facts)
    assert len(str(short)) < 130_000
    assert short["processes_left_out"] + len(short["processes"]) == 2000
    assert short["router"]["epoch"] == 1


def test_a_configuration_too_large_for_a_frame_is_refused_by_its_size():
    when = "x > 1.0 || " * 90 + "x > 2.0"
    rules = {"rules": [{"name": f"rule {n}", "when": when, "answer": {"y": 1.0}} for n in range(200)]}
    config = configuration.for_models({"a": {"path": "/a.onnx", "rules": rules}}, "test")
    with pytest.raises(ConfigError, match=r"test: models and rules together take \d+ characters"):
        Children(config, "/run", Loop(), lambda event: None, lambda number, facts: None, lambda event, fields: None)
