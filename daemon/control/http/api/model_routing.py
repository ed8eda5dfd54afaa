"""Maps models to backends. Pure; the service provides what is configured, again after each reload."""

from __future__ import annotations

import time
from typing import NamedTuple

from daemon.control.http.api.errors import ApiError

TEST_BACKEND = "test_model"
RELAYING_BACKEND = "openai"
TEST_MODEL = "test-model"
OWNER = "streaming-daemon"
# Aliases of the test model, used while no upstream is configured that may have models of these names.
TEST_ALIASES = frozenset({"test", "default"})


class UpstreamModels(NamedTuple):
    """An upstream and its models; no names: any model."""

    name: str
    models: tuple[str, ...] = ()


class Served(NamedTuple):
    """What a daemon serves."""

    backends: frozenset[str]  # names of the configured backends
    upstreams: tuple[UpstreamModels, ...] = ()
    default_model: str = ""  # for requests that name no model; empty: such requests fail


class Target(NamedTuple):
    """Where a request goes. `model` is the name passed to the backend; None: the backend's default."""

    backend: str
    model: str | None


class Router:
    """Routes by model for one daemon. Main thread."""

    def __init__(self, served: Served, *, created_s: int | None = None) -> None:
        """`created_s` is the creation time shown for models, in Unix time; by default the daemon's start."""
        self._created_s = int(time.time()) if created_s is None else created_s
        self.configure(served)

    def configure(self, served: Served) -> None:
        """Replace what is served."""
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
        """The target for a model. Raises ApiError 404."""
        if model == TEST_MODEL and self._has_test:
            return Target(TEST_BACKEND, TEST_MODEL)
        if self._relays:
            if not model or self._takes_any or model in self._owners:
                return Target(RELAYING_BACKEND, model or None)
        elif self._has_test and (not model or model in TEST_ALIASES):
            return Target(TEST_BACKEND, TEST_MODEL)
        raise _unknown(model)

    def models(self) -> list[dict[str, object]]:
        """All models that can be requested by name, sorted, in OpenAI's list format."""
        return [self._shown(model, owner) for model, owner in self._owners.items()]

    def model(self, name: str) -> dict[str, object]:
        """A single model. Raises ApiError 404."""
        owner = self._owners.get(name)
        if owner is None:
            raise _unknown(name)
        return self._shown(name, owner)

    def _shown(self, model: str, owner: str) -> dict[str, object]:
        return {"id": model, "object": "model", "created": self._created_s, "owned_by": owner}


def _unknown(model: str | None) -> ApiError:
    # The name is the client's input, and is repeated so that the client finds its mistake.
    what = "no model is served here by default" if not model else f"the model {_shown(model)} does not exist here"
    return ApiError(404, "model_not_found", f"{what}: GET /v1/models lists those that do", param="model")


def _shown(model: str) -> str:
    return repr(model[:64] + ("..." if len(model) > 64 else ""))
