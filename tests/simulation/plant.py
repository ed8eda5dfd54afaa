"""Bugs planted on purpose: each does, between turns or in a completion, what a mistake in the plane would do.

Only for tests: a simulation that has one of these must fail. Production code is not altered; a field of its memory is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.plane import entries as e
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane import tag as t
from tests.simulation.plant_relayed import PLANTS as PLANTS_RELAYED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.kernel import Operation
    from tests.simulation.scenario import Simulation


def _lose_a_byte(simulation: Simulation) -> None:
    """A short write counts for one byte more than was taken."""

    def alter(operation: Operation, result: int) -> int:
        short = operation.opcode == e.SEND and 0 < result < operation.length
        return result + 1 if short else result

    simulation.kernel.alter_result = alter


def _send_a_byte_twice(simulation: Simulation) -> None:
    """A short write counts for one byte less."""

    def alter(operation: Operation, result: int) -> int:
        short = operation.opcode == e.SEND and 1 < result < operation.length
        return result - 1 if short else result

    simulation.kernel.alter_result = alter


def _each_turn(simulation: Simulation, act: Callable[[], None]) -> None:
    simulation.kernel.before_turn.append(act)


def _close_while_in_flight(simulation: Simulation) -> None:
    """A closing slot forgets what is in flight."""
    streams = simulation.plane.streams

    def act() -> None:
        streams["in_flight"][streams["state"] == st.CLOSING] &= ~(1 << t.POLL_CLIENT)

    _each_turn(simulation, act)


def _reuse_a_generation(simulation: Simulation) -> None:
    """A freed slot keeps its generation."""
    streams = simulation.plane.streams
    last = streams["generation"].copy()

    def act() -> None:
        changed = (streams["generation"] > last) & (last > 0)
        streams["generation"][changed] = last[changed]
        last[:] = streams["generation"]

    _each_turn(simulation, act)


def _give_a_range_back_early(simulation: Simulation) -> None:
    """Ranges count as given back as soon as they are handed over."""
    streams = simulation.plane.streams

    def act() -> None:
        early = (streams["ranges_count"] > 0) & (streams["ranges_done"] == 0)
        streams["ranges_done"][early] += 1

    _each_turn(simulation, act)


def _leak_a_block(simulation: Simulation) -> None:
    """The free list of blocks loses its first, once."""
    plane, shared = simulation.plane, simulation.shared
    turns = iter(range(1 << 30))

    def act() -> None:
        if next(turns) == 5:
            shared.block_free = plane.block_links["next"][shared.block_free]

    _each_turn(simulation, act)


def _forget_the_clients_poll(simulation: Simulation) -> None:
    """The poll on the client counts as in flight when it is not."""
    streams = simulation.plane.streams

    def act() -> None:
        streams["in_flight"][streams["state"] == st.STREAMING] |= 1 << t.POLL_CLIENT

    _each_turn(simulation, act)


def _lose_a_timer(simulation: Simulation) -> None:
    """The wheel's occupied bits are wiped."""
    words = simulation.plane.words

    def act() -> None:
        words["bits"][:] = 0

    _each_turn(simulation, act)


def _claim_a_true_end(simulation: Simulation) -> None:
    """A stream that was stopped is reported as complete."""
    streams = simulation.plane.streams

    def act() -> None:
        stopped = (streams["flags"] & m.FLAG_SOURCE_DONE != 0) & (streams["reason"] == st.SHUTDOWN)
        streams["reason"][stopped] = st.COMPLETE

    _each_turn(simulation, act)


def _call_a_held_source_silent(simulation: Simulation) -> None:
    """The silence of a worker's stream runs on while its client does not read."""
    streams = simulation.plane.streams

    def act() -> None:
        streams["paused"][streams["source"] == m.SOURCE_PUSHED] = 0

    _each_turn(simulation, act)


PLANTS: dict[str, Callable[[Simulation], None]] = {
    "lose a byte on a short write": _lose_a_byte,
    "send a byte twice": _send_a_byte_twice,
    "close while an operation is in flight": _close_while_in_flight,
    "reuse a generation": _reuse_a_generation,
    "give a range back early": _give_a_range_back_early,
    "leak a block": _leak_a_block,
    "forget the client's poll": _forget_the_clients_poll,
    "lose a timer": _lose_a_timer,
    "claim a true end": _claim_a_true_end,
    "call a held source silent": _call_a_held_source_silent,
    **PLANTS_RELAYED,
}
