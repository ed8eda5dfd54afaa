"""The OpenAPI document: what FastAPI knows of the routes, and the schemas of bodies that FastAPI never sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from config import VERSION
from daemon.control.channel.responses import phrase
from daemon.control.http.api.schemas import DESCRIBED
from daemon.control.http.uvicorn.requests import ChatCompletionRequest, CompletionRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastapi import FastAPI

TITLE = "Streaming daemon"
DESCRIPTION = """OpenAI's API, streamed by a daemon that holds no thread and no process per stream.

Errors are OpenAI's envelope. A stream that fails after its beginning ends with an event named `error`, and never with
`[DONE]`. Every answer has an `X-Request-Id`: the request's own, or a new one."""
TAGS = [
    {"name": "Completions", "description": "Answers, whole or as server-sent events."},
    {"name": "Audio", "description": "Mel features, as Whisper takes them."},
    {"name": "Models", "description": "What can be asked for."},
    {"name": "Health", "description": "How the daemon is doing."},
]
_REFERENCE = "#/components/schemas/{model}"
_JSON = "application/json"
_EVENTS = "text/event-stream"
_WHEN = {
    400: "The request is wrong: `param` names the field.",
    401: "No key, or one that is not known.",
    404: "The model does not exist.",
    408: "The request's body did not come in time.",
    413: "The request's body is too large.",
    415: "The request's body is of a type that is not understood.",
    429: "Too many streams, or requests, of one user; or the upstream's own limit.",
    500: "The server failed.",
    501: "It is not enabled here.",
    502: "The upstream failed, or cut its answer off.",
    503: "No room, no upstream, or the server is shutting down.",
    504: "The upstream took too long.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}}
_LIMIT_HEADERS = {
    **_RETRY_AFTER,
    "RateLimit-Policy": {"description": "The limits (IETF draft).", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of them (IETF draft).", "schema": {"type": "string"}},
}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}},
    429: _LIMIT_HEADERS,
    503: _RETRY_AFTER,
}
GENERATING = (400, 404, 408, 413, 415, 429, 500, 502, 503, 504)


def reference(name: str) -> dict[str, str]:
    """A schema of the document."""
    return {"$ref": _REFERENCE.format(model=name)}


def answer(name: str, text: str) -> dict[str, Any]:
    """A JSON answer of a named schema."""
    return {"description": text, "content": {_JSON: {"schema": reference(name)}}}


def errors(statuses: Iterable[int], *, has_keys: bool) -> dict[int | str, dict[str, Any]]:
    """Answers that are errors. With keys, 401 is among them."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *((401,) if has_keys else ())}):
        described = answer("Error", _WHEN.get(status, phrase(status)))
        if status in _HEADERS:
            described["headers"] = _HEADERS[status]
        found[status] = described
    return found


def generated(name: str, example: str) -> dict[str, Any]:
    """The answer of an endpoint that generates: whole, or as events."""
    described = answer(name, "The answer; as events where `stream` is true. A stream ends with `data: [DONE]`.")
    described["content"][_EVENTS] = {"schema": {"type": "string"}, "example": example}
    return described


def body(name: str) -> dict[str, Any]:
    """A request's body, as more of a route's description."""
    return {"requestBody": {"required": True, "content": {_JSON: {"schema": reference(name)}}}}


def document(app: FastAPI, *, has_keys: bool, open_paths: Iterable[str]) -> dict[str, Any]:
    """The whole document. `open_paths` need no key."""
    found = get_openapi(
        title=TITLE, version=VERSION, summary="OpenAI-compatible streaming", description=DESCRIPTION,
        routes=app.routes, tags=TAGS, license_info={"name": "Apache 2.0", "identifier": "Apache-2.0"},
    )  # fmt: skip
    components = found.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_schemas()}
    if has_keys:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"bearer": []}]
        for path in open_paths:
            for operation in found["paths"].get(path, {}).values():
                operation["security"] = []
    return found


def _schemas() -> dict[str, Any]:
    requests = [(one, "validation") for one in (CompletionRequest, ChatCompletionRequest)]
    answers = [(one, "serialization") for one in DESCRIBED]
    _, found = models_json_schema([*requests, *answers], ref_template=_REFERENCE)  # type: ignore[list-item]
    definitions: dict[str, Any] = found["$defs"]
    return definitions
