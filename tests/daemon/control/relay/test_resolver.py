"""Looking up upstreams: what is cached, for how long, and who is called back."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import uvloop

from backends.relay import Origin
from daemon.control.relay import resolver as module
from daemon.control.relay.resolver import Resolver
from daemon.control.relay.sockaddr import packed_ipv4, packed_ipv6, packed_unix

TIMEOUT_S = 30.0


def origin(host: str = "upstream.test", port: int = 8000, socket_path: str = "") -> Origin:
    return Origin(name="a", scheme="http", host=host, port=port, socket_path=socket_path)


def info(address: str, port: int = 8000) -> tuple[object, ...]:
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


def packed(address: str, port: int = 8000) -> bytes:
    if ":" in address:
        return packed_ipv6(socket.inet_pton(socket.AF_INET6, address), port)
    return packed_ipv4(socket.inet_aton(address), port)


class NameServer(asyncio.SelectorEventLoop):
    """A loop whose lookups answer what the test says, when the test says it."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups: list[tuple[str, int]] = []
        self.answer: list[str] | Exception = ["192.0.2.1"]
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.now_s = 1000.0

    async def getaddrinfo(self, host: object, port: object, **_: object) -> Any:  # noqa: ANN401
        self.lookups.append((str(host), int(str(port))))
        await self.may_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [info(address, int(str(port))) for address in self.answer]

    def turn(self) -> None:
        """Everything that can happen without time passing."""
        for _ in range(10):
            self.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def loop() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    for task in asyncio.all_tasks(made):
        task.cancel()
    made.turn()
    made.close()


@pytest.fixture
def resolver(loop: NameServer) -> Resolver:
    return Resolver(loop, lambda: loop.now_s)


def look_up(loop: NameServer, resolver: Resolver, wanted: Origin) -> tuple[bytes, ...] | None:
    called: list[int] = []
    resolver.wanted(wanted, lambda: called.append(1))
    assert not called, "callers are not called back from within"
    loop.turn()
    assert called == [1]
    return resolver.addresses(wanted)


def test_what_was_found_is_kept_in_its_order(loop: NameServer, resolver: Resolver) -> None:
    wanted = origin()
    loop.answer = ["2001:db8::1", "192.0.2.1", "192.0.2.1", "192.0.2.2"]
    assert resolver.addresses(wanted) is None
    found = look_up(loop, resolver, wanted)
    assert found == (packed("2001:db8::1"), packed("192.0.2.1"), packed("192.0.2.2"))
    loop.now_s += module.TTL_S - 1
    assert resolver.addresses(wanted) == found
    assert look_up(loop, resolver, wanted) == found
    assert loop.lookups == [("upstream.test", 8000)]


def test_old_addresses_serve_while_new_ones_are_looked_up(loop: NameServer, resolver: Resolver) -> None:
    wanted = origin()
    removed: list[tuple[Origin, tuple[bytes, ...]]] = []
    resolver.changed = lambda changed, gone: removed.append((changed, gone))
    loop.answer = ["192.0.2.1", "192.0.2.2"]
    look_up(loop, resolver, wanted)
    loop.answer = ["192.0.2.2", "192.0.2.3"]
    loop.now_s += module.TTL_S
    assert resolver.addresses(wanted) == (packed("192.0.2.1"), packed("192.0.2.2"))
    assert resolver.addresses(wanted) == (packed("192.0.2.1"), packed("192.0.2.2"))
    loop.turn()
    assert resolver.addresses(wanted) == (packed("192.0.2.2"), packed("192.0.2.3"))
    assert removed == [(wanted, (packed("192.0.2.1"),))]
    assert len(loop.lookups) == 2


def test_addresses_that_nobody_has_used_for_long_are_looked_up_first(loop: NameServer, resolver: Resolver) -> None:
    wanted = origin()
    look_up(loop, resolver, wanted)
    loop.now_s += module.STALE_S_MAX
    assert resolver.addresses(wanted) is None
    loop.answer = ["192.0.2.9"]
    assert look_up(loop, resolver, wanted) == (packed("192.0.2.9"),)


def test_a_failure_is_kept_for_a_second_and_said_once(
    loop: NameServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = origin()
    loop.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    for count in (1, 2, 3):
        assert look_up(loop, resolver, wanted) == ()
        assert look_up(loop, resolver, wanted) == ()
        assert len(loop.lookups) == count
        loop.now_s += module.FAILURE_TTL_S
        assert resolver.addresses(wanted) is None
    assert [record.getMessage() for record in caplog.records] == [
        "the name of upstream a cannot be resolved: Name or service not known"
    ]
    caplog.set_level(logging.INFO)
    loop.answer = ["192.0.2.1"]
    assert look_up(loop, resolver, wanted) == (packed("192.0.2.1"),)
    assert "again" in caplog.records[-1].getMessage()


def test_while_lookups_fail_the_old_addresses_serve(
    loop: NameServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = origin()
    found = look_up(loop, resolver, wanted)
    loop.answer = OSError("the network is down")
    for _ in range(1000):
        loop.now_s += module.TTL_S
        assert resolver.addresses(wanted) == found
        loop.turn()
    loop.now_s += 10 * module.STALE_S_MAX
    assert resolver.addresses(wanted) is None
    assert look_up(loop, resolver, wanted) == found
    assert len(caplog.records) == 1
    assert "remain in use" in caplog.text


def test_one_lookup_serves_all_who_wait(loop: NameServer, resolver: Resolver) -> None:
    wanted = origin()
    called: list[int] = []
    loop.may_answer.clear()
    for index in range(5):
        resolver.wanted(wanted, partial(called.append, index))
        loop.turn()
    assert not called
    loop.may_answer.set()
    loop.turn()
    assert called == [0, 1, 2, 3, 4]
    assert len(loop.lookups) == 1


def test_a_lookup_that_hangs_is_a_failure_in_time_and_still_counts_when_it_answers(
    loop: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT_S", 0.02)
    wanted = origin()
    loop.may_answer.clear()
    done = asyncio.Event()
    resolver.wanted(wanted, done.set)
    loop.run_until_complete(asyncio.wait_for(done.wait(), TIMEOUT_S))
    assert resolver.addresses(wanted) == ()
    assert "no response within" in caplog.text
    loop.now_s += module.FAILURE_TTL_S
    done.clear()
    resolver.wanted(wanted, done.set)
    loop.turn()
    assert len(loop.lookups) == 1
    loop.may_answer.set()
    loop.run_until_complete(asyncio.wait_for(done.wait(), TIMEOUT_S))
    assert resolver.addresses(wanted) == (packed("192.0.2.1"),)


@pytest.mark.parametrize("host", ["bücher.test", "x" * 100 + "é", "a\0b"])
def test_names_that_are_no_ascii(loop: NameServer, resolver: Resolver, host: str) -> None:
    found = look_up(loop, resolver, origin(host))
    assert all(name.isascii() for name, _ in loop.lookups)
    assert found == ((packed("192.0.2.1"),) if loop.lookups else ())


def test_origins_that_are_gone_are_forgotten(loop: NameServer, resolver: Resolver) -> None:
    for _ in range(3):
        look_up(loop, resolver, origin())
    gc.collect()
    assert len(resolver._entries) == 0  # pyright: ignore[reportPrivateUsage]


def test_after_close_nobody_is_called(loop: NameServer, resolver: Resolver) -> None:
    wanted = origin()
    called: list[int] = []
    loop.may_answer.clear()
    resolver.wanted(wanted, lambda: called.append(1))
    loop.turn()
    resolver.close()
    loop.may_answer.set()
    loop.turn()
    assert not called
    assert not asyncio.all_tasks(loop)


@pytest.mark.parametrize(
    ("wanted", "address"),
    [
        (origin("192.0.2.7", 80), packed("192.0.2.7", 80)),
        (origin("2001:db8::7", 443), packed("2001:db8::7", 443)),
        (origin("fe80::1%3", 443), packed_ipv6(socket.inet_pton(socket.AF_INET6, "fe80::1"), 443, scope=3)),
        (origin("x.test", 80, "/run/llm.sock"), packed_unix("/run/llm.sock")),
    ],
)
def test_literal_addresses_need_no_lookup(loop: NameServer, resolver: Resolver, wanted: Origin, address: bytes) -> None:
    loop.now_s += 10 * module.STALE_S_MAX
    assert resolver.addresses(wanted) == (address,)
    assert look_up(loop, resolver, wanted) == (address,)
    assert not loop.lookups


def test_a_real_name_on_the_daemons_own_loop() -> None:
    loop = uvloop.new_event_loop()
    try:
        resolver = Resolver(loop)
        wanted = origin("localhost", 4321)
        done = asyncio.Event()
        resolver.wanted(wanted, done.set)
        loop.run_until_complete(asyncio.wait_for(done.wait(), TIMEOUT_S))
        found = resolver.addresses(wanted)
        assert found
        assert packed("127.0.0.1", 4321) in found
    finally:
        loop.close()
