"""Which backend serves which model. Pure; the service says what there is, and says it again when that changes."""

from __future__ import annotations

import time
from typing import NamedTuple

from daemon.control.http.api.errors import ApiError

TEST_BACKEND = "test_model"
RELAYING_BACKEND = "openai"
TEST_MODEL = "test-model"
OWNER = "streaming-daemon"
# Other names of the test model, as long as there is no upstream that may have models of these names.
TEST_ALIASES = frozenset({"test", "default"})


class UpstreamModels(NamedTuple):
    """An upstream, and what may be asked of it; no names at all: anything."""

    name: str
    models: tuple[str, ...] = ()


class Served(NamedTuple):
    """What a daemon has."""

    backends: frozenset[str]  # names of those that are configured
    upstreams: tuple[UpstreamModels, ...] = ()
    default_model: str = ""  # what upstreams are asked for where a request names no model; empty: nothing is


class Target(NamedTuple):
    """Who makes an answer. `model` is the name that the backend is given; None: its default."""

    backend: str
    model: str | None


class Router:
    """Routes for the models of one daemon. Main thread."""

    def __init__(self, served: Served, *, created_s: int | None = None) -> None:
        """`created_s` is what models say of their creation, in Unix time; the start of the daemon is as good as any."""
        self._created_s = int(time.time()) if created_s is None else created_s
        self.configure(served)

    def configure(self, served: Served) -> None:
        """From now on this is what there is."""
        self._has_test = TEST_BACKEND in served.backends
        self._relays = RELAYING_BACKEND in served.backends
        upstreams = served.upstreams if self._relays else ()
        self._takes_any = self._relays and (not upstreams or any(not upstream.models for upstream in upstreams))
        owners: dict[str, str] = {TEST_MODEL: OWNER} if self._has_test else {}
        for upstream in upstreams:
            for model in upstream.models:
                owners.setdefault(model, upstream.name)
        if self._takes_any and served.default_model:
            open_names = [upstream.name for upstream in upstreams if not upstream.models]
            owners.setdefault(served.default_model, next(iter(open_names), RELAYING_BACKEND))
        self._owners = dict(sorted(owners.items()))

    def route(self, model: str | None) -> Target:
        """Who serves it. Raises ApiError 404."""
        if model == TEST_MODEL and self._has_test:
            return Target(TEST_BACKEND, TEST_MODEL)
        if self._relays:
            if not model or self._takes_any or model in self._owners:
                return Target(RELAYING_BACKEND, model or None)
        elif self._has_test and (not model or model in TEST_ALIASES):
            return Target(TEST_BACKEND, TEST_MODEL)
        raise _unknown(model)

    def models(self) -> list[dict[str, object]]:
        """What can be asked for by name, sorted, as OpenAI lists it."""
        return [self._shown(model, owner) for model, owner in self._owners.items()]

    def model(self, name: str) -> dict[str, object]:
        """One of them. Raises ApiError 404."""
        owner = self._owners.get(name)
        if owner is None:
            raise _unknown(name)
        return self._shown(name, owner)

    def _shown(self, model: str, owner: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": self._created_s, "owned_by": owner}


def _unknown(model: str | None) -> ApiError:
    # A client may have written anything there, but it is told what it wrote: that is how it finds its mistake.
    what = "no model is served here by default" if not model else f"the model {_shown(model)} does not exist here"
    return ApiError(404, "model_not_found", f"{what}: GET /v1/models lists those that do", param="model")


def _shown(model: str) -> str:
    return repr(model[:64] + ("..." if len(model) > 64 else ""))
