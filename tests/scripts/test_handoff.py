from __future__ import annotations

import io
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from scripts import handoff

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(tmp_path / "daemon.sock"))
    listening.listen()
    return listening


def _accept(listener: socket.socket) -> tuple[bytes, socket.socket]:
    with listener, listener.accept()[0] as connection:
        data, descriptors, _, _ = socket.recv_fds(connection, 65_536, 2)
    assert len(descriptors) == 1
    return data, socket.socket(fileno=descriptors[0])


def test_a_handoff_is_one_message_of_json_with_one_descriptor(listener: socket.socket, tmp_path: Path) -> None:
    client = handoff.hand_over(tmp_path / "daemon.sock", {"user_id": 7, "prompt": "grüß"})
    data, daemon_end = _accept(listener)
    with client, daemon_end:
        assert json.loads(data) == {"user_id": 7, "prompt": "grüß"}
        daemon_end.sendall(b"through")
        assert client.recv(16) == b"through"


def test_an_empty_handoff_is_one_nul_byte(listener: socket.socket, tmp_path: Path) -> None:
    client = handoff.hand_over(tmp_path / "daemon.sock", {})
    data, daemon_end = _accept(listener)
    client.close()
    daemon_end.close()
    assert data == b"\0"


@pytest.mark.parametrize("piece_bytes", [1, 3, 10_000])
def test_lines_survive_any_cut_of_the_bytes(piece_bytes: int) -> None:
    sent = "HTTP/1.1 200 OK\r\n\r\ndata: grüße\n\nunended".encode()
    client, daemon_end = socket.socketpair()
    with client, daemon_end:
        lines = handoff.received_lines(client)
        for start in range(0, len(sent), piece_bytes):
            daemon_end.sendall(sent[start : start + piece_bytes])
        daemon_end.shutdown(socket.SHUT_WR)
        assert list(lines) == ["HTTP/1.1 200 OK", "", "data: grüße", "", "unended"]


@pytest.mark.parametrize(("end", "whole"), [(b"data: [DONE]\n\n", True), (b"", False)])
def test_a_stream_is_whole_only_with_its_done(end: bytes, whole: bool) -> None:
    client, daemon_end = socket.socketpair()
    output = io.StringIO()
    with client:
        with daemon_end:
            daemon_end.sendall(b'HTTP/1.1 200 OK\r\n\r\ndata: {"content":"a"}\n\n' + end)
        assert handoff.show_stream(client, output, time.monotonic()) is whole
    assert 'data: {"content":"a"}' in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_a_done_in_the_head_is_no_end() -> None:
    client, daemon_end = socket.socketpair()
    with client:
        with daemon_end:
            daemon_end.sendall(b"HTTP/1.1 200 OK\r\ndata: [DONE]\r\n\r\n")
        assert handoff.show_stream(client, io.StringIO(), time.monotonic()) is False


def test_nobody_there_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert handoff.main(["--socket", str(tmp_path / "none.sock"), "Hello"]) == 2
    assert "cannot hand over" in (said := capsys.readouterr().err)
    assert "make run" in said


def test_the_other_socket_type_is_named_as_the_cause(
    listener: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listener:
        assert handoff.main(["--socket", str(tmp_path / "daemon.sock"), "--socket-type", "stream"]) == 2
    assert "--socket-type" in capsys.readouterr().err


@pytest.mark.parametrize("data", ["[1]", "{", '"text"'])
def test_data_that_is_no_object_is_refused(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert handoff.main(["--socket", str(tmp_path / "none.sock"), "--data", data]) == 2
    assert "--data must be a JSON object" in capsys.readouterr().err
