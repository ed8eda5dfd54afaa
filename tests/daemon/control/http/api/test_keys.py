"""Keys: what a file may hold, who a header is, and that no message holds a key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from daemon.control.http.api.errors import ApiError
from daemon.control.http.api.keys import Keys, KeysError

if TYPE_CHECKING:
    from pathlib import Path

KEY = "your-secret-key"
OTHER = "sk-Other.key_with~all+/of-them=="


def written(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refusal(keys: Keys, header: str | None) -> ApiError:
    with pytest.raises(ApiError) as raised:
        keys.user(header)
    assert raised.value.status == 401
    assert b'"type":"authentication_error"' in raised.value.body
    return raised.value


def test_names_and_keys(tmp_path: Path) -> None:
    keys = Keys(written(tmp_path, f"# ours\n\n alice : {KEY} \n{OTHER}\nalice:another-key\n"))
    assert len(keys) == 3
    assert keys.user(f"Bearer {KEY}") == "alice"
    assert keys.user("bearer   another-key") == "alice"
    unnamed = keys.user(f"BEARER {OTHER}")
    assert unnamed.startswith("key-")
    assert OTHER not in unnamed


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer\t{KEY}"])
def test_no_key(tmp_path: Path, header: str | None) -> None:
    error = refusal(Keys(written(tmp_path, KEY)), header)
    assert error.message == "Missing or invalid Authorization header. Expected: Bearer <token>"
    assert error.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "x", KEY.upper(), "\xff" * 9, KEY + " " + KEY])
def test_a_wrong_key(tmp_path: Path, key: str) -> None:
    error = refusal(Keys(written(tmp_path, KEY)), f"Bearer {key}")
    assert error.message == "Invalid API key"
    assert error.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("good-key-1\nshort\n", "line 2: a key must be 8 to 512"),
        ("with space in it", "line 1: a key must be"),
        ("x" * 513, "line 1: a key must be"),
        (f"a name: {KEY}", "line 1: a name must be"),
        (f": {KEY}", "line 1: a name must be"),
        (f"{KEY}\n\nbob: {KEY}", "line 3: the key is also on another line"),
        (f"{KEY}\n\u00e9", "line 2: only ASCII"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(KeysError) as raised:
        Keys(path)
    assert said in str(raised.value)
    assert str(raised.value).startswith(path)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_file_that_everybody_can_read(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeysError, match="chmod 640"):
        Keys(written(tmp_path, KEY, mode))
    assert len(Keys(written(tmp_path, KEY, 0o640))) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "cannot be read"), (tmp_path, "not a regular file")):
        with pytest.raises(KeysError, match=said):
            Keys(str(path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeysError, match="not a regular file"):  # and does not wait for a writer
        Keys(str(tmp_path / "pipe"))


def test_too_much(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="at most 4096"):
        Keys(written(tmp_path, "\n".join(f"key-number-{index}" for index in range(4097))))
    with pytest.raises(KeysError, match="larger than"):
        Keys(written(tmp_path, "#" * (1 << 20) + "\n" + KEY))


def test_a_reload(tmp_path: Path) -> None:
    keys = Keys(written(tmp_path, f"a: {KEY}"))
    written(tmp_path, "b: another-key")
    keys.reload()
    assert keys.user("Bearer another-key") == "b"
    refusal(keys, f"Bearer {KEY}")
    written(tmp_path, "wrong")
    with pytest.raises(KeysError):
        keys.reload()
    assert keys.user("Bearer another-key") == "b"
