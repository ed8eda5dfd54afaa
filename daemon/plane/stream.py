"""A stream that is open: its sends, its client's poll, its deadlines and its keep-alives.

`service_stream` looks at the stream's whole state and does whatever is next; handlers of completions only record what
happened and ask for service. So nothing depends on the order in which the kernel completes things.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane import messages as m
from daemon.plane import state as st
from daemon.plane.body import DONE, NONE, service_body
from daemon.plane.closing import begin_closing
from daemon.plane.counters import (
    BYTES_SENT,
    HISTOGRAM_FIRST_BYTE,
    HISTOGRAM_MESSAGE_INTERVAL,
    KEEP_ALIVES,
    SENDS,
    SENDS_BLOCKED,
    SENDS_SHORT,
)
from daemon.plane.entries import (
    COMPLETION_MORE,
    COMPLETION_NOTIFICATION,
    EAGAIN,
    ECANCELED,
    ECONNRESET,
    EINTR,
    ENOBUFS,
    ENOMEM,
    EOPNOTSUPP,
    EPIPE,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
)
from daemon.plane.events import (
    CONTROL_EXPIRED,
    CONTROL_KEEP_ALIVE,
    WORKER_RELEASED,
    raise_control,
    raise_worker,
)
from daemon.plane.lists import ready_push
from daemon.plane.output import (
    append_body,
    consume,
    disown,
    has_output,
    next_address,
    next_bytes,
    range_is_next,
    room_for,
)
from daemon.plane.paced import generate, next_due_ns
from daemon.plane.relay import FOR_CLIENT, client_left
from daemon.plane.relay_failure import relay_expired
from daemon.plane.relay_table import relay_of
from daemon.plane.submissions import prepare_cancel, prepare_poll, prepare_send
from daemon.plane.table import FOREVER_NS, KEEP_ALIVE_BYTES, KEEP_ALIVE_OFFSET, count, observe, stream_of
from daemon.plane.tag import CANCEL, POLL_CLIENT, POLL_WRITABLE, SEND, pack
from daemon.plane.timers import timer_set
from daemon.plane.upstream import service_relay

EXPIRY_GRACE_NS = 5_000_000_000
SUBMISSIONS_MAX = 4  # send or poll for writing, client's poll or its cancel, receive
_SEND_OR_WRITABLE = (1 << SEND) | (1 << POLL_WRITABLE)


@compiled
def service_stream(plane: Any, slot: int) -> None:
    """Whatever is next for an open stream (llm_queued, llm_pending, streaming)."""
    stream = stream_of(plane, slot)
    if _deadline_passed(plane, slot, stream):
        return
    if stream.source == m.SOURCE_PACED and not stream.flags & m.FLAG_SOURCE_DONE and generate(plane, slot):
        stream.flags |= m.FLAG_SOURCE_DONE | m.FLAG_TRUE_END
    if stream.source == m.SOURCE_UPSTREAM:
        service_relay(plane, slot)
        if stream.state == st.CLOSING:
            return
    if stream.keep_alive_ns > 0:
        _keep_alive(plane, slot, stream)
    if has_output(stream):
        if not stream.in_flight & _SEND_OR_WRITABLE and plane.now_ns >= stream.hold_ns:
            _send(plane, slot, stream)
    elif stream.flags & m.FLAG_SOURCE_DONE and not stream.in_flight & _SEND_OR_WRITABLE:
        begin_closing(plane, slot, stream.reason)
        return
    if stream.body_state > NONE and stream.body_state < DONE and not stream.flags & m.FLAG_SOURCE_DONE:
        service_body(plane, slot)
    _watch_client(plane, slot, stream)
    timer_set(plane, slot, _next_deadline(plane, slot, stream))


@inlined
def _watch_client(plane: Any, slot: int, stream: Any) -> None:
    """Keep a poll on the client, so that its leaving is noticed at once."""
    # A stream whose last bytes are on their way needs no poll: the send itself tells of a client that has left.
    if not stream.flags & (m.FLAG_SOURCE_DONE | m.FLAG_HALF_CLOSED):
        if not stream.in_flight & (1 << POLL_CLIENT):
            _poll_client(plane, slot, stream)
        elif stream.body_state == DONE and not stream.flags & m.FLAG_POLLED:
            _poll_again(plane, slot, stream)


@inlined
def _poll_client(plane: Any, slot: int, stream: Any) -> None:
    """Notice at once a client that leaves. Unread input is noted once, then no longer asked for."""
    mask = POLLERR | POLLHUP
    if stream.body_state == NONE or stream.body_state == DONE:
        if not stream.flags & m.KEEP_HALF_OPEN:
            mask |= POLLRDHUP
        if not stream.flags & m.FLAG_INPUT_SEEN:
            mask |= POLLIN
        stream.flags |= m.FLAG_POLLED
    prepare_poll(plane, stream.client_fd, mask, pack(POLL_CLIENT, slot, stream.generation))
    stream.in_flight |= 1 << POLL_CLIENT


@inlined
def _poll_again(plane: Any, slot: int, stream: Any) -> None:
    """The upload is complete: a FIN now says that the client leaves, but the poll in flight does not ask for it."""
    cancel = 1 << (CANCEL + POLL_CLIENT)
    if not stream.in_flight & cancel:
        generation = stream.generation
        prepare_cancel(plane, pack(POLL_CLIENT, slot, generation), pack(CANCEL + POLL_CLIENT, slot, generation))
        stream.in_flight |= cancel


@inlined
def _send(plane: Any, slot: int, stream: Any) -> None:
    """Send the next bytes that lie in one piece, or wait for room where the last attempt found none."""
    if stream.write_deadline_ns == 0 and stream.write_timeout_ns > 0:
        stream.write_deadline_ns = plane.now_ns + stream.write_timeout_ns
    generation = stream.generation
    if stream.sending_bytes < 0:
        stream.sending_bytes = 0
        prepare_poll(plane, stream.client_fd, POLLOUT, pack(POLL_WRITABLE, slot, generation))
        stream.in_flight |= 1 << POLL_WRITABLE
        return
    byte_count = next_bytes(plane, slot, stream)
    assert byte_count > 0
    wanted = plane.zero_copy != 0 and not stream.must_copy
    large = wanted and byte_count >= plane.zero_copy_bytes_min and range_is_next(plane, slot, stream)
    address = next_address(plane, slot, stream)
    prepare_send(plane, stream.client_fd, address, byte_count, large, pack(SEND, slot, generation))
    stream.sending_bytes = byte_count
    stream.in_flight |= 1 << SEND
    count(plane, SENDS, 1)


@compiled
def handle_send(plane: Any, slot: int, result: int, flags: int) -> None:
    """The kernel took bytes, or not. A zero-copy send is over only with its notification."""
    stream = stream_of(plane, slot)
    if flags & COMPLETION_NOTIFICATION:
        result = int(stream.zero_copy_result)
    elif flags & COMPLETION_MORE:
        stream.zero_copy_result = result
        return
    stream.in_flight &= ~(1 << SEND)
    sent, stream.sending_bytes = int(stream.sending_bytes), 0
    if result > 0:
        _sent(plane, slot, stream, result, sent)
        return
    if result == -EOPNOTSUPP and plane.zero_copy != 0 and not stream.must_copy:
        stream.must_copy = 1  # a Unix socket takes no zero-copy sends
    elif result == -EAGAIN:
        stream.sending_bytes = -1  # poll before the next attempt
        count(plane, SENDS_BLOCKED, 1)
    elif result != -EINTR and result != -ENOMEM and result != -ENOBUFS and stream.state != st.CLOSING:
        gone = result == -EPIPE or result == -ECONNRESET or result == -ECANCELED
        if gone:
            client_left(plane, slot)
        else:
            begin_closing(plane, slot, st.SEND_ERROR)
    elif result == -ENOMEM or result == -ENOBUFS:
        stream.sending_bytes = -1
    ready_push(plane, slot)


@inlined
def _sent(plane: Any, slot: int, stream: Any, result: int, asked: int) -> None:
    """Account for bytes the kernel has taken, and ask for service only if something is left to do."""
    assert result <= asked
    stream.write_deadline_ns = 0
    stream.sent_bytes += result
    count(plane, BYTES_SENT, result)
    if stream.first_byte_ns == 0:
        stream.first_byte_ns = plane.now_ns
        observe(plane, HISTOGRAM_FIRST_BYTE, plane.now_ns - stream.accepted_ns)
    else:
        observe(plane, HISTOGRAM_MESSAGE_INTERVAL, plane.now_ns - stream.last_sent_ns)
    stream.last_sent_ns = plane.now_ns
    if result < asked:
        count(plane, SENDS_SHORT, 1)
    range_done = consume(plane, slot, stream, result)
    if stream.paused == FOR_CLIENT and not has_output(stream):
        stream.paused = 0
        _restart_silence(plane, stream)  # its timer is set for an earlier time, and finds this one then
    worth_telling = range_done or stream.inline_done - stream.inline_reported >= plane.block_bytes // 2
    if worth_telling and stream.source == m.SOURCE_PUSHED and stream.state != st.CLOSING:
        stream.inline_reported = stream.inline_done
        raise_worker(plane, slot, WORKER_RELEASED)
    waited_for = stream.flags & m.FLAG_SOURCE_DONE or stream.interval_ps == 0 or stream.paused
    if stream.state == st.CLOSING or has_output(stream) or waited_for:
        ready_push(plane, slot)


@inlined
def _restart_silence(plane: Any, stream: Any) -> None:
    """A worker's source is called silent when this much time has passed from now."""
    if not stream.flags & (m.FLAG_EXPIRED | m.FLAG_SOURCE_DONE):
        stream.phase_deadline_ns = plane.now_ns + stream.silence_ns if stream.silence_ns else 0


@compiled
def handle_poll_client(plane: Any, slot: int, result: int) -> None:
    """The client left, or sent something, or the poll ended for another reason and is armed again."""
    stream = stream_of(plane, slot)
    ready_push(plane, slot)
    if stream.state == st.CLOSING or result < 0:
        return
    if result & POLLIN:
        stream.flags |= m.FLAG_INPUT_SEEN
    # A FIN before an upload's end cuts the upload; its client may still wait for the answer that says so.
    body_is_cut = stream.body_state != NONE and stream.body_state != DONE
    may_half_close = stream.flags & m.KEEP_HALF_OPEN or body_is_cut
    if result & (POLLERR | POLLHUP) or (result & POLLRDHUP and not may_half_close):
        client_left(plane, slot)
    elif result & POLLRDHUP:
        # io_uring reports a FIN asked or not: the next poll would complete at once, and the one after it.
        stream.flags |= m.FLAG_HALF_CLOSED


@inlined
def _keep_alive(plane: Any, slot: int, stream: Any) -> None:
    """Say something harmless after a long silence, never inside an event. Without a head, ask the control plane."""
    silent_since = max(int(stream.keep_alive_at_ns), int(stream.last_sent_ns))
    if plane.now_ns - silent_since < stream.keep_alive_ns or has_output(stream):
        return
    if stream.flags & (m.FLAG_SOURCE_DONE | m.FLAG_PARTIAL | m.FLAG_EXPIRED) or stream.in_flight & _SEND_OR_WRITABLE:
        return
    stream.keep_alive_at_ns = plane.now_ns
    if not stream.flags & m.FLAG_HEAD_SENT:
        raise_control(plane, slot, CONTROL_KEEP_ALIVE)
    elif room_for(plane, stream, KEEP_ALIVE_BYTES):
        tail_before = int(stream.inline_tail)
        append_body(plane, stream, plane.constants + KEEP_ALIVE_OFFSET, KEEP_ALIVE_BYTES)
        disown(stream, tail_before)
        count(plane, KEEP_ALIVES, 1)


@inlined
def _deadline_passed(plane: Any, slot: int, stream: Any) -> bool:
    """Act on the earliest deadline that has passed. True when the stream is closing."""
    now = plane.now_ns
    if stream.write_deadline_ns != 0 and now >= stream.write_deadline_ns:
        begin_closing(plane, slot, st.WRITE_TIMEOUT)
        return True
    if stream.flags & m.FLAG_SOURCE_DONE:
        # What is left is for the client to take; one that takes a byte now and then does not hold a slot for ever.
        overdue = bool(stream.stream_deadline_ns != 0 and now >= stream.stream_deadline_ns)
        if overdue:
            begin_closing(plane, slot, st.STREAM_TIMEOUT)
        return overdue
    if stream.paused == FOR_CLIENT and now >= stream.phase_deadline_ns:
        _restart_silence(plane, stream)  # what ends a stream whose client does not read is its write timeout
    expired = 0
    if stream.phase_deadline_ns != 0 and now >= stream.phase_deadline_ns:
        expired = _phase_reason(stream)
    elif stream.stream_deadline_ns != 0 and now >= stream.stream_deadline_ns:
        expired = st.STREAM_TIMEOUT
    if expired == 0:
        return False
    if stream.source == m.SOURCE_UPSTREAM and not stream.flags & m.FLAG_EXPIRED:
        relay = relay_of(plane, slot)
        if relay.is_draining:
            begin_closing(plane, slot, st.CLIENT_GONE)
            return True
        if expired != st.STREAM_TIMEOUT and stream.state != st.LLM_QUEUED:
            relay_expired(plane, slot)
            return False
    if stream.flags & m.FLAG_EXPIRED:
        begin_closing(plane, slot, stream.expired)
        return True
    # The control plane knows how to say it; if it does not within the grace, the stream is closed without a word.
    stream.flags |= m.FLAG_EXPIRED
    stream.expired = expired
    stream.phase_deadline_ns = now + EXPIRY_GRACE_NS
    stream.stream_deadline_ns = 0
    raise_control(plane, slot, CONTROL_EXPIRED)
    return False


@inlined
def _phase_reason(stream: Any) -> int:
    if stream.state == st.LLM_QUEUED:
        return st.QUEUE_TIMEOUT
    if stream.state == st.LLM_PENDING:
        return st.FIRST_BYTE_TIMEOUT
    return st.SILENCE_TIMEOUT


@inlined
def _next_deadline(plane: Any, slot: int, stream: Any) -> int:
    """The earliest time at which this stream needs service without being asked."""
    earliest = FOREVER_NS
    if stream.write_deadline_ns != 0:
        earliest = min(earliest, int(stream.write_deadline_ns))
    if stream.stream_deadline_ns != 0:
        earliest = min(earliest, int(stream.stream_deadline_ns))
    if stream.source == m.SOURCE_UPSTREAM:
        wake_ns = int(relay_of(plane, slot).wake_ns)
        if wake_ns != 0:
            earliest = min(earliest, wake_ns)
    if not stream.flags & m.FLAG_SOURCE_DONE:
        due_ns = next_due_ns(stream)
        # What is due and was not made waits for room in the block, which the next completed send brings.
        if stream.source == m.SOURCE_PACED and (due_ns > plane.now_ns or not has_output(stream)):
            earliest = min(earliest, max(due_ns, plane.now_ns + 1))
        if stream.hold_ns > plane.now_ns:
            earliest = min(earliest, int(stream.hold_ns))
        if stream.phase_deadline_ns != 0:
            earliest = min(earliest, int(stream.phase_deadline_ns))
        if stream.keep_alive_ns > 0:
            silent_since = max(int(stream.keep_alive_at_ns), int(stream.last_sent_ns))
            earliest = min(earliest, max(silent_since, plane.now_ns - stream.keep_alive_ns // 2) + stream.keep_alive_ns)
    return earliest
