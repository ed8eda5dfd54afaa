"""The pool and its threads, against a plane that a test plays: what is pushed, when, and what happens when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import logging
import os
import select
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends.interface import Backend, BackendError, Cancelled, Fields, Request
from daemon.control.channel.responses import STANDARD_HEAD
from daemon.control.stream.job import Job
from daemon.control.workers.pool import WorkerPool
from daemon.plane import messages as m
from daemon.plane import state as st
from tests.daemon.control.channels import Channels, Recorded, event, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES = 16_384


class Given(Backend):
    """A backend that is a function."""

    def __init__(self, function: Callable[[Request], Iterator[str | bytes]]) -> None:
        super().__init__({})
        self.function = function

    def chunks(self, request: Request) -> Iterator[str | bytes]:
        return self.function(request)


class House:
    """A pool and the plane's ends of its channels."""

    def __init__(self, threads: int = 1, queue_count_max: int = 100, block_bytes: int = BLOCK_BYTES) -> None:
        self.channels = Channels()
        pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(threads)]
        self.read_fds = [pipe[0] for pipe in pipes]
        self.write_fds = [pipe[1] for pipe in pipes]
        self.pool = WorkerPool(
            self.read_fds,
            self.channels.command_fd,
            queue_count_max=queue_count_max,
            output_block_bytes=block_bytes,
            credit_bytes=1 << 18,
        )
        self._slot = 0

    def close(self) -> None:
        assert self.pool.stop(10)
        self.channels.close()
        for fd in (*self.read_fds, *self.write_fds):
            os.close(fd)

    def run(self, function: Callable[[Request], Iterator[str | bytes]], **attributes: object) -> Job:
        """A job for this function, given out."""
        self._slot += 1
        job = Job(self._slot, 7, "given", Given(function), Request(Fields(prompt="p")))
        for name, value in attributes.items():
            setattr(job, name, value)
        assert self.pool.reserve()
        self.pool.enqueue(job)
        return job

    def started(self) -> Recorded:
        command = self.channels.next_command()
        assert command.kind == m.START
        return command

    def tell(self, job: Job, kind: int, worker: int = 0, **fields: int) -> None:
        """An event of the job's stream to a worker."""
        os.write(self.write_fds[worker], event(kind, slot=job.slot, generation=job.generation, **fields))

    def settled(self, job: Job) -> None:
        deadline_s = time.monotonic() + 30
        while not job.settled:
            assert time.monotonic() < deadline_s, "the job is not settled"
            time.sleep(0.002)


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def until_cancelled(request: Request) -> Iterator[str | bytes]:
    while not request.pause(10):
        pass
    yield from ()


# ------------------------------------------------------------------------------------------------------- good streams


def test_a_stream_from_start_to_finish(house: House) -> None:
    job = house.run(lambda _request: iter(["one", b"data: two\n\n"]))
    start, first, second, finish = (house.channels.next_command() for _ in range(4))
    assert (start.kind, start.slot, start.generation, start.channel) == (m.START, 1, 7, 1)
    assert (first.kind, first.flags, first.payload) == (m.PUSH, m.STANDARD_HEAD, b'data: {"content":"one"}\n\n')
    assert (second.kind, second.flags, second.payload) == (m.PUSH, 0, b"data: two\n\n")
    assert (finish.kind, finish.flags, finish.payload) == (m.FINISH, m.COMPLETE, b"data: [DONE]\n\n")
    assert finish.reason == st.COMPLETE
    house.settled(job)


def test_a_stream_without_pieces_still_has_head_and_end(house: House) -> None:
    house.run(lambda _request: iter(()))
    house.started()
    finish = house.channels.next_command()
    assert (finish.kind, finish.flags) == (m.FINISH, m.COMPLETE | m.STANDARD_HEAD)


def test_a_head_of_its_own(house: House) -> None:
    house.run(lambda _request: iter([b"x\n\n", b"y\n\n"]), head=b"HTTP/1.1 200 OK\r\n\r\n")
    house.started()
    first, second = house.channels.next_command(), house.channels.next_command()
    assert (first.head, first.rest, first.flags) == (b"HTTP/1.1 200 OK\r\n\r\n", b"x\n\n", 0)
    assert second.head_bytes == 0


@pytest.mark.parametrize("size", [0, 1, 500, 5000])
@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n", bytes(2000)])
@pytest.mark.parametrize("block_bytes", [8192, BLOCK_BYTES])
def test_the_longest_head_fits_with_the_smallest_block(size: int, end: bytes, block_bytes: int) -> None:
    house = House(block_bytes=block_bytes)
    head, data = b"h" * 3072, bytes(range(250)) * 20
    backend_end = Given.end
    try:
        Given.end = end
        job = house.run(lambda _request: iter([data[:size]]), head=head)
        house.started()
        sent = b""
        while (command := house.channels.next_command()).kind != m.FINISH:
            is_range = command.kind == m.PUSH_RANGE
            sent += ctypes.string_at(command.range_address, command.range_bytes) if is_range else command.payload
        house.tell(job, m.STOPPED)
        house.settled(job)
    finally:
        Given.end = backend_end
        house.close()
    assert sent + command.payload == head + data[:size] + end


def test_pieces_that_end_inside_an_event_say_so(house: House) -> None:
    house.run(lambda _request: iter([b"data: a", b"", b"b\n\n"]))
    house.started()
    assert house.channels.next_command().flags == m.STANDARD_HEAD | m.PARTIAL
    assert house.channels.next_command().flags == 0


def test_large_pieces_go_by_address_and_stay_alive_until_stopped(house: House) -> None:
    job = house.run(lambda _request: iter([os.urandom(100_000) + b"\n\n" for _ in range(2)]))
    house.started()
    first = house.channels.next_command()
    assert first.flags == m.STANDARD_HEAD | m.PARTIAL
    rest = house.channels.next_command()
    assert (rest.kind, rest.range_bytes) == (m.PUSH_RANGE, 100_002 - len(first.payload))
    assert ctypes.string_at(rest.range_address, rest.range_bytes).endswith(b"\n\n")
    whole = house.channels.next_command()
    assert (whole.kind, whole.flags, whole.range_bytes) == (m.PUSH_RANGE, 0, 100_002)
    assert house.channels.next_command().kind == m.FINISH
    time.sleep(0.05)
    assert not job.settled
    assert ctypes.string_at(whole.range_address + 100_000, 2) == b"\n\n"
    house.tell(job, m.RELEASED, released_ranges=1)
    time.sleep(0.05)
    assert not job.settled
    house.tell(job, m.STOPPED)
    house.settled(job)


def test_a_worker_takes_the_next_job_while_the_last_one_is_still_sent(house: House) -> None:
    first = house.run(lambda _request: iter([bytes(50_000)]))
    house.started()
    while house.channels.next_command().kind != m.FINISH:
        pass
    second = house.run(lambda _request: iter(["x"]))
    assert house.started().slot == second.slot
    house.settled(second)
    assert not first.settled
    house.tell(first, m.STOPPED)
    house.settled(first)


def test_no_more_than_the_credit_is_pushed(house: House) -> None:
    job = house.run(lambda _request: iter([b"%04d" % n + bytes(994) + b"\n\n" for n in range(60)]))
    house.started()
    pushed, released, count = len(STANDARD_HEAD), 0, 0
    while True:
        if house.channels.nothing_comes(0.1):
            assert BLOCK_BYTES // 2 < pushed - released <= BLOCK_BYTES - 64
            released = pushed
            house.tell(job, m.RELEASED, released_bytes=released)
        command = house.channels.next_command()
        if command.kind == m.FINISH:
            break
        assert command.payload[:4] == b"%04d" % count
        count += 1
        pushed += len(command.payload)
    assert count == 60


def test_no_more_ranges_than_the_plane_takes(house: House) -> None:
    job = house.run(lambda _request: iter([bytes(10_000) for _ in range(10)]))
    house.started()
    assert house.channels.next_command().kind == m.PUSH
    for _ in range(3):
        assert house.channels.next_command().kind == m.PUSH_RANGE
    assert house.channels.nothing_comes(0.05)
    house.tell(job, m.RELEASED, released_ranges=2)
    for _ in range(2):
        assert house.channels.next_command().kind == m.PUSH_RANGE
    assert house.channels.nothing_comes(0.05)
    house.tell(job, m.STOPPED)
    house.settled(job)


def test_a_full_command_pipe_is_waited_for(house: House) -> None:
    house.run(lambda _request: iter(["x"]))
    house.started()
    while house.channels.next_command().kind != m.FINISH:
        pass
    filling = bytes(64)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(house.channels.command_fd, filling)
    house.run(lambda _request: iter(["late"]))
    time.sleep(0.05)
    commands: list[Recorded] = []
    while not commands or commands[-1].kind != m.FINISH:
        commands += [command for data in house.channels.writes() if data != filling for command in parse(data)]
    assert [command.kind for command in commands] == [m.START, m.PUSH, m.FINISH]
    assert commands[1].payload == b'data: {"content":"late"}\n\n'


# ------------------------------------------------------------------------------------------------------- failures


def test_a_backends_own_exception_tells_the_client_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_request: Request) -> Iterator[str | bytes]:
        yield "first"
        raise ValueError("a secret")

    with caplog.at_level(logging.ERROR):
        job = house.run(fails)
        house.started()
        house.channels.next_command()
        stop = house.channels.next_command()
        house.settled(job)
    assert (stop.kind, stop.reason) == (m.STOP, st.BACKEND_ERROR)
    assert stop.head.startswith(b"HTTP/1.1 500 ")
    assert stop.rest.startswith(b"event: error\n")
    assert b"secret" not in stop.payload
    assert "ValueError: a secret" in caplog.text


def test_a_backend_that_knows_what_is_wrong_may_say_it(house: House) -> None:
    def fails(_request: Request) -> Iterator[str | bytes]:
        raise BackendError(502, "the model is not loaded")

    house.run(fails)
    house.started()
    stop = house.channels.next_command()
    assert stop.head.startswith(b"HTTP/1.1 502 ")
    assert b"the model is not loaded" in stop.head
    assert b"the model is not loaded" in stop.rest


def test_a_backend_may_name_the_field_to_clients_of_the_front(house: House) -> None:
    def fails(_request: Request) -> Iterator[str | bytes]:
        raise BackendError(400, "too hot", param="temperature")

    house.run(fails, lines=b"X-Request-Id: 1\r\n")
    house.started()
    stop = house.channels.next_command()
    assert json.loads(stop.head.partition(b"\r\n\r\n")[2])["error"]["param"] == "temperature"
    house.run(fails)  # a handoff's client gets a problem, which has no such member
    house.started()
    assert b"temperature" not in house.channels.next_command().head


def test_the_thread_survives_every_failure(house: House) -> None:
    errors = (RecursionError(), SystemExit(), asyncio.CancelledError(), BackendError(502, ValueError("no text")))  # type: ignore[arg-type]

    def fails(request: Request) -> Iterator[str | bytes]:
        raise errors[int(request.prompt)]

    for number in range(len(errors)):
        house.settled(house.run(fails, request=Request(Fields(prompt=str(number)))))
        house.started()
        stop = house.channels.next_command()
        assert (stop.kind, stop.reason) == (m.STOP, st.BACKEND_ERROR)
    house.run(lambda _request: iter(["fine"]))
    assert house.pool.thread_count == 1


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (os, "eventfd", OSError(errno.EMFILE, "Too many open files")),
        (select, "epoll", OSError(errno.EMFILE, "Too many open files")),
        (threading.Thread, "start", RuntimeError("can't start new thread")),
    ],
)
def test_a_worker_that_cannot_be_started_leaves_its_stream_in_the_queue(
    house: House, module: object, name: str, error: Exception
) -> None:
    def fails(*_arguments: object) -> None:
        raise type(error)(*error.args)  # a new one: its traceback keeps what was made until then

    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, fails)
        first = house.run(lambda _request: iter(["one"]))
    assert (house.pool.queued_count, house.pool.thread_count) == (1, 0)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    second = house.run(lambda _request: iter(["two"]))
    house.settled(first)
    house.settled(second)
    assert house.pool.thread_count == 1


# ------------------------------------------------------------------------------------------------------- early ends


def test_a_client_that_leaves_closes_the_generator(house: House) -> None:
    closed = threading.Event()

    def endless(request: Request) -> Iterator[str | bytes]:
        try:
            while True:
                request.pause(0.005)
                yield "tick"
        finally:
            closed.set()

    job = house.run(endless)
    house.started()
    house.channels.next_command()
    house.tell(job, m.STOPPED)
    assert closed.wait(30)
    house.settled(job)


def test_a_backend_that_waits_is_woken(house: House) -> None:
    job = house.run(until_cancelled)
    house.started()
    house.tell(job, m.STOPPED)
    house.settled(job)


def test_a_backend_may_poll_a_descriptor_of_its_own_and_ours(house: House) -> None:
    answers: list[bool] = []

    def polls(request: Request) -> Iterator[str | bytes]:
        answers.append(request.cancelled())
        yield "asked once"
        select.select([request.cancel_fd], [], [], 10)
        answers.append(request.cancelled())

    job = house.run(polls)
    house.started()
    assert house.channels.next_command().kind == m.PUSH
    house.tell(job, m.STOPPED)
    house.settled(job)
    assert answers == [False, True]


def test_a_stream_that_was_gone_before_its_start_is_ended_by_the_control_plane(house: House) -> None:
    job = house.run(lambda _request: iter([bytes(50_000)] * 20))
    house.started()
    while house.channels.next_command().kind != m.PUSH_RANGE:
        pass
    house.pool.cancel(job)
    time.sleep(0.05)
    assert not job.settled  # the plane may still have its START, and read its ranges
    house.pool.end(job)
    house.settled(job)


def test_a_job_that_is_cancelled_while_queued_never_runs(house: House) -> None:
    first = house.run(until_cancelled)
    house.started()
    ran: list[int] = []

    def remembers(_request: Request) -> Iterator[str | bytes]:
        ran.append(1)
        yield "x"

    second = house.run(remembers)
    assert house.pool.queued_count == 1
    house.pool.cancel(second)
    house.pool.end(second)
    assert second.settled
    assert house.pool.queued_count == 0
    house.tell(first, m.STOPPED)
    house.settled(first)
    assert not ran


def test_a_job_that_is_cancelled_before_it_is_given_out_never_runs(house: House) -> None:
    job = Job(1, 1, "given", Given(until_cancelled), Request(Fields()))
    assert house.pool.reserve()
    house.pool.cancel(job)
    house.pool.enqueue(job)
    assert job.settled
    assert house.pool.queued_count == 0
    assert house.pool.thread_count == 0


def test_a_generator_that_does_not_let_go_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def stubborn(request: Request) -> Iterator[str | bytes]:
        try:
            while True:
                request.pause(0.005)
                yield "x"
        finally:
            raise OSError("cannot close")

    with caplog.at_level(logging.DEBUG):
        job = house.run(stubborn)
        house.started()
        house.tell(job, m.STOPPED)
        house.settled(job)
    assert "cannot close" in caplog.text
    house.settled(house.run(lambda _request: iter(["fine"])))


# ------------------------------------------------------------------------------------------------------- uploads


def lend(house: House, job: Job, data: bytes, flags: int = 0) -> ctypes.Array[ctypes.c_char]:
    memory = ctypes.create_string_buffer(data, max(len(data), 1))
    house.tell(job, m.BODY, piece_address=ctypes.addressof(memory), piece_bytes=len(data), flags=flags)
    return memory


def test_an_upload_arrives_piece_by_piece_and_each_is_given_back(house: House) -> None:
    job = house.run(lambda request: request.body, has_body=True)
    house.started()
    for number in range(3):
        memory = lend(house, job, b"piece %d\n\n" % number, m.BODY_LAST if number == 2 else 0)
        assert house.channels.next_command().kind == m.BODY_RETURN
        assert house.channels.next_command().payload == b"piece %d\n\n" % number
        del memory
    assert house.channels.next_command().kind == m.FINISH


@pytest.mark.parametrize("flags", [m.BODY_TRUNCATED, m.BODY_MALFORMED])
def test_an_upload_that_breaks_off(house: House, flags: int) -> None:
    job = house.run(lambda request: request.body, has_body=True)
    house.started()
    lend(house, job, b"", flags)
    assert house.channels.next_command().kind == m.BODY_RETURN
    stop = house.channels.next_command()
    assert (stop.kind, stop.reason) == (m.STOP, st.BODY_TRUNCATED)
    assert stop.head.startswith(b"HTTP/1.1 400 ")


def test_pieces_that_nobody_takes_are_given_back_all_the_same(house: House) -> None:
    go = threading.Event()

    def ignores(request: Request) -> Iterator[str | bytes]:
        while not request.cancelled() and not go.is_set():
            time.sleep(0.005)
        yield "done"

    job = house.run(ignores, has_body=True)
    house.started()
    lend(house, job, b"abc")
    time.sleep(0.05)
    assert house.channels.nothing_comes(0)
    go.set()
    kinds = [house.channels.next_command().kind for _ in range(3)]
    assert kinds == [m.PUSH, m.FINISH, m.BODY_RETURN]
    lend(house, job, b"late")
    assert house.channels.next_command().kind == m.BODY_RETURN


def test_a_client_that_leaves_during_its_upload(house: House) -> None:
    seen: list[type[BaseException]] = []

    def reads(request: Request) -> Iterator[str | bytes]:
        try:
            yield from request.body
        except BaseException as error:
            seen.append(type(error))
            raise

    job = house.run(reads, has_body=True)
    house.started()
    house.tell(job, m.STOPPED)
    house.settled(job)
    assert seen == [Cancelled]


# ------------------------------------------------------------------------------------------------------- the pool


def test_threads_are_started_as_they_are_needed() -> None:
    house = House(threads=3)
    jobs = [house.run(until_cancelled) for _ in range(2)]
    assert {house.started().channel, house.started().channel} == {1, 2}
    assert house.pool.thread_count == 2
    for job in jobs:
        house.pool.end(job)
        house.settled(job)
    jobs = [house.run(until_cancelled) for _ in range(5)]
    assert house.pool.thread_count == 3
    assert {house.started().channel for _ in range(3)} == {1, 2, 3}
    assert house.pool.queued_count == 2
    house.close()


def test_the_queue_is_bounded() -> None:
    house = House(threads=1, queue_count_max=2)
    house.run(until_cancelled)
    house.started()
    for _ in range(2):
        house.run(until_cancelled)
    assert not house.pool.reserve()
    house.close()


def test_jobs_run_in_the_order_they_came(house: House) -> None:
    jobs = [house.run(lambda _request: iter(())) for _ in range(20)]
    slots = [command.slot for command in (house.channels.next_command() for _ in range(40)) if command.kind == m.START]
    assert slots == [job.slot for job in jobs]


def test_signals_are_not_delivered_to_workers(house: House) -> None:
    masks: list[str] = []

    def looks(_request: Request) -> Iterator[str | bytes]:
        status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
        masks.append(next(line for line in status.splitlines() if line.startswith("SigBlk")))
        yield "x"

    house.settled(house.run(looks))
    assert int(masks[0].split()[1], 16) & (1 << 14)


def test_the_pool_stops_under_load_and_says_when_it_cannot() -> None:
    house = House(threads=2)
    go = threading.Event()

    def stuck(_request: Request) -> Iterator[str | bytes]:
        go.wait(10)
        yield "x"

    house.run(stuck)
    house.run(until_cancelled)
    house.run(until_cancelled)
    assert not house.pool.stop(0.05)
    go.set()
    house.close()


def test_many_jobs_on_many_threads() -> None:
    house = House(threads=8, queue_count_max=1000)
    jobs = [house.run(lambda _request: iter(["a", "b"])) for _ in range(300)]
    commands: dict[int, list[Recorded]] = {job.slot: [] for job in jobs}
    for _ in range(300 * 4):
        command = house.channels.next_command()
        commands[command.slot].append(command)
    for found in commands.values():
        assert [command.kind for command in found] == [m.START, m.PUSH, m.PUSH, m.FINISH]
    for job in jobs:
        house.settled(job)
    house.close()
