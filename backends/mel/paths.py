"""Opening a file that a request names, so that nothing outside one directory can be reached. Any thread; blocks.

The path is walked name by name, each opened relative to the directory before it and without following links. So there
is no moment between a check and its use in which a link could be put in place of what was checked.
"""

from __future__ import annotations

import errno
import os
import stat

from backends.interface import BackendError

PATH_BYTES_MAX = 4096
NAMES_MAX = 128
_DIRECTORY_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a FIFO without a writer would keep the thread for ever.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


def _refused(why: str) -> BackendError:
    return BackendError(403, f"field `audio_path`: {why}")


def names_of(root: str, path: str) -> list[str]:
    """The names below `root` that a path consists of; it may be absolute. BackendError 403 where it leads elsewhere."""
    if not path or "\0" in path or len(path.encode(errors="replace")) > PATH_BYTES_MAX:
        raise BackendError(400, f"field `audio_path`: a path of 1 to {PATH_BYTES_MAX} bytes without NUL is expected")
    names = [name for name in path.split("/") if name not in {"", "."}]
    if ".." in names:
        raise _refused("`..` is not allowed")
    if path.startswith("/"):
        above = [name for name in root.split("/") if name not in {"", "."}]
        if names[: len(above)] != above:
            raise _refused("it must lie below server.data_dir")
        names = names[len(above) :]
    if not names or len(names) > NAMES_MAX:
        raise _refused(f"1 to {NAMES_MAX} names below server.data_dir are expected")
    return names


def open_beneath(root: str, path: str) -> int:
    """A descriptor of the regular file `path` below the directory `root`; the caller closes it.

    BackendError: 400 for no path at all, 403 for one that is not allowed (a link, `..`, another directory, no regular
    file, no permission), 404 where there is nothing.
    """
    names = names_of(root, path)
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(500, f"server.data_dir cannot be opened: {os.strerror(error.errno or 0)}") from None
    try:
        for name in names[:-1]:
            inner = _open(name, _DIRECTORY_FLAGS, directory)
            os.close(directory)
            directory = inner
            if stat.S_ISLNK(os.fstat(directory).st_mode):
                raise _refused("symbolic links are not followed")
        return _regular(_open(names[-1], _FILE_FLAGS, directory))
    finally:
        os.close(directory)


def _open(name: str, flags: int, directory: int) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except (OSError, UnicodeEncodeError) as error:
        number = error.errno if isinstance(error, OSError) else errno.ENOENT
        if number in _ABSENT:
            raise BackendError(404, "field `audio_path`: there is no such file") from None
        if number == errno.ELOOP:
            raise _refused("symbolic links are not followed") from None
        if number in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            raise BackendError(503, "no descriptors are left for another file") from None
        raise _refused("it cannot be opened") from None


def _regular(descriptor: int) -> int:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _refused("it is no regular file")
