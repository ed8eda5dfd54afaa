"""Backends by name: those of the project, and a user's own, named `package.module:Class` in `[backend.NAME]`.

A module is imported only when its backend is in use, at start: what is off costs neither memory nor time.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

import msgspec

from backends.interface import Backend, OptionError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from config.settings import Settings

# Always there, because they import nothing else.
_BUILT_IN = {"mock": "backends.mock:Mock", "echo": "backends.echo:Echo"}
# Only there where something is to be relayed from: it imports more, and an error in its section is one at start.
_OPENAI = "openai"
_OPENAI_PATH = "backends.openai:OpenAI"
# Only there where it is asked for: it needs an extra, and compiles.
_MEL = "mel"
_MEL_PATH = "backends.mel.backend:Mel"
# Only there where it is asked for: it is for load tests.
_TEST_MODEL = "test_model"
_TEST_MODEL_PATH = "backends.test_model:TestModel"
_CLASS_KEY = "class"


class RegistryError(Exception):
    """A backend of the configuration cannot be used; the message names its section and says why."""


class Registry:
    """The backends of one process. Made at start, read by admission."""

    def __init__(self, settings: Settings) -> None:
        """Import and construct every backend that is built in or has a section. Raises RegistryError."""
        self._backends: dict[str, Backend] = {}
        for name, path in _paths(settings).items():
            with _told(name, path):
                self._backends[name] = _class_of(name, path)(_options(settings, name))

    def names(self) -> list[str]:
        """The known names, sorted."""
        return sorted(self._backends)

    def get(self, name: str) -> Backend | None:
        """The backend of this name."""
        return self._backends.get(name)

    def __iter__(self) -> Iterator[tuple[str, Backend]]:
        return iter(self._backends.items())

    def reload(self, settings: Settings) -> None:
        """Hand every backend its section as it is now."""
        for name, backend in self._backends.items():
            backend.reload(_options(settings, name))

    def close(self) -> None:
        """The daemon ends: every backend lets go of what it holds."""
        for backend in self._backends.values():
            backend.close()


def _options(settings: Settings, name: str) -> Mapping[str, Any]:
    if name == "mock" and name not in settings.backend.others:
        options: dict[str, Any] = msgspec.to_builtins(settings.backend.mock)
        return {**options, "message_delay_ms": settings.streaming.message_delay_ms}
    if name == _OPENAI and name not in settings.backend.others:
        relayed: dict[str, Any] = msgspec.to_builtins(settings.backend.openai)
        return relayed
    if name == _MEL and name not in settings.backend.others:
        computed: dict[str, Any] = msgspec.to_builtins(settings.backend.mel)
        return {**computed, "data_dir": settings.server.data_dir}
    if name == _TEST_MODEL and name not in settings.backend.others:
        generated: dict[str, Any] = msgspec.to_builtins(settings.backend.test_model)
        return generated
    return {key: value for key, value in settings.backend.others.get(name, {}).items() if key != _CLASS_KEY}


def check(settings: Settings) -> list[str]:
    """Look at what `Registry` would construct, without opening anything: warnings. Raises RegistryError."""
    found: list[str] = []
    for name, path in _paths(settings).items():
        with _told(name, path):
            found += _class_of(name, path).check(_options(settings, name))
    return found


def _paths(settings: Settings) -> dict[str, str]:
    """The class of every backend that there is to be, by name. Raises RegistryError."""
    paths = dict(_BUILT_IN)
    if settings.uses_openai and _OPENAI not in settings.backend.others:
        paths[_OPENAI] = _OPENAI_PATH
    if settings.uses_mel and _MEL not in settings.backend.others:
        paths[_MEL] = _MEL_PATH
    if settings.uses_test_model and _TEST_MODEL not in settings.backend.others:
        paths[_TEST_MODEL] = _TEST_MODEL_PATH
    for name, section in settings.backend.others.items():
        own = section.get(_CLASS_KEY)
        if name in _BUILT_IN and own is None:
            continue
        if not isinstance(own, str):
            raise RegistryError(f'[backend.{name}] names no class: write class = "package.module:Class"')
        paths[name] = own
    if settings.server.backend not in paths:
        known = ", ".join(sorted({*paths, _OPENAI, _TEST_MODEL}))
        raise RegistryError(f"there is no backend {settings.server.backend!r}: known are {known}")
    return paths


@contextlib.contextmanager
def _told(name: str, path: str) -> Generator[None]:
    """What a backend's class says of its section, as an error of the registry's."""
    try:
        yield
    except OptionError as error:
        told = str(error)
        # Ours name the whole key, which says where it stands.
        raise RegistryError(told if told.startswith(f"backend.{name}") else f"[backend.{name}]: {told}") from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        where = f"[backend.{name}] class = {path!r}"
        raise RegistryError(f"{where}: {type(error).__name__}: {error}") from error


def _class_of(name: str, path: str) -> type[Backend]:
    where = f"[backend.{name}] class = {path!r}"
    module_name, separator, class_name = path.partition(":")
    if not (module_name and separator and class_name):
        raise RegistryError(f"{where}: write it as package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RegistryError(f"{where}: cannot import {module_name}: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise RegistryError(f"{where}: {module_name} has no class {class_name} derived from backends.interface.Backend")
    # Asked of the class, because a wrapper of either method would be called for what it wraps.
    if found.open is Backend.open and found.chunks is Backend.chunks:
        raise RegistryError(f"{where}: {class_name} overrides neither open nor chunks")
    return found
