"""API keys of HTTP clients: a file with one key per line, and the user that each key identifies.

A line is `NAME: KEY` or `KEY`; # starts a comment. Limits apply per name, and the ledger records it.
Keys themselves are kept as digests and never shown.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat

from daemon.control.http.api.errors import ApiError

FILE_BYTES_MAX = 1 << 20
KEYS_MAX = 4096
KEY_CHARACTERS_MIN = 8
KEY_CHARACTERS_MAX = 512
MISSING = "Missing or invalid Authorization header. Expected: Bearer <token>"
UNKNOWN = "Invalid API key"
# The syntax of a bearer token (RFC 6750); it excludes the colon, which can therefore end a name.
_is_key = re.compile(r"[A-Za-z0-9._~+/-]+=*").fullmatch
_is_name = re.compile(r"[A-Za-z0-9._@-]{1,64}").fullmatch


class KeysError(ValueError):
    """The file cannot be used. The message names file and line and the remedy, and contains no key."""


class Keys:
    """The keys of one file. Main thread."""

    def __init__(self, path: str) -> None:
        """Raises KeysError."""
        self._path = path
        self._users = _read(path)

    def __len__(self) -> int:
        return len(self._users)

    def reload(self) -> None:
        """Read the file again. On a KeysError the keys stay unchanged."""
        self._users = _read(self._path)

    def user(self, authorization: str | None) -> str:
        """The name of the user with this Authorization header. Raises ApiError 401."""
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "missing_api_key", MISSING, headers={"WWW-Authenticate": "Bearer"})
        digest = _digest(key)
        user = ""
        # Compare with every key, so that timing does not reveal which keys are close.
        for known, name in self._users:
            if hmac.compare_digest(digest, known):
                user = name
        if not user:
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise ApiError(401, "invalid_api_key", UNKNOWN, headers=headers)
        return user


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _read(path: str) -> tuple[tuple[bytes, str], ...]:
    users: dict[bytes, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, separator, key = text.rpartition(":")
        name, key = name.strip(), key.strip()
        where = f"{path}, line {number}"
        if separator and not _is_name(name):
            raise KeysError(f"{where}: a name must be 1 to 64 letters, digits, dots, dashes, underscores or @")
        if not _is_key(key) or not KEY_CHARACTERS_MIN <= len(key) <= KEY_CHARACTERS_MAX:
            raise KeysError(
                f"{where}: a key must be {KEY_CHARACTERS_MIN} to {KEY_CHARACTERS_MAX} letters, digits or any of"
                " - . _ ~ + /, with = at its end"
            )
        digest = _digest(key)
        if digest in users:
            raise KeysError(f"{where}: the key is also on another line")
        users[digest] = name or f"key-{digest.hex()[:8]}"
    if not users:
        raise KeysError(f"{path} holds no key: write one per line, as NAME: KEY or KEY")
    if len(users) > KEYS_MAX:
        raise KeysError(f"{path} holds {len(users)} keys: at most {KEYS_MAX} can be used")
    return tuple(users.items())


def _lines(path: str) -> list[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KeysError(f"{path} cannot be read: {reason}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise KeysError(f"{path} is not a regular file")
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise KeysError(f"{path} can be read or written by everybody: chmod 640, or less, is right for keys")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > FILE_BYTES_MAX:
        raise KeysError(f"{path} is larger than {FILE_BYTES_MAX} bytes")
    try:
        return data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise KeysError(f"{path}, line {line}: only ASCII characters are allowed") from None
