"""The peers' side of the harness: what they refuse, what their tapes come to, how rows are judged."""

from __future__ import annotations

import http.server
import shutil
import threading

import numpy as np
import pytest

from bench import check, rows, verdicts
from bench.peers import HTTP, PEERS, environments, load
from bench.peers.http import KINDS
from bench.run import Unwatched
from bench.target import Case, Latency, Load, Measured, Model, Stream, TargetFailed

MODEL = Model(name="m", path="m.onnx", input="x", row=(4,), dtype="float32")


def load_of(**more):
    return Load(label="l", streams=(Stream(model="m"),), **{"seconds": 0.1, "warm_s": 0.05} | more)


def latency(p50=1.0, p99=2.0):
    return Latency(count=1, mean=1, p50=p50, p90=1, p95=1, p99=p99, p999=3, max=4)


def run(target="farm", repeat=0, **more):
    figures = {"latency": latency(), "per_second": 10.0, "goodput": 10.0} | more
    return Measured(
        target=target,
        label="1",
        group="g",
        seconds=1,
        asked=10,
        answered=10,
        good=10,
        outcomes={},
        repeat=repeat,
        **figures,
    )


def test_every_http_peer_has_a_kind_and_pinned_requirements():
    assert set(HTTP) == set(KINDS)
    for kind in KINDS.values():
        pinned = (environments.HERE / "requirements" / f"{kind.environment}.txt").read_text().splitlines()
        assert all("==" in line for line in pinned if line and line[0] != "#")


@pytest.mark.parametrize("name", PEERS)
def test_peer_is_made_without_starting_anything(name, tmp_path):
    peer = PEERS[name](str(tmp_path))
    assert peer.name == name and peer.pids() == {}
    peer.stop()


@pytest.mark.parametrize("name", [*HTTP, "zeromq", "ort-n"])
def test_peer_refuses_several_models(name, tmp_path):
    peer = PEERS[name](str(tmp_path))
    assert "one model only" in peer.refuses(Case(models=(MODEL, MODEL)), load_of())
    assert peer.refuses(Case(models=(MODEL,)), load_of()) is None


def test_start_without_an_environment_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setattr(environments.python_of, "__defaults__", (tmp_path,))
    with pytest.raises(TargetFailed, match="prepare"):
        PEERS["mosec"](str(tmp_path)).start(Case(models=(MODEL,)))


def test_tape_gives_latency_from_the_due_moment_and_lateness_from_the_client_alone():
    begin = 1_000_000_000
    # The second waited 4 ms for a connection: the client came to it in time, the server did not.
    tape = np.array(
        [[begin, begin, begin, begin + 1_000_000, 200], [begin, begin, begin + 4_000_000, begin + 5_000_000, 200]]
    )
    measured = load.measured("peer", load_of(rate=20, late_ms_max=1.0), begin, tape, 0.001)
    assert measured.void is None and measured.lateness.max == 0.0
    assert measured.latency.max == 5.0 and measured.uncorrected.max == 1.0


def test_tape_names_what_did_not_answer():
    begin = 1_000_000_000
    tape = np.array(
        [[begin, begin, begin, begin + 1000, status] for status in (200, 503, -1)] + [[begin, begin, 0, 0, 0]]
    )
    measured = load.measured("peer", load_of(rate=40), begin, tape, None)
    assert measured.outcomes == {"model": 1, "HTTP/503": 1, "connection broken": 1, "lost": 1}


@pytest.fixture
def server():
    """Answers any POST with eight bytes; a thread a connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"8 bytes.")

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        serving.daemon_threads = True
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("how", [{"in_flight": 3, "caller": "clients"}, {"rate": 200.0}], ids=["closed", "open"])
def test_load_client_counts_what_a_server_answered(how, server, tmp_path):
    client = load.build(str(tmp_path))
    request = load.http_request("/", {"X": "y"}, b"body")
    measured = load.drive("peer", str(server), request, load_of(seconds=0.3, **how), Unwatched(), client)
    assert set(measured.outcomes) == {"model"} and measured.latency.p50 > 0
    if "rate" in how:
        assert measured.asked == measured.answered == len(load.due_of(load_of(seconds=0.3, warm_s=0, **how)))


def test_ratio_is_the_median_of_the_repeats_own_ratios():
    verdict = verdicts.compare("c", {0: 2.0, 1: 30.0, 2: 4.0}, {0: 1.0, 1: 10.0, 2: 4.0}, least=2.5)
    assert (verdict.ratio, verdict.low, verdict.high) == (2.0, 1.0, 3.0)
    assert verdict.holds is False and verdict.miss == "by 20%"


def test_disturbed_and_void_runs_are_left_out_while_there_are_others():
    runs = verdicts.Runs(
        [run(repeat=0, others_percent=50.0), run(repeat=1, others_percent=1.0), run(repeat=2, void="late")]
    )
    assert [each.repeat for each in runs.of("g", "1", "farm")] == [1]
    with pytest.raises(TargetFailed, match="late"):
        verdicts.Runs([run(void="late")]).of("g", "1", "farm")


def test_every_row_says_not_measured_rather_than_pass_when_nothing_ran():
    for row in rows.ROWS:
        (verdict,) = check.judge(row, [], 1.0).verdicts
        assert verdict.holds is None


def test_status_tells_misses_from_rows_that_were_not_measured_or_were_disturbed():
    def judged(*holds, disturbed=False):
        return check.Judged("r", "a", [verdicts.Verdict(claim="c", holds=each) for each in holds], disturbed)

    disturbed = judged(True, False, disturbed=True)
    assert check.status_of([judged(True, True)]) == 0
    assert check.status_of([judged(True, False, None), disturbed]) == 1
    assert check.status_of([judged(True, None)]) == check.status_of([judged(True), disturbed]) == 2


def test_unknown_row_is_refused_by_name(capsys):
    assert check.main(["--rows", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
