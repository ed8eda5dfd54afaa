"""Headers that a configuration may add to requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from config.headers import HOP_BY_HOP, OWN, fault


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-A": "b", "Authorization": "Basic eA==", "api-key": "k", "User-Agent": "me (1.0)"},
        {"X-Empty": "", "X-Tab": "a\tb", "x!#$%&'*+-.^_`|~9": "~"},
        {"X": "v" * 4096},
    ],
)
def test_headers_that_are_permitted(headers: dict[str, str]) -> None:
    assert fault(headers) == ""


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP | OWN))
def test_headers_that_are_the_daemons_own(name: str) -> None:
    for written in (name, name.title(), name.upper()):
        assert fault({"X-A": "b", written: "x"}).startswith(f"{written} is refused: ")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "a\r\nb", "x" * 129])
def test_names_that_are_none(name: str) -> None:
    assert "is not a header name" in fault({name: "x"})


@pytest.mark.parametrize("value", ["a\r\nb", "a\n", "\0", "\x7f", "ä", " a", "a ", "\ta", "v" * 4097])
def test_values_that_are_refused_and_not_repeated(value: str) -> None:
    assert fault({"X-A": value}) == (
        "the value of X-A is refused: permitted is printable ASCII without space at its ends"
    )


def test_a_header_is_given_once() -> None:
    assert fault({"X-A": "1", "x-a": "2"}) == "x-a is given twice"


@given(some.dictionaries(some.text(), some.text()))
def test_what_is_permitted_adds_no_line(headers: dict[str, str]) -> None:
    if not fault(headers):
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        assert text.isascii()
        assert text.count("\n") == text.count("\r") == len(headers)
        assert "\0" not in text
