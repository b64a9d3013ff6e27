"""The farm and its clients need no network and try none, and ONNX Runtime in them reports nothing to anyone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import farm

pytestmark = pytest.mark.slow

LIMIT_S = 100.0
WITHOUT_NETWORK = (
    "unshare",
    "--net",
    "--",
    "sh",
    "-c",
    '"$@"; code=$?; cat /proc/net/snmp /proc/net/snmp6 >&2; exit $code',
)
"""A namespace whose one link, lo, is down. What was counted in it comes last on standard error."""

ASK_ON_BOTH_LANES = """\
import numpy as np
import farm

with farm.Farm(workers=1, pin=False) as running:
    for lane in ("direct", "zeromq"):
        with running.client(lane=lane) as client:
            client.wait_ready(timeout=60)
            print(lane, client.infer("wdbc", np.zeros((1, 30), np.float32), deadline_ms=20_000).source)
"""

TRY_A_NETWORK = """\
import socket

for kind, address in ((socket.SOCK_STREAM, ("127.0.0.1", 9)), (socket.SOCK_DGRAM, ("192.0.2.1", 53))):
    with socket.socket(socket.AF_INET, kind) as sock:
        print(sock.connect_ex(address))
"""

THREADS = {"supervisor": {"farm: superviso"}, "router": {"farm: router"}, "worker": {"farm: worker 0", "farm-watch"}}
"""The kernel's names of them, while only the direct lane is asked for."""


def namespace_refused():
    if shutil.which("unshare") is None:
        return "there is no unshare (util-linux) here"
    tried = subprocess.run([*WITHOUT_NETWORK, "-", "true"], capture_output=True, text=True, timeout=30, check=False)
    return f"no network namespace may be made here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module")
def without_network():
    """Runs a command where there is no network; its standard output, and how often something there looked for one."""
    if refused := namespace_refused():
        pytest.skip(refused)

    def run(*command, home):
        environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
        told = subprocess.run(
            [*WITHOUT_NETWORK, "-", *command],
            cwd=home,
            env={**environment, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        names, values = re.findall(r"^Ip: (.*)$", told.stderr, re.MULTILINE)
        counted = dict(zip(names.split(), map(int, values.split()), strict=True))
        six = {name: int(value) for name, value in re.findall(r"^(Ip6\w+)\s+(\d+)$", told.stderr, re.MULTILINE)}
        tried = counted["OutNoRoutes"] + counted["OutRequests"] + six.get("Ip6OutNoRoutes", 0)
        return told.stdout, tried + six.get("Ip6OutRequests", 0)

    return run


def test_what_looks_for_a_network_is_counted_there(without_network, tmp_path):
    told, tried = without_network(sys.executable, "-c", TRY_A_NETWORK, home=tmp_path)
    assert (set(told.split()), tried) == ({"101"}, 2)  # ENETUNREACH, from loopback too


def test_a_farm_and_clients_on_both_lanes_work_without_a_network_and_look_for_none(without_network, tmp_path):
    told, tried = without_network(sys.executable, "-c", ASK_ON_BOTH_LANES, home=tmp_path)
    assert told.split() == ["direct", "model", "zeromq", "model"]
    assert tried == 0
    assert not list(tmp_path.iterdir()), "something wrote into the home directory"


def test_the_demo_works_without_a_network_and_looks_for_none(without_network, farm_command, tmp_path):
    told, tried = without_network(*farm_command, "demo", home=tmp_path)
    assert "Nothing left behind" in told
    assert re.search(r"\d+ of \d+ answers of the model are right", told)
    assert tried == 0
    assert not list(tmp_path.iterdir()), "something wrote into the home directory"


def sockets_by_family(pid):
    """Inode numbers of its sockets: those that the kernel lists as Unix ones, and all others."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    # An internet socket that is neither bound nor connected is in no table; every Unix one is in this.
    unix = {line.split()[6] for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]}
    return found & unix, found - unix


def test_an_internet_socket_would_be_found():
    before = sockets_by_family(os.getpid())[1]
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind):
            assert len(sockets_by_family(os.getpid())[1] - before) == 1
    with socket.socket(socket.AF_UNIX):
        assert sockets_by_family(os.getpid())[1] == before


def test_every_socket_of_a_farm_and_its_clients_is_a_unix_one():
    before = sockets_by_family(os.getpid())[1]
    with farm.Farm(workers=2, pin=False) as running, contextlib.ExitStack() as stack:
        for lane in ("direct", "zeromq"):
            client = stack.enter_context(running.client(lane=lane))
            client.wait_ready(timeout=60)
            client.infer("wdbc", np.zeros((1, 30), np.float32), deadline_ms=20_000)
        rows = running.status()["processes"]
        assert sorted(row["role"] for row in rows) == ["router", "supervisor", "worker", "worker"]
        for row in rows:
            unix, others = sockets_by_family(row["pid"])
            assert unix, row
            assert not others, row
        assert sockets_by_family(os.getpid())[1] == before


def test_onnx_runtime_is_in_workers_only_with_its_telemetry_off_and_no_thread_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with farm.Farm(workers=1, pin=False) as running, running.client(lane="direct") as client:
        client.wait_ready(timeout=60)
        client.infer("wdbc", np.zeros((1, 30), np.float32), deadline_ms=20_000)
        for row in running.status()["processes"]:
            process = Path(f"/proc/{row['pid']}")
            opened = [os.readlink(fd) for fd in process.joinpath("fd").iterdir() if fd.is_symlink()]
            assert not [path for path in opened if path.endswith(".db") or "onnxruntime" in path], row
            assert ("onnxruntime" in process.joinpath("maps").read_text()) == (row["role"] == "worker")
            if row["role"] != "supervisor":
                # Setting the title wipes what a process was started with, but for what it has set anew by then.
                assert b"ORT_DISABLE_TELEMETRY=1" in process.joinpath("environ").read_bytes().split(b"\0")
            names = {task.joinpath("comm").read_text().strip() for task in process.joinpath("task").iterdir()}
            # libzmq's, and what older versions of libuv have the kernel run for io_uring.
            assert {name for name in names if not name.startswith(("ZMQbg/", "iou-"))} == THREADS[row["role"]]
    assert not list(tmp_path.iterdir()), "something wrote into the home directory"
