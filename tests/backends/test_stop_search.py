"""Where stop strings are found, against a search in the text itself."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from backends.stop_search import first_stop, token_text

TOKENS = 1200
TEXT = "".join(map(token_text, range(TOKENS)))
STARTS = list(itertools.accumulate((len(token_text(number)) for number in range(TOKENS)), initial=0))


def cut_out(start: int, size: int) -> str:
    return TEXT[start : start + size]


def spanning(start: int, one: str, other: str, tail: str) -> str:
    """The end of a token and the beginning of another, which may not follow it."""
    return "token_"[start:] + one + " token_" + other + tail


shown = some.builds(cut_out, some.integers(0, len(TEXT) - 1), some.integers(1, 60))
alike = some.text("token_0123459 ", min_size=1, max_size=14)
digits = some.text("0123459", max_size=3)
across = some.builds(spanning, some.integers(0, 6), digits, digits, some.sampled_from(["", "", " ", " t"]))
any_stop = some.one_of(shown, alike, across, some.text(min_size=1, max_size=5))


def naive(stops: list[str], tokens: int) -> tuple[int, int] | None:
    """End and start, in characters, of the stop string that is complete first: the text is looked through."""
    text = TEXT[: STARTS[tokens]]
    return min(((at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0), default=None)


def in_characters(stops: list[str], tokens: int) -> tuple[int, int] | None:
    found = first_stop(stops, tokens)
    return found and (STARTS[found.end[0]] + found.end[1], STARTS[found.start[0]] + found.start[1])


@settings(max_examples=1500, deadline=None)
@given(some.lists(any_stop, min_size=1, max_size=4), some.integers(0, TOKENS))
def test_what_is_found_is_what_stands_there_first(stops: list[str], tokens: int) -> None:
    assert in_characters(stops, tokens) == naive(stops, tokens)


def test_every_short_string_of_digits() -> None:
    for size in (1, 2, 3):
        for stop in map("".join, itertools.product("0123456789 _", repeat=size)):
            assert in_characters([stop], TOKENS) == naive([stop], TOKENS), stop


@pytest.mark.parametrize(
    ("stop", "end", "start"),
    [
        ("token_2000000000", (2_000_000_000, 16), (2_000_000_000, 0)),
        ("99 token_12345670", (123_456_700, 14), (123_456_699, 13)),
        ("1999999999 token_20000", (2_000_000_000, 11), (1_999_999_999, 6)),
        ("00000000 ", (100_000_000, 16), (100_000_000, 7)),
    ],
)
def test_far_away(stop: str, end: tuple[int, int], start: tuple[int, int]) -> None:
    assert first_stop([stop], 2**31 - 1) == (end, start)


def test_the_longest_string_costs_little() -> None:
    stop = "".join(map(token_text, range(500_000, 600_000)))
    began_s = time.monotonic()
    assert first_stop([stop, stop[1:] + "x", "0" * 1_000_000, "token_" * 100_000], 10**9) is not None
    assert time.monotonic() - began_s < 2
