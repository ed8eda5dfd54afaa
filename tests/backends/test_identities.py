"""Random identities: none comes twice, on whatever thread."""

from __future__ import annotations

import re
import threading

import pytest

from backends.identities import DIGITS_MAX, identity


@pytest.mark.parametrize("digits", [1, 24, DIGITS_MAX])
def test_an_identity_is_hexadecimal(digits: int) -> None:
    assert re.fullmatch(r"[0-9a-f]+", identity(digits))
    assert len(identity(digits)) == digits


@pytest.mark.parametrize("digits", [0, DIGITS_MAX + 1])
def test_there_is_no_other_length(digits: int) -> None:
    with pytest.raises(AssertionError, match="1 to 32"):
        identity(digits)


def test_none_comes_twice_on_whatever_thread() -> None:
    found: list[str] = []

    def take() -> None:
        found.extend([identity() for _ in range(3000)])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 12_000
