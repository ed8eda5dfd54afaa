"""Where a stop string ends the endless text `token_0 token_1 token_2 ...`, found by arithmetic instead of by looking.

What a stop string shows of a number leaves few numbers that it can stand at first: those are tried. So a string that
comes after a thousand million tokens is found as quickly as any other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NUMBER_DIGITS_MAX = 10  # of a token's number: a request has fewer than 2**31
_WORD = "token_"
# The end of a token's text, and what shows of the next ones: the part that spans tokens has their numbers in it.
_INSIDE = re.compile(r"([token_]*)([0-9]*)( ?)")
_ACROSS = re.compile(r"([token_]*)([0-9]*) (t[token_]*)([0-9]*)( .*)?")


class Found(NamedTuple):
    """A stop string in the text: in which token, and at which character of it, it begins and ends."""

    end: tuple[int, int]  # behind its last character
    start: tuple[int, int]


def token_text(number: int) -> str:
    """The text of a token."""
    return f"{_WORD}{number} "


def first_stop(stops: Iterable[str], tokens_max: int) -> Found | None:
    """The stop string that is complete first in so many tokens; of those that end together, the longest."""
    found = [place for stop in stops if (place := _first(stop, tokens_max)) is not None]
    return min(found, default=None)


def _first(stop: str, tokens_max: int) -> Found | None:
    places = (_place(stop, number, tokens_max) for number in _candidates(stop) if 0 <= number < tokens_max)
    return min((place for place in places if place is not None), default=None)


def _place(stop: str, number: int, tokens_max: int) -> Found | None:
    """Where the string stands if it begins in this token, within so many tokens."""
    token = token_text(number)
    # The longest end of the token that the string goes on from: it begins in the token once at most if it leaves it.
    for start in range(len(token)):
        if not stop.startswith(token[start:]) and not token[start:].startswith(stop):
            continue
        end = _follow(stop, number, start, tokens_max)
        if end is not None:
            return Found(end, (number, start))
    return None


def _follow(stop: str, number: int, start: int, tokens_max: int) -> tuple[int, int] | None:
    """Where the string ends that begins at this character, or None where it is another text that stands there."""
    matched, offset = 0, start
    while number < tokens_max:
        piece = token_text(number)[offset:]
        left = len(stop) - matched
        if left <= len(piece):
            return (number, offset + left) if stop.endswith(piece[:left]) else None
        if not stop.startswith(piece, matched):
            return None
        matched += len(piece)
        number, offset = number + 1, 0
    return None


def _candidates(stop: str) -> Iterator[int]:
    """Numbers of tokens in which the string may begin; the first one in which it does is among them."""
    inside = _INSIDE.fullmatch(stop)
    if inside is not None:
        yield from _with_end(inside[2], is_whole=inside[1] != "")
    across = _ACROSS.fullmatch(stop)
    if across is None:
        return
    word, ending, _, beginning, rest = across.groups()
    if len(ending) > NUMBER_DIGITS_MAX or len(beginning) > NUMBER_DIGITS_MAX:
        return
    if rest is not None or not ending:
        # The next number is there, or its beginning: which is the whole number, in the first place where it stands.
        yield int(beginning) - 1 if beginning else 0
    elif word or not beginning:
        yield from _with_end(ending, is_whole=word != "")
    else:
        yield from _between(ending, beginning)


def _with_end(digits: str, *, is_whole: bool) -> Iterator[int]:
    """The least number that has these digits in it; `is_whole`: from its first digit on."""
    if len(digits) > NUMBER_DIGITS_MAX:
        return
    if not digits or digits == "0":
        yield 0
    elif digits[0] != "0":
        yield int(digits)
    elif not is_whole:
        yield int("1" + digits)


def _between(ending: str, beginning: str) -> Iterator[int]:
    """Numbers with this end whose next one has this beginning, for each count of digits the least."""
    modulus = 10 ** len(ending)
    remainder = (int(ending) + 1) % modulus
    for more in range(NUMBER_DIGITS_MAX - len(beginning) + 1):
        least = int(beginning) * 10**more
        first = least + (remainder - least) % modulus
        for following in (first, first + modulus):
            yield following - 1
