"""When a relayed stream is accounted for: at its end, or once it is known what its client was told."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from backends.relay import Attempt, Origin, Outcome, Relay
from daemon.control.channel.command_pipe import CommandWriter
from daemon.control.relay.attempts import Relays
from daemon.control.relay.reachability import Reachability
from daemon.control.relay.resolver import Resolver
from daemon.control.stream.client_outcome import Told
from daemon.control.stream.relayed import Relayed

if TYPE_CHECKING:
    from collections.abc import Iterator


class Accounted(Relay):
    """A stream that remembers how it ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def first(self) -> Attempt:
        return Attempt(Origin("upstream", "http", "127.0.0.1", 1), "/", (), b"")

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture(name="relays")
def _relays() -> Iterator[Relays]:
    loop = asyncio.new_event_loop()
    read_fd, write_fd = os.pipe()
    resolver = Resolver(loop)
    reachability = Reachability(loop, resolver)
    try:
        yield Relays(loop, CommandWriter(write_fd, loop), resolver, reachability, lambda _slot: None)
    finally:
        reachability.close()
        resolver.close()
        for fd in (read_fd, write_fd):
            os.close(fd)
        loop.close()


def begun(relays: Relays, told: Told | None) -> tuple[Relayed, list[Outcome]]:
    """A stream whose upstream has been chosen, and how it ends."""
    relay = Accounted()
    relayed = relays.first(relay)
    relayed.told = told
    return relayed, relay.outcomes


def said(outcomes: list[Outcome]) -> list[tuple[int | None, str]]:
    """What clients were told."""
    return [(outcome.status, outcome.error) for outcome in outcomes]


def test_a_stream_is_accounted_for_as_it_ends(relays: Relays) -> None:
    relayed, outcomes = begun(relays, None)
    relays.abandon(relayed)
    assert said(outcomes) == [(None, "")]


@pytest.mark.parametrize("is_told_first", [False, True])
def test_an_answer_in_one_piece_is_accounted_for_once_it_is_known(relays: Relays, is_told_first: bool) -> None:
    told = Told()
    relayed, outcomes = begun(relays, told)
    if is_told_first:
        told.tell(502, "stream_cut: cut")
    assert said(outcomes) == []
    relays.abandon(relayed)
    if not is_told_first:
        assert said(outcomes) == []
        told.tell(502, "stream_cut: cut")
    assert said(outcomes) == [(502, "stream_cut: cut")]
    with pytest.raises(AssertionError, match="set twice"):
        told.tell(200)
    relays.settle()
    assert len(outcomes) == 1


def test_at_the_end_of_the_daemon_nothing_waits_any_more(relays: Relays) -> None:
    tolds = [Told(), Told()]
    ends: list[list[Outcome]] = []
    for told in tolds:
        relayed, outcomes = begun(relays, told)
        relays.abandon(relayed)
        ends.append(outcomes)
    relays.settle()
    assert [said(outcomes) for outcomes in ends] == [[(None, "")]] * 2
    tolds[0].tell(200)
    assert [len(outcomes) for outcomes in ends] == [1, 1], "a stream is accounted for once"
