"""The HTTP front's application: every route, and what stands around them. Main thread.

`build` takes a Front, which opens streams, and Options, which say everything else; it starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Match

from daemon.control.http.api.errors import ApiError, response_of
from daemon.control.http.api.model_routing import Router, Served
from daemon.control.http.assets import DOCS_HTML, PAGE_HEADERS, START_JS, STATIC, Assets, cached, swagger, tag_of
from daemon.control.http.uvicorn import documentation
from daemon.control.http.uvicorn.completions import Completions, RequestBounds
from daemon.control.http.uvicorn.middleware import Guard, Requests

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

    from daemon.control.http.api.keys import Keys
    from daemon.control.http.uvicorn.interface import Front
    from daemon.control.telemetry.server import Page

Handler = Callable[[Request], Any]

# A WebSocket asks for its key itself.
OPEN_PATHS = ("/", "/health", "/ready", "/metrics", "/docs", "/swagger", "/openapi.json", "/audio/ws")
OPEN_PREFIXES = ("/static/", "/docs/assets/")
RETRY_AFTER_DEFAULT_S = 1
CORS_HEADERS_SHOWN = ("X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy")
CORS_SECONDS = 600  # for which a browser remembers that it may ask
_SCRIPT = "text/javascript; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_TEXT_EVENTS = 'data: {"id":"cmpl-1","object":"text_completion",...}\n\ndata: [DONE]\n\n'
_CHAT_EVENTS = 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk",...}\n\ndata: [DONE]\n\n'


class ShownLimits(NamedTuple):
    """What a user may do, for the headers of a 429; 0 = no limit."""

    streams_per_user: int = 0
    requests_per_minute_per_user: int = 0


@dataclass(frozen=True)
class Options:
    """Everything that the application is given beside the front."""

    router: Router = field(default_factory=lambda: Router(Served(frozenset())))
    pages: Mapping[str, Page] = field(default_factory=dict[str, "Page"])  # by path: /health, /ready, /metrics
    keys: Keys | None = None  # None: everybody may ask
    limits: Callable[[], ShownLimits] = ShownLimits  # as they are now
    cors_origins: tuple[str, ...] = ()  # `*` is everybody; none: no CORS
    body_bytes_max: int = 8 << 20
    body_timeout_s: float = 30.0  # for a whole body
    answer_bytes_max: int = 16 << 20  # events of an answer that is not streamed
    answer_timeout_s: float = 600.0  # for a whole answer that is not streamed
    static: Path = STATIC


class PlainRoute(APIRoute):
    """A route whose endpoint takes the request and nothing else: what FastAPI does to fill in arguments costs time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself."""
        return self.endpoint


def completions_of(front: Front, options: Options) -> Completions:
    """The endpoints that generate."""
    bounds = RequestBounds(
        options.body_bytes_max, options.body_timeout_s, options.answer_bytes_max, options.answer_timeout_s
    )
    return Completions(front, options.router, bounds, has_keys=options.keys is not None)


def build(front: Front, options: Options) -> FastAPI:
    """The application, complete. More routes may be added to it."""
    app = FastAPI(
        title=documentation.TITLE,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would send clients to whatever their Host header says
        # The daemon measures itself; what stands in its environment starts no exporter.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    has_keys = options.keys is not None
    _add_completions(app, completions_of(front, options), has_keys=has_keys)
    _add_models(app, options.router, has_keys=has_keys)
    for path, page in options.pages.items():
        _add_page(app, path, page)
    _add_assets(app, options.static)
    _add_documentation(app, has_keys=has_keys)
    _add_error_handlers(app, options.limits)
    # The last one added is the outermost.
    app.add_middleware(_guard, keys=options.keys)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=("GET", "POST", "HEAD"),
            allow_headers=("*",),
            expose_headers=CORS_HEADERS_SHOWN,
            max_age=CORS_SECONDS,
        )
    app.add_middleware(Requests)
    return app


def _guard(app: ASGIApp, keys: Keys | None) -> ASGIApp:
    return Guard(app, keys, OPEN_PATHS, OPEN_PREFIXES)


# ---- what generates, and what can be asked for


def _add_completions(app: FastAPI, completions: Completions, *, has_keys: bool) -> None:
    failing = documentation.errors(documentation.GENERATING, has_keys=has_keys)
    for path, endpoint, schema, result, example, summary in (
        (
            *("/v1/chat/completions", completions.chat_completions, "ChatCompletionRequest", "ChatCompletion"),
            *(_CHAT_EVENTS, "Answer a conversation"),
        ),
        (
            *("/v1/completions", completions.completions, "CompletionRequest", "Completion"),
            *(_TEXT_EVENTS, "Answer a prompt"),
        ),
    ):
        app.router.add_api_route(
            path,
            endpoint,
            route_class_override=PlainRoute,
            methods=["POST"],
            tags=["Completions"],
            summary=summary,
            response_class=Response,
            response_model=None,
            responses={200: documentation.generated(result, example), **failing},
            openapi_extra=documentation.body(schema),
        )


def _add_models(app: FastAPI, router: Router, *, has_keys: bool) -> None:
    async def list_models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": router.models()})

    async def get_model(request: Request) -> Response:
        return JSONResponse(router.model(request.path_params["model"]))

    failing = documentation.errors((500,), has_keys=has_keys)
    unknown = documentation.errors((404, 500), has_keys=has_keys)
    parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    listed = documentation.answer("ModelList", "All that can be asked for by name, sorted.")
    _add_get(app, "/v1/models", list_models, "Models", "List models", {200: listed, **failing})
    _add_get(
        app,
        "/v1/models/{model:path}",
        get_model,
        "Models",
        "Describe a model",
        {200: documentation.answer("Model", "The model."), **unknown},
        {"parameters": [parameter]},
    )


def _add_get(
    app: FastAPI,
    path: str,
    endpoint: Handler,
    tag: str,
    summary: str,
    responses: dict[int | str, dict[str, Any]],
    extra: dict[str, Any] | None = None,
) -> None:
    """A route for GET, and for HEAD, which the document need not say."""
    app.add_api_route(
        path,
        endpoint,
        methods=["GET"],
        tags=[tag],
        summary=summary,
        response_class=Response,
        response_model=None,
        responses=responses,
        openapi_extra=extra,
    )
    app.add_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


# ---- pages


_PAGES: dict[str, tuple[str, dict[int | str, dict[str, Any]]]] = {
    "/health": ("Whether the process runs", {200: documentation.answer("Health", "It does.")}),
    "/ready": (
        "Whether new streams are taken",
        {
            200: documentation.answer("Ready", "They are."),
            503: documentation.answer("Ready", "They are not: `reason` says why."),
        },
    ),
    "/metrics": (
        "Metrics, for Prometheus",
        {
            200: {
                "description": "In Prometheus' text format, or in OpenMetrics' where `Accept` asks for it.",
                "content": {
                    "text/plain": {"schema": {"type": "string"}},
                    "application/openmetrics-text": {"schema": {"type": "string"}},
                },
            }
        },
    ),
}


def _add_page(app: FastAPI, path: str, page: Page) -> None:
    async def show(request: Request) -> Response:
        found = page(request.headers.get("accept", ""))
        headers = {"Cache-Control": "no-store"}
        return Response(found.body, found.status.value, headers, media_type=found.content_type)

    summary, responses = _PAGES[path]
    failing = documentation.errors((500,), has_keys=False)
    _add_get(app, path, show, "Health", summary, {**responses, **failing})


def _add_assets(app: FastAPI, folder: Path) -> None:
    own, docs = Assets(folder), swagger()
    docs_tag, start_tag = tag_of(DOCS_HTML), tag_of(START_JS)

    async def index(request: Request) -> Response:
        return own.response(request, "index.html", PAGE_HEADERS)

    async def static(request: Request) -> Response:
        return own.response(request, request.path_params["name"])

    async def docs_page(request: Request) -> Response:
        return cached(request, DOCS_HTML, _HTML, PAGE_HEADERS, docs_tag)

    async def start(request: Request) -> Response:
        return cached(request, START_JS, _SCRIPT, {}, start_tag)

    async def docs_asset(request: Request) -> Response:
        return docs.response(request, request.path_params["name"])

    async def to_docs(_request: Request) -> Response:
        return RedirectResponse("docs")

    for path, endpoint in (
        ("/", index),
        ("/static/{name}", static),
        ("/docs", docs_page),
        ("/docs/assets/start.js", start),
        ("/docs/assets/{name}", docs_asset),
        ("/swagger", to_docs),
    ):
        app.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


def _add_documentation(app: FastAPI, *, has_keys: bool) -> None:
    made: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not made:
            made.update(documentation.document(app, has_keys=has_keys, open_paths=OPEN_PATHS))
        return made

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document(), headers={"Access-Control-Allow-Origin": "*"})

    app.openapi = document  # type: ignore[method-assign]
    app.add_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)


# ---- what goes wrong


def _add_error_handlers(app: FastAPI, limits: Callable[[], ShownLimits]) -> None:
    async def of_api(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if error.status in {429, 503}:
            error.headers.setdefault("Retry-After", str(RETRY_AFTER_DEFAULT_S))
        if error.status == HTTPStatus.TOO_MANY_REQUESTS:
            error.headers.update(_limit_headers(error, limits()))
        return response_of(error)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return response_of(_of_route(app, request, error))

    async def of_validation(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        place = ".".join(str(name) for name in cast("tuple[object, ...]", error.errors()[0]["loc"])[1:])
        return response_of(ApiError(400, "invalid_value", f"{place} is not as it must be", param=place or None))

    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)


def _of_route(app: FastAPI, request: Request, error: HTTPException) -> ApiError:
    """What a path or a method that there is not is told."""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        return ApiError(404, "route_not_found", "there is nothing at this path: /docs lists what there is")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = sorted(_methods_at(app, request))
        message = f"the method is not allowed here: {', '.join(allowed)} is"
        return ApiError(405, "method_not_allowed", message, headers={"Allow": ", ".join(allowed)})
    return ApiError(error.status_code, None, str(error.detail), headers=headers)


def _methods_at(app: FastAPI, request: Request) -> set[str]:
    found: set[str] = set()
    for route in app.routes:
        methods: set[str] | None = getattr(route, "methods", None)
        if methods and route.matches(request.scope)[0] is not Match.NONE:
            found |= methods
    return found


def _limit_headers(error: ApiError, limits: ShownLimits) -> dict[str, str]:
    """What a user may do and what is left of it, as the IETF's draft has it. Nothing of limits that are not ours."""
    wait_s = error.headers["Retry-After"]
    if error.code == "requests_per_minute_per_user" and limits.requests_per_minute_per_user:
        policy = f'"requests";q={limits.requests_per_minute_per_user};w=60'
        return {"RateLimit-Policy": policy, "RateLimit": f'"requests";r=0;t={wait_s}'}
    if error.code == "streams_per_user" and limits.streams_per_user:
        policy = f'"streams";q={limits.streams_per_user};qu="concurrent-requests"'
        return {"RateLimit-Policy": policy, "RateLimit": '"streams";r=0'}
    return {}
