"""Numbers of endpoints: told once, held by attempts, and used again when nothing of the old address can be left."""

from __future__ import annotations

import pytest

from backends.relay import Origin
from daemon.control.relay.endpoints import REUSE_DELAY_S, Endpoints
from daemon.plane import messages as m
from daemon.plane.relay_table import ENDPOINT_COUNT_MAX
from tests.daemon.control.channels import parse

ORIGIN = Origin("upstream", "http", "upstream.test", 80)


class Book:
    """Endpoints with a clock that stands still, and what the plane makes of what it is told."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.leads_to: dict[int, bytes] = {}
        self.told = 0
        self.endpoints = Endpoints(self._tell, lambda: self.now_s)

    def _tell(self, command: bytes) -> None:
        (told,) = parse(command)
        assert told.kind == m.ENDPOINT
        self.told += 1
        if told.payload:
            # The plane closes kept connections when it forgets, not when it hears of another address.
            assert not self.leads_to.get(told.endpoint), "a number leads elsewhere, and was not forgotten"
        self.leads_to[told.endpoint] = told.payload

    def take(self, name: str, origin: Origin = ORIGIN) -> int:
        number = self.endpoints.take(origin, name.encode())
        assert number < 0 or self.leads_to[number] == name.encode()
        return number

    def use(self, name: str) -> int:
        number = self.take(name)
        self.endpoints.give_back(number)
        return number

    def fill(self) -> list[int]:
        return [self.use(f"old {index}") for index in range(ENDPOINT_COUNT_MAX)]


@pytest.fixture(name="book")
def _book() -> Book:
    return Book()


def test_an_address_is_told_once(book: Book) -> None:
    assert [book.take("a"), book.take("b"), book.take("a")] == [0, 1, 0]
    assert book.told == 2


def test_who_keeps_connections_otherwise_has_a_number_of_its_own(book: Book) -> None:
    other = Origin("other", "http", "upstream.test", 80, idle_timeout_ms=1)
    assert book.take("a") == 0
    book.leads_to.clear()
    assert book.take("a", other) == 1


def test_numbers_do_not_run_out(book: Book) -> None:
    for index in range(10 * ENDPOINT_COUNT_MAX):
        assert book.use(f"address {index}") >= 0
        book.now_s += 0.1


def test_the_number_used_longest_ago_is_used_again(book: Book) -> None:
    book.fill()
    book.now_s += REUSE_DELAY_S
    book.use("old 0")
    book.now_s += 0.1
    assert [book.use("new"), book.use("newer")] == [1, 2]
    assert book.use("old 0") == 0


def test_one_that_leads_nowhere_is_used_first(book: Book) -> None:
    book.fill()
    book.endpoints.forget({b"old 77"})
    book.now_s += REUSE_DELAY_S + 0.1
    assert book.use("new") == 77


def test_a_number_is_not_used_again_soon_after_its_end(book: Book) -> None:
    book.fill()
    book.endpoints.forget({b"old 3"})
    book.now_s += REUSE_DELAY_S - 0.1
    assert book.take("new") == -1
    book.now_s += 0.2
    assert book.take("new") == 3


def test_a_number_that_is_held_keeps_its_meaning(book: Book) -> None:
    held = [book.take(f"held {index}") for index in range(ENDPOINT_COUNT_MAX)]
    book.endpoints.forget_others([b"held 0"])
    book.now_s += 100 * REUSE_DELAY_S
    assert book.take("new") == -1
    book.endpoints.give_back(held[9])
    assert book.take("new") == -1
    book.now_s += REUSE_DELAY_S + 0.1
    assert book.take("new") == held[9]


def test_each_attempt_holds_it(book: Book) -> None:
    for index in range(ENDPOINT_COUNT_MAX):
        book.take(f"held {index}")
    book.take("held 0")
    book.endpoints.give_back(0)
    book.now_s += REUSE_DELAY_S + 0.1
    assert book.take("new") == -1
    book.endpoints.give_back(0)
    book.now_s += REUSE_DELAY_S + 0.1
    assert book.take("new") == 0


def test_who_asks_for_a_forgotten_address_has_it_told_again(book: Book) -> None:
    assert [book.use("a"), book.use("b")] == [0, 1]
    book.endpoints.forget_others([b"a"])
    assert book.leads_to == {0: b"a", 1: b""}
    assert book.use("b") == 1
    assert book.told == 4
