"""Precedence and provenance, files of the C daemon, and what an operator is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from config import load as loading
from config.load import ConfigError, Loaded, describe, load
from config.schema import KEYS, SECTIONS, value_of
from config.settings import Settings
from config.toml_file import C_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    Writer = Callable[[str], Path]

C_VALUES: dict[str, tuple[str, object]] = {
    "socket": ('"/tmp/one.sock"', "/tmp/one.sock"),
    "socket_path": ('"/tmp/one.sock"', "/tmp/one.sock"),
    "socket_mode": ("0600", 0o600),
    "max_connections": ("123", 123),
    "delay": ("7", 7),
    "message_delay_ms": ("7", 7),
    "pool_size": ("3", 3),
    "metrics_port": ("9091", 9091),
    "handoff_timeout_ms": ("321", 321),
    "write_timeout_ms": ("1234", 1234),
    "shutdown_timeout_s": ("9", 9),
    "thread_pool": ("true", True),
    "sqpoll": ("true", True),
    "benchmark": ("true", True),
}
PLACES_OF_KEYS = ["", "[backend]", "[general]", *(f"[{section}]" for section in SECTIONS)]


@pytest.fixture(autouse=True)
def _no_default_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(loading, "PLACES", (tmp_path / "first.toml", tmp_path / "second.toml"))


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def written(text: str) -> Path:
        path = tmp_path / "given.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def load_file(path: Path, *more: str) -> Loaded:
    return load(["--config", str(path), *more], {})


def refusal(path: Path, *more: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_file(path, *more)
    return str(raised.value)


# ---- precedence and provenance


def test_without_anything_the_defaults_are_in_force() -> None:
    loaded = load([], {})
    assert loaded.settings == Settings()
    assert loaded.file is None
    assert loaded.warnings == ()
    assert loaded.action == "run"
    assert set(loaded.provenance.values()) == {"default"}
    assert loaded.provenance.keys() == KEYS.keys()


def test_command_line_over_environment_over_file_over_default(write: Writer) -> None:
    path = write(
        "[backend.mock]\nlatency_ms = 1\ntokens = 5\n[streaming]\nmessage_delay_ms = 2\n[thread_pool]\npool_size = 3"
    )
    loaded = load(["--config", str(path), "--delay", "20"], {"MOCK_LATENCY_MS": "10"})
    settings, provenance = loaded.settings, loaded.provenance
    assert (settings.backend.mock.latency_ms, provenance["backend.mock.latency_ms"]) == (
        10,
        "environment MOCK_LATENCY_MS",
    )
    assert (settings.backend.mock.tokens, provenance["backend.mock.tokens"]) == (5, str(path))
    assert (settings.streaming.message_delay_ms, provenance["streaming.message_delay_ms"]) == (
        20,
        "command line --delay",
    )
    assert (settings.thread_pool.pool_size, provenance["thread_pool.pool_size"]) == (3, str(path))
    assert (settings.thread_pool.thread_pool, provenance["thread_pool.thread_pool"]) == (False, "default")
    assert loaded.file == path


def test_the_process_environment_is_used_if_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCK_LATENCY_MS", "4")
    assert load([]).settings.backend.mock.latency_ms == 4
    assert load([], {"MOCK_LATENCY_MS": ""}).provenance["backend.mock.latency_ms"] == "default"


@pytest.mark.parametrize("text", ["soon", "-1", "600001", "1.5", "9" * 5000])
def test_the_environment_is_checked_too(text: str) -> None:
    with pytest.raises(ConfigError, match=r"environment: MOCK_LATENCY_MS \(backend.mock.latency_ms\) .* 0 to 600000"):
        load([], {"MOCK_LATENCY_MS": text})


def test_the_first_default_place_that_exists_is_read(tmp_path: Path) -> None:
    (tmp_path / "second.toml").write_text("delay = 2")
    assert load([], {}).settings.streaming.message_delay_ms == 2
    (tmp_path / "first.toml").write_text("delay = 1")
    loaded = load([], {})
    assert loaded.settings.streaming.message_delay_ms == 1
    assert loaded.file == tmp_path / "first.toml"


def test_a_named_file_is_the_only_one_read(tmp_path: Path, write: Writer) -> None:
    (tmp_path / "first.toml").write_text("delay = 1")
    assert load_file(write("pool_size = 2")).settings.streaming.message_delay_ms == 50


def test_the_default_places_are_the_documented_ones() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "from config.load import PLACES; print(*PLACES)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert shown.stdout.split() == [
        "streaming-daemon.toml",
        "/etc/streaming-daemon/config.toml",
        "/etc/streaming-daemon.toml",
    ]


# ---- files of the C daemon


def test_every_c_key_is_known() -> None:
    assert C_VALUES.keys() == C_KEYS.keys()


@pytest.mark.parametrize("place", PLACES_OF_KEYS)
@pytest.mark.parametrize("name", C_VALUES)
def test_every_c_key_is_taken_from_every_section(name: str, place: str, write: Writer) -> None:
    text, expected = C_VALUES[name]
    path = write(f"{place}\n{name} = {text}\n")
    loaded = load_file(path)
    assert value_of(loaded.settings, C_KEYS[name]) == expected
    assert loaded.provenance[C_KEYS[name]] == str(path)


def test_a_whole_c_file_loads(write: Writer) -> None:
    loaded = load_file(write("\n".join(f"{name} = {text}" for name, (text, _) in C_VALUES.items())))
    assert loaded.settings.server.socket_mode == 0o600
    # socket and socket_path are one setting, and so are delay and message_delay_ms.
    assert sum("both set" in warning for warning in loaded.warnings) == 2


def test_the_later_of_two_values_counts(write: Writer) -> None:
    loaded = load_file(write("delay = 1\n[server]\nmessage_delay_ms = 2"))
    assert loaded.settings.streaming.message_delay_ms == 2
    assert "delay and server.message_delay_ms both set streaming.message_delay_ms" in loaded.warnings[0]


def test_a_section_of_c_keys_alone_may_have_any_name(write: Writer) -> None:
    loaded = load_file(write("[general]\ndelay = 1"))
    assert "unknown section [general]" in loaded.warnings[0]
    assert "unknown section [general] (with delay)" in refusal(write("[general]\ndelay = 1\nother = 2"))


@pytest.mark.parametrize("written", ["0660", "660", "0660  # as the C daemon has it", "0660\r"])
def test_a_bare_mode_is_octal_with_a_warning(written: str, write: Writer) -> None:
    loaded = load_file(write(f"[server]\n\nsocket_mode = {written}\nbacklog = 1\n"))
    assert loaded.settings.server.socket_mode == 0o660
    assert loaded.settings.server.backlog == 1
    assert len(loaded.warnings) == 1
    assert "line 3: socket_mode = " in loaded.warnings[0]
    assert 'write "0660"' in loaded.warnings[0]


@pytest.mark.parametrize("written", ['"0660"', '"660"', "'0o660'", "0o660"])
def test_our_ways_to_write_a_mode_are_octal_without_a_warning(written: str, write: Writer) -> None:
    loaded = load_file(write(f"[server]\nsocket_mode = {written}"))
    assert loaded.settings.server.socket_mode == 0o660
    assert loaded.warnings == ()


def test_a_mode_by_its_dotted_name_is_octal_too(write: Writer) -> None:
    assert load_file(write("server.socket_mode = 0600")).settings.server.socket_mode == 0o600


@pytest.mark.parametrize("written", ['"0999"', "0999", '"1777"', '""', '"rw"', "true", "-1", "6.0", '"٠٦"'])
def test_a_mode_that_is_none_is_refused(written: str, write: Writer) -> None:
    message = refusal(write(f"[server]\nsocket_mode = {written}"))
    assert "server.socket_mode = " in message
    assert '"0000" to "0777"' in message


@pytest.mark.parametrize(("written", "octal"), [("432", "0660"), ("400", "0620"), ("384", "0600"), ("511", "0777")])
def test_a_bare_decimal_mode_is_no_guess(written: str, octal: str, write: Writer) -> None:
    # The C daemon took 432 for 0660. As octal digits it would let every user of the host connect.
    message = refusal(write(f"delay = 1\n[server]\nsocket_mode = {written}\n"))
    assert f"server.socket_mode = {written} is refused: permitted is a string of octal digits" in message
    assert message.endswith(f'; as a decimal number it would be "{octal}"')


def test_a_mode_of_a_users_backend_is_its_own_affair(write: Writer) -> None:
    options = load_file(write('[backend.mine]\nclass = "a.b:C"\nsocket_mode = 432')).settings.backend.others["mine"]
    assert options["socket_mode"] == 432


def test_a_decimal_mode_never_passes_for_an_octal_one(write: Writer) -> None:
    # 400 is 0o620 in decimal: what was meant for the owner alone would be writable by the group.
    assert "server.socket_mode = 400 is refused" in refusal(write("server = { socket_mode = 400 }"))


def test_a_mode_in_a_text_of_several_lines_stays_as_it_is(write: Writer) -> None:
    text = '[backend.mine]\nclass = "a.b:C"\nprompt = """\nsocket_mode = 0660\n"""'
    loaded = load_file(write(text))
    assert loaded.settings.backend.others["mine"]["prompt"] == "socket_mode = 0660\n"
    assert loaded.warnings == ()


def test_line_numbers_of_errors_are_those_of_the_file(write: Writer) -> None:
    assert "line 4" in refusal(write("delay = 1\nsocket_mode = 0660\n\nsocket = =\n"))


# ---- what cannot be read


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = ", b"a = 1\na = 2", b"[" * 20_000])
def test_what_is_no_toml_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "given.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: is ")


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.toml")
    assert refusal(tmp_path) == f"{tmp_path}: is a directory; the configuration must be a regular file"


def test_a_fifo_and_a_device_are_refused_without_a_wait(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert refusal(fifo) == f"{fifo}: is a FIFO; the configuration must be a regular file"
    with open(os.open(fifo, os.O_RDWR), "wb", buffering=0) as writer:  # somebody writes, and does not end
        writer.write(b"delay = 5\n")
        assert refusal(fifo) == f"{fifo}: is a FIFO; the configuration must be a regular file"
    device = Path("/dev/zero")
    assert refusal(device) == f"{device}: is a device; the configuration must be a regular file"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "cannot be read: No such device or address" in refusal(tmp_path / "s")


def test_a_byte_order_mark_is_no_key(write: Writer) -> None:
    assert load_file(write("\ufeffdelay = 3")).settings.streaming.message_delay_ms == 3


# ---- backends of others


def test_a_table_of_a_users_backend_is_handed_on_whole(write: Writer) -> None:
    path = write('[backend.mine]\nclass = "my.module:Class"\ndelay = 5\nsocket = "x"\n[backend.mine.deep]\na = [1]')
    loaded = load_file(path)
    options = {"class": "my.module:Class", "delay": 5, "socket": "x", "deep": {"a": [1]}}
    assert loaded.settings.backend.others == {"mine": options}
    assert loaded.settings.streaming.message_delay_ms == 50
    assert loaded.provenance["backend.mine.class"] == str(path)


@pytest.mark.parametrize("named", ['"module.Class"', '":Class"', '"a:"', '"a b:C"', '"a..b:C"', "5", '"a:b:c"'])
def test_a_class_must_have_the_right_form(named: str, write: Writer) -> None:
    message = refusal(write(f"[backend.mine]\nclass = {named}"))
    assert "backend.mine.class = " in message
    assert "package.module:Class" in message


def test_a_misspelt_backend_is_missing_its_class(write: Writer) -> None:
    assert "did you mean [backend.mock]?" in refusal(write("[backend.mok]\ntokens = 3"))


# ---- what is in force


def test_check_config_shows_every_value_and_its_origin(write: Writer) -> None:
    path = write('[backend.mine]\nclass = "a.b:C"\n[server]\nsocket_mode = "0600"')
    lines = describe(load_file(path, "--pool-size", "4")).splitlines()
    assert len(lines) == len(KEYS) + 1
    assert [line.split(" = ")[0].rstrip() for line in lines] == [*KEYS, "backend.mine.class"]
    assert len({line.index(" = ") for line in lines}) == 1
    assert len({line.rindex("  (") for line in lines}) == 1
    by_key = {line.split()[0]: line for line in lines}
    assert by_key["server.socket_mode"].endswith(f"({path})")
    assert ' "0600" ' in by_key["server.socket_mode"]
    assert by_key["thread_pool.pool_size"].split()[2:] == ["4", "(command", "line", "--pool-size)"]


def test_secrets_are_never_shown(write: Writer) -> None:
    lines = [
        *("[backend.mine]", 'class = "a.b:C"', 'api_key = "hidden1"', 'clientSecret = "hidden2"'),
        *('access-token = "hidden3"', "password = 4711", 'tokens = ["hidden4"]'),
        *("[backend.mine.headers]", 'Authorization = "Bearer hidden5"', "max_tokens = 77"),
    ]
    loaded = load_file(write("\n".join(lines)))
    shown = describe(loaded)
    assert "hidden" not in shown
    assert "4711" not in shown
    assert "max_tokens = 77" in shown
    assert loaded.settings.backend.others["mine"]["api_key"] == "hidden1"


def test_an_empty_secret_is_shown_as_empty(write: Writer) -> None:
    shown = describe(load_file(write('[backend.mine]\nclass = "a.b:C"\napi_key = ""')))
    assert shown.splitlines()[-1].split()[:3] == ["backend.mine.api_key", "=", '""']


def test_configuring_needs_neither_numba_nor_numpy() -> None:
    code = "import sys, config.load; sys.exit(bool({'numba', 'numpy'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
