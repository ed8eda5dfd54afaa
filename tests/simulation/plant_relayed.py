"""Bugs of relayed streams, planted on purpose; as tests/simulation/plant.py, which lists them with its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.plane import connection_state as cs
from daemon.plane import connections as c
from daemon.plane import entries as e
from daemon.plane import messages as m
from daemon.plane import relay as relay_module
from daemon.plane import relay_failure as r
from daemon.plane import state as st
from daemon.plane.body import COUNTED
from daemon.plane.events import CONTROL_FAILED
from tests.simulation.objects import UpstreamSocket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.kernel import Operation
    from tests.simulation.scenario import Simulation


def _each_turn(simulation: Simulation, act: Callable[[], None]) -> None:
    simulation.kernel.before_turn.append(act)


def _lose_a_byte(simulation: Simulation) -> None:
    """A receive counts for one byte less than has come."""

    def alter(operation: Operation, result: int) -> int:
        is_answer = operation.opcode == e.RECV and isinstance(operation.target, UpstreamSocket)
        return result - 1 if is_answer and result > 100 else result

    simulation.kernel.alter_result = alter


def _say_done_after_a_cut(simulation: Simulation) -> None:
    """Every upstream counts as having said why it finished, and every end as a clean one."""
    relays = simulation.plane.relays

    def act() -> None:
        reading = relays["phase"] == r.EVENTS
        relays["finish"][reading] = 1
        relays["body_ended"][reading & (relays["body_ended"] == relay_module.BODY_CUT)] = relay_module.BODY_CLEAN

    _each_turn(simulation, act)


def _forget_a_receive_buffer(simulation: Simulation) -> None:
    """One buffer that was given back is not published, once."""
    shared = simulation.shared

    def act() -> None:
        if simulation.kernel.turns > 40 and shared.receive_tail > 1024 and not hasattr(simulation, "forgotten"):
            simulation.forgotten = True  # type: ignore[attr-defined]
            shared.receive_tail -= 1

    _each_turn(simulation, act)


def _give_a_receive_buffer_twice(simulation: Simulation) -> None:
    """The ring's tail runs ahead by one."""
    provided = simulation.plane.provided

    def act() -> None:
        if simulation.kernel.turns == 60:
            provided["tail"][0] += 1

    _each_turn(simulation, act)


def _close_while_receiving(simulation: Simulation) -> None:
    """A closing connection forgets its receive."""
    connections = simulation.plane.connections

    def act() -> None:
        connections["in_flight"][connections["state"] == cs.CLOSING] &= ~c.RECEIVE_BIT

    _each_turn(simulation, act)


def _fail_twice(simulation: Simulation) -> None:
    """A failure that was told is told again."""
    plane, told = simulation.plane, set[tuple[int, int]]()

    def act() -> None:
        channel: Any = plane.channels[0]
        for slot in (plane.relays["is_lent"] != 0).nonzero()[0].tolist():
            stream: Any = plane.streams[slot]
            key = slot, int(stream.generation)
            if stream.control_events == 0 and channel.head < 0 and stream.state < st.CLOSING and key not in told:
                told.add(key)
                stream.control_events = CONTROL_FAILED
                stream.control_next = -1
                channel.head = channel.tail = slot

    _each_turn(simulation, act)


def _leak_the_usage_event(simulation: Simulation) -> None:
    """Every client counts as having asked for the usage event."""
    relays = simulation.plane.relays

    def act() -> None:
        relays["flags"] |= m.PASS_USAGE

    _each_turn(simulation, act)


def _keep_what_must_close(simulation: Simulation) -> None:
    """Every connection counts as one that stays."""
    connections = simulation.plane.connections

    def act() -> None:
        busy = connections["state"] == cs.BUSY
        connections["flags"][busy] = (connections["flags"][busy] | c.KEEPABLE) & ~c.UNTIL_CLOSE

    _each_turn(simulation, act)


def _end_an_answer_early(simulation: Simulation) -> None:
    """A counted body is taken for one byte shorter than it is."""
    connections, done = simulation.plane.connections, set[tuple[int, int]]()

    def act() -> None:
        counted = (connections["state"] == cs.BUSY) & (connections["body_state"] == COUNTED)
        for number in (counted & (connections["body_remaining"] > 1)).nonzero()[0].tolist():
            key = number, int(connections[number].request_address)
            if key not in done:
                done.add(key)
                connections[number].body_remaining -= 1

    _each_turn(simulation, act)


def _send_a_request_twice(simulation: Simulation) -> None:
    """A request that was sent is forgotten, once for each connection."""
    connections, done = simulation.plane.connections, set[tuple[int, int]]()

    def act() -> None:
        whole = (connections["state"] == cs.BUSY) & (connections["request_sent"] == connections["request_bytes"])
        for number in (whole & (connections["request_bytes"] > 0)).nonzero()[0].tolist():
            key = number, int(connections[number].generation)
            if key not in done:
                done.add(key)
                connections[number].request_sent = 0

    _each_turn(simulation, act)


def _lose_patience(simulation: Simulation) -> None:
    """Waits for an upstream end at once."""
    plane = simulation.plane

    def act() -> None:
        waiting = (plane.streams["state"] == st.LLM_PENDING) & (plane.streams["phase_deadline_ns"] != 0)
        plane.streams["phase_deadline_ns"][waiting] = 1

    _each_turn(simulation, act)


def _wait_for_ever(simulation: Simulation) -> None:
    """Waits for an upstream never end."""
    plane = simulation.plane

    def act() -> None:
        plane.streams["phase_deadline_ns"][plane.streams["state"] == st.LLM_PENDING] = 0

    _each_turn(simulation, act)


def _keep_idle_for_ever(simulation: Simulation) -> None:
    """Nobody looks at idle connections."""
    shared = simulation.shared

    def act() -> None:
        shared.idle_check_ns = 1 << 62

    _each_turn(simulation, act)


def _say_a_wrong_count(simulation: Simulation) -> None:
    """One token too many is counted."""
    relays = simulation.plane.relays

    def act() -> None:
        relays["token_count"][relays["token_count"] == 1] = 2

    _each_turn(simulation, act)


PLANTS: dict[str, Callable[[Simulation], None]] = {
    "lose a byte of an answer": _lose_a_byte,
    "say [DONE] after a cut": _say_done_after_a_cut,
    "forget a receive buffer": _forget_a_receive_buffer,
    "give a receive buffer twice": _give_a_receive_buffer_twice,
    "close a connection while receiving": _close_while_receiving,
    "fail twice": _fail_twice,
    "leak the usage event": _leak_the_usage_event,
    "keep a connection that must close": _keep_what_must_close,
    "take an answer for over too soon": _end_an_answer_early,
    "send a request twice": _send_a_request_twice,
    "fail too early": _lose_patience,
    "wait for an upstream for ever": _wait_for_ever,
    "keep idle connections for ever": _keep_idle_for_ever,
    "count a token too many": _say_a_wrong_count,
}
