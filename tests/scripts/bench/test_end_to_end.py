"""The whole generator against a small server that goes wrong in every way a stream can, and against the floor."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from scripts.bench import processes, report
from scripts.bench.__main__ import main
from scripts.bench.load import Plan, run_load
from scripts.bench.probe import STANDARD_HEAD, ProbeError, hand_over, learn
from scripts.bench.reading import AFTER_END, OUTCOMES
from scripts.bench.scanning import NUMBER_FIRST
from scripts.bench.tables import render

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

HANDOFF = b'{"prompt":"stream {number}"}'
BODY = b'data: {"content":"you are {number}"}\n\ndata: {"content":"\xc3\xa9"}\n\ndata: [DONE]\n\n'
EXPECTED = STANDARD_HEAD + BODY
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\nno"

# What the server does to stream i; streams past the end of the table are answered well.
FAULTS: dict[int, tuple[str, bytes]] = {
    1: ("wrong_bytes", EXPECTED.replace(b"\xa9", b"\xa8")),
    2: ("wrong_bytes", EXPECTED.replace(b"{number}", b"10000099")),  # another stream's content
    3: ("wrong_bytes", EXPECTED.replace(b"no-cache", b"no-store")),
    4: ("truncated", EXPECTED[:-20]),
    5: ("no_done", EXPECTED.removesuffix(b"data: [DONE]\n\n")),
    6: ("after_done", EXPECTED + b"x"),
    7: ("wrong_count", EXPECTED.replace(b"data: [", b"data: one too many\n\ndata: [")),
    8: ("wrong_count", STANDARD_HEAD + b"data: [DONE]\n\n"),
    9: ("empty", b""),
    10: ("head_truncated", EXPECTED[:30]),
    11: ("refused", REFUSAL),
    12: ("error_event", STANDARD_HEAD + b'data: {"content":"a"}\n\nevent: error\ndata: {}\n\n'),
    13: ("complete", EXPECTED.replace(b"data: [", b": keep-alive\n\ndata: [")),
}
RESET_STREAM, STALLED_STREAM = 14, 15


class Server:
    """Takes handoffs one after another and answers each at once, as the table says."""

    def __init__(self, path: str, socket_type: socket.SocketKind) -> None:
        self.path = path
        self._held: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket_type)
        self._listener.bind(path)
        self._listener.listen(1024)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                time.sleep(0.01)  # a test has taken the descriptors away for a moment
                continue
            with peer:
                data, descriptors, _, _ = socket.recv_fds(peer, 65_536, 4)
            if data == b"stop":
                return
            for descriptor in descriptors:
                self._answer(data, socket.socket(fileno=descriptor))

    def _answer(self, data: bytes, client: socket.socket) -> None:
        number = int(re.findall(rb"\d{8}", data)[0])
        index = number - NUMBER_FIRST
        _, response = FAULTS.get(index, ("complete", EXPECTED))
        response = render(response, number)
        client.setblocking(True)
        if index == RESET_STREAM:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        half = len(response) // 2
        client.sendall(response[:half])
        client.sendall(response[half:])
        if index == STALLED_STREAM:
            self._held.append(client)
        else:
            client.close()

    def stop(self) -> None:
        """End the thread and close everything."""
        with socket.socket(socket.AF_UNIX, self._listener.type) as peer:
            peer.connect(self.path)
            peer.send(b"stop")
        self._thread.join(5)
        for held in (*self._held, self._listener):
            held.close()


@contextlib.contextmanager
def serving(path: Path, socket_type: socket.SocketKind = socket.SOCK_SEQPACKET) -> Generator[Server]:
    server = Server(str(path), socket_type)
    try:
        yield server
    finally:
        server.stop()


def plan(total: int, **changes: Any) -> Plan:  # noqa: ANN401 (any field of Plan)
    values: dict[str, Any] = {"streams": 8, "handoff": HANDOFF, "expected": EXPECTED, "messages": 2}
    return Plan(total=total, **(values | changes))


def test_each_kind_of_fault_is_reported(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        run = run_load(plan(50, tcp=True, stall_timeout_s=0.5), server.path)
    reported = {fault["stream"]: fault["outcome"] for fault in run["faults"]}
    wanted = {index: kind for index, (kind, _) in FAULTS.items() if kind != "complete"}
    assert reported == wanted | {RESET_STREAM: "reset", STALLED_STREAM: "stalled"}
    assert run["streams"] == 50
    assert run["complete"] == 50 - len(reported)
    assert run["outcomes"]["wrong_bytes"] == 3
    assert run["statuses"]["503"] == 1
    assert run["comments"] == 1
    assert sum(run["outcomes"].values()) == 50


def test_the_place_of_the_first_wrong_byte_is_reported(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        run = run_load(plan(2), server.path)
    (fault,) = run["faults"]
    assert fault["differs_at"] == render(EXPECTED, NUMBER_FIRST).index(b"\xa9")
    assert any("first wrong byte" in line for line in report.run_lines(run))


def test_a_well_behaved_run_fills_every_figure(tmp_path: Path) -> None:
    with serving(tmp_path / "s", socket.SOCK_STREAM) as server:
        first = len(FAULTS) + 3
        run = run_load(
            plan(first + 40, socket_type=socket.SOCK_STREAM, stall_timeout_s=0.3, interval_ms=1), server.path
        )
    for metric in ("connect", "handoff", "first_byte", "between_messages", "whole_stream"):
        row = run["latencies_ns"][metric]
        assert row["count"] >= 40
        assert 0 <= row["min"] <= row["p50"] <= row["p90"] <= row["p95"] <= row["p99"] <= row["p99.9"] <= row["max"]
    assert run["latencies_ns"]["first_byte"]["p50"] >= run["latencies_ns"]["handoff"]["min"]
    assert run["server"] == {}
    assert not run["interrupted"]


def test_nobody_there(tmp_path: Path) -> None:
    run = run_load(plan(3, connect_timeout_s=0.05), str(tmp_path / "nobody"))
    assert run["outcomes"] == {"connect_failed": 3}


def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "late"
    with contextlib.ExitStack() as stack:
        late = threading.Timer(0.3, lambda: stack.enter_context(serving(path)))
        late.start()
        run = run_load(plan(1), str(path))
        late.join()
    assert run["complete"] == 1
    assert run["latencies_ns"]["connect"]["max"] > 0.2e9


def test_a_handoff_that_is_too_large_for_the_socket(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        run = run_load(plan(1, handoff=b"x" * 4_000_000), server.path)
    assert run["outcomes"] == {"handoff_failed": 1}


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_no_descriptors_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_the_limit(_stream_count: int) -> None:
        pass

    monkeypatch.setattr(processes, "raise_open_files_limit", leave_the_limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(tmp_path / "s") as server:
        run_load(plan(1), server.path)  # compiled: the compiler opens files too
        settled = open_descriptors()
        run_load(plan(1), server.path)
        # The server's thread closes its end in its own time; a descriptor freed under the limit would be one left.
        wait_until(lambda: open_descriptors() <= settled)
        with socket.socket() as next_free:
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_free.fileno() + 1, hard))
        try:
            run = run_load(plan(2), server.path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert run["outcomes"] == {"pair_failed": 2}


def test_too_many_streams_are_refused_with_the_number_that_fits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(ValueError, match=f"at most {hard - processes.DESCRIPTORS_RESERVED} streams fit"):
        processes.raise_open_files_limit(hard)


def test_no_descriptor_is_leaked(tmp_path: Path) -> None:
    def open_now() -> int:
        return len(os.listdir("/proc/self/fd"))

    with serving(tmp_path / "s") as server:
        run_load(plan(20, stall_timeout_s=0.3), server.path)
        before = open_now()
        run_load(plan(50, stall_timeout_s=0.3), server.path)
        deadline = time.monotonic() + 5
        while open_now() > before + 1 and time.monotonic() < deadline:  # + 1: the server holds one more stalled stream
            time.sleep(0.01)
        assert open_now() <= before + 1


def test_learning_finds_the_number_and_refuses_what_is_no_stream(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as server:
        assert learn(server.path, socket.SOCK_SEQPACKET, HANDOFF, 5) == EXPECTED
        with pytest.raises(ProbeError, match="standard head"):
            learn(server.path, socket.SOCK_SEQPACKET, b"%d" % (NUMBER_FIRST + 11), 5)
        with pytest.raises(ProbeError, match="did not end"):
            learn(server.path, socket.SOCK_SEQPACKET, b"%d" % (NUMBER_FIRST + 4), 5)


def test_an_expected_body_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(BODY.replace(b"\xa9", b"\xaa"))
    output = tmp_path / "result.json"
    with serving(tmp_path / "s") as server:
        arguments = ["--socket", server.path, "--total", "1", "--expect-file", str(tmp_path / "body")]
        assert main([*arguments, "--handoff", HANDOFF.decode(), "--output", str(output)]) == 1
    (result,) = json.loads(output.read_text())["results"]
    assert result["rounds"][0]["daemon"]["outcomes"] == {"wrong_bytes": 1}


def test_floor_against_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"{sys.executable} -m scripts.bench.floor"
    socket_path, output = str(tmp_path / "floor"), tmp_path / "result.json"
    with processes.running([*command.split(), socket_path, "5", "20"], socket_path, socket.SOCK_SEQPACKET):
        arguments = ["--socket", socket_path, "--streams", "100", "--total", "300", "--messages", "20"]
        arguments += ["--interval-ms", "5", "--rounds", "2", "--output", str(output)]
        assert main([*arguments, "--baseline", command + " {socket} {interval_ms} {messages}"]) == 0
    (result,) = json.loads(output.read_text())["results"]
    assert len(result["rounds"]) == 2
    for figures in result["rounds"]:
        for run in figures.values():
            assert (run["complete"], run["messages"], run["open_max"]) == (300, 6_000, 100)
            assert run["server"]["cpu_us_per_message"] >= 0
            assert run["server"]["memory"]["peak_kib"] > 1_000
            assert run["latencies_ns"]["lateness"]["count"] == 300 * 19
    printed = capsys.readouterr().out
    assert "p99.9" in printed
    assert "lateness" in printed


def test_the_wrong_number_of_messages_is_seen_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path / "s") as server:
        arguments = ["--socket", server.path, "--handoff", HANDOFF.decode(), "--messages", "3", "--total", "1"]
        assert main(arguments) == 2
    assert "3 messages a stream are asked for, and 2" in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--socket", "/nowhere", "--plot", str(tmp_path / "x.png")]) == 2
    assert "streaming-daemon[plot]" in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    with serving(tmp_path / "s") as server:
        main(["--socket", server.path, "--handoff", HANDOFF.decode(), "--total", "1", "--plot", str(file)])
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no licence today')"]
    with (
        pytest.raises(RuntimeError, match="exited with 1: no licence today"),
        processes.running(command, str(tmp_path / "s"), socket.SOCK_SEQPACKET),
    ):
        pass


def test_a_null_handoff_is_one_byte(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        one, other = socket.socketpair()
        with one, other:
            hand_over(path, socket.SOCK_SEQPACKET, b"", one.fileno())
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(10) == b"\0"


def test_every_outcome_has_a_name() -> None:
    assert len(OUTCOMES) == len(set(OUTCOMES)) == AFTER_END + 1
