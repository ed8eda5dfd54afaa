"""What stands around the routes: ids, keys, CORS, pages, files, the OpenAPI document, and what nobody expected."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from starlette.requests import Request
from starlette.responses import Response

from daemon.control.http.api.errors import ApiError
from daemon.control.http.api.keys import Keys
from daemon.control.http.assets import tag_of
from daemon.control.http.uvicorn.application import ShownLimits, build
from tests.daemon.control.http.uvicorn.fakes import FakeFront, client_at, client_of, error_of, options, page, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import httpx2 as httpx

    from daemon.control.http.uvicorn.application import Options

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
KEY = "your-secret-key"
PAGES = {
    "/health": page(HTTPStatus.OK, status="healthy", timestamp=5),
    "/ready": page(HTTPStatus.SERVICE_UNAVAILABLE, model_ready=False),
    "/metrics": page(HTTPStatus.OK, metrics=True),
}
PAGE_PATHS = ["/", "/static/app.js", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/docs/assets/start.js"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Options:
    root = tmp_path_factory.mktemp("front")
    (root / "keys").write_text(f"alice: {KEY}\n")
    (root / "keys").chmod(0o600)
    folder = root / "static"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><p>Here")
    (folder / "app.js").write_text("export const here = 1;")
    (folder / "secret.py").write_text("no")
    origins = ("https://app.example", "https://other.example")
    limits = ShownLimits(streams_per_user=5, requests_per_minute_per_user=60)
    return options(
        pages=PAGES,
        keys=Keys(str(root / "keys")),
        static=folder,
        cors_origins=origins,
        limits=lambda: limits,
    )


@pytest.fixture(scope="module")
def server(everything: Options) -> Iterator[tuple[FakeFront, str]]:
    front = FakeFront()
    with served(front, everything) as base:
        yield front, base


@pytest.fixture
def front(server: tuple[FakeFront, str]) -> FakeFront:
    server[0].reset()
    return server[0]


@pytest.fixture
def client(server: tuple[FakeFront, str]) -> Iterator[httpx.Client]:
    with client_at(server[1]) as found:
        found.headers["Authorization"] = f"Bearer {KEY}"
        yield found


# ---- ids


def test_every_answer_has_an_id(client: httpx.Client) -> None:
    for path in (*PAGE_PATHS, "/nowhere", "/v1/models"):
        response = client.get(path)
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
        assert response.headers["x-content-type-options"] == "nosniff"
    for given in ("mine", "!" * 128):
        assert client.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    for given in ("", "x" * 129, "with space", "\u00e9".encode().decode("latin-1")):
        headers = {b"X-Request-Id": given.encode("latin-1")}
        assert client.get("/health", headers=headers).headers["x-request-id"] != given


# ---- keys


@pytest.mark.parametrize(
    ("header", "message", "challenge"),
    [
        (None, "Missing or invalid Authorization header. Expected: Bearer <token>", "Bearer"),
        ("Basic x", "Missing or invalid Authorization header. Expected: Bearer <token>", "Bearer"),
        ("Bearer wrong-key", "Invalid API key", 'Bearer error="invalid_token"'),
    ],
)
def test_without_a_key(
    client: httpx.Client, front: FakeFront, header: str | None, message: str, challenge: str
) -> None:
    del client.headers["Authorization"]
    headers = {"X-Api-Key": KEY, **({} if header is None else {"Authorization": header})}
    for response in (
        client.post(CHAT, json=HELLO, headers=headers),
        client.get("/v1/models", headers=headers),
        client.get("/nowhere", headers=headers),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == challenge
        error = error_of(response)
        assert (error["message"], error["type"]) == (message, "authentication_error")
    assert not front.tickets


@pytest.mark.parametrize("path", PAGE_PATHS)
def test_pages_need_no_key(client: httpx.Client, path: str) -> None:
    del client.headers["Authorization"]
    assert client.get(path).status_code == (503 if path == "/ready" else 200)


def test_the_name_of_a_key_is_the_user(client: httpx.Client, front: FakeFront) -> None:
    assert client.post(CHAT, json=HELLO).status_code == 200
    ticket = front.tickets[0]
    assert (ticket.user, ticket.request.fields.user_id) == ("alice", "alice")
    assert KEY not in str(ticket.request.headers)


def test_without_keys_the_header_is_the_upstreams(front: FakeFront) -> None:
    with client_of(front) as client:
        assert client.post(CHAT, json=HELLO, headers={"Authorization": "Bearer x"}).status_code == 200
    assert front.tickets[0].request.headers["authorization"] == "Bearer x"


# ---- CORS


def test_other_sites(client: httpx.Client) -> None:
    asked = {"Origin": "https://app.example"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless"}
    del client.headers["Authorization"]
    response = client.options(CHAT, headers={**asked, **preflight})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == asked["Origin"]
    assert "x-stainless" in response.headers["access-control-allow-headers"]
    refused = client.post(CHAT, json=HELLO, headers=asked)  # a page must be able to read why
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, asked["Origin"])
    headers = {**asked, "Authorization": f"Bearer {KEY}"}
    response = client.post(CHAT, json={**HELLO, "stream": True}, headers=headers)
    assert response.headers["access-control-allow-origin"] == asked["Origin"]
    assert response.headers["vary"] == "Origin"
    assert "X-Request-Id" in response.headers["access-control-expose-headers"]
    response = client.post(CHAT, json={**HELLO, "stream": True}, headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_every_site_and_none(front: FakeFront) -> None:
    for origins, expected in ((("*",), "*"), ((), None)):
        with client_of(front, options(cors_origins=origins)) as client:
            response = client.get("/v1/models", headers={"Origin": "https://any.example"})
            assert response.headers.get("access-control-allow-origin") == expected


# ---- pages and files


def test_pages(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "healthy", "timestamp": 5}
    response = client.get("/ready")
    assert (response.status_code, response.json()) == (503, {"model_ready": False})
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [*PAGE_PATHS, "/v1/models", "/v1/models/test-model", "/swagger"])
def test_head_says_the_same_without_a_body(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert head.status_code == whole.status_code
    assert head.content == b""
    for name in ("content-type", "content-length", "etag"):
        assert head.headers.get(name) == whole.headers.get(name)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/static/app.js", "text/javascript"),
        ("/docs", "text/html"),
        ("/docs/assets/start.js", "text/javascript"),
        ("/docs/assets/swagger-ui-bundle.js", "text/javascript"),
        ("/docs/assets/swagger-ui.css", "text/css"),
        ("/docs/assets/favicon-32x32.png", "image/png"),
    ],
)
def test_files(client: httpx.Client, path: str, kind: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["cache-control"] == "no-cache"
    tag = response.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert ("content-security-policy" in response.headers) == (kind == "text/html")


def test_a_files_tag_is_made_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []

    def counting(body: bytes) -> str:
        made.append(body)
        return tag_of(body)

    monkeypatch.setattr("daemon.control.http.assets.tag_of", counting)
    file = tmp_path / "app.js"
    file.write_bytes(b"export const here = 1;")
    with client_of(FakeFront(), options(static=tmp_path)) as client:
        answers = [client.get("/static/app.js") for _ in range(3)]
        assert {answer.headers["etag"] for answer in answers} == {tag_of(file.read_bytes())}
        assert made == [b"export const here = 1;"]
        file.write_bytes(b"export const here = 22;")
        changed = client.get("/static/app.js", headers={"If-None-Match": answers[0].headers["etag"]})
        assert (changed.status_code, changed.content) == (200, b"export const here = 22;")
        assert changed.headers["etag"] == tag_of(changed.content)
        (tmp_path / "new.js").write_bytes(b"export const here = 33;")  # of the same length
        (tmp_path / "new.js").replace(file)
        renewed = client.get("/static/app.js", headers={"If-None-Match": changed.headers["etag"]})
        assert (renewed.status_code, renewed.headers["etag"]) == (200, tag_of(b"export const here = 33;"))


@pytest.mark.parametrize(
    "path", ["/static/secret.py", "/static/none.js", "/static/..%2fkeys", "/static/%2e%2e/keys", "/docs/assets/main.py"]
)
def test_files_that_are_not_there(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "route_not_found"


def test_without_a_page_of_its_own(front: FakeFront, tmp_path: Path) -> None:
    with client_of(front, options(static=tmp_path / "none")) as client:
        assert error_of(client.get("/"))["code"] == "route_not_found"


def test_the_documents_page_asks_nobody_else(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert "http" not in response.text.replace("<!doctype html>", "")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    response = client.get("/swagger")
    assert (response.status_code, response.headers["location"]) == (307, "docs")


# ---- the document


def test_the_openapi_document(client: httpx.Client) -> None:
    response = client.get("/openapi.json")
    assert response.headers["access-control-allow-origin"] == "*"
    document = response.json()
    validate(document, cls=OpenAPIV31SpecValidator)
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    assert set(paths) == {CHAT, "/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics"}
    assert all(set(path) <= {"get", "post"} for path in paths.values())
    chat = paths[CHAT]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ChatCompletionRequest"
    }
    statuses = (200, 400, 401, 404, 408, 413, 415, 429, 500, 502, 503, 504)
    assert set(chat["responses"]) == {str(status) for status in statuses}
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert document["security"] == [{"bearer": []}]
    assert paths["/health"]["get"]["security"] == []
    schema = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"max_tokens", "use_beam_search", "stream_options", "truncate_prompt_tokens"} <= set(schema)


def test_without_keys_the_document_wants_none() -> None:
    document = build(FakeFront(), options(pages=PAGES)).openapi()
    assert "security" not in document
    assert "401" not in document["paths"][CHAT]["post"]["responses"]
    assert not any("HTTPValidationError" in name for name in document["components"]["schemas"])


# ---- what is not there, or goes wrong


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/", CHAT + "/", "/docs/", "/redoc", "/v1/models/"])
def test_paths_that_are_not_there(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert error_of(response)["code"] in {"route_not_found", "model_not_found"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
    ],
)
def test_methods_that_are_not_allowed(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert error_of(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("code", "policy", "rest"),
    [
        ("requests_per_minute_per_user", '"requests";q=60;w=60', '"requests";r=0;t=7'),
        ("streams_per_user", '"streams";q=5;qu="concurrent-requests"', '"streams";r=0'),
        ("rate_limited_by_an_upstream", None, None),
    ],
)
def test_limits(client: httpx.Client, front: FakeFront, code: str, policy: str | None, rest: str | None) -> None:
    front.refusal = ApiError(429, code, "too many", headers={"Retry-After": "7"})
    response = client.post(CHAT, json=HELLO, headers={"Origin": "https://app.example"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert error_of(response)["type"] == "rate_limit_exceeded"
    assert (response.headers.get("ratelimit-policy"), response.headers.get("ratelimit")) == (policy, rest)
    assert "RateLimit-Policy" in response.headers["access-control-expose-headers"]


def test_when_to_come_back_is_always_said(client: httpx.Client, front: FakeFront) -> None:
    for status in (429, 503):
        front.refusal = ApiError(status, "limited_by_the_upstream", "many")
        assert client.post(CHAT, json=HELLO).headers["retry-after"] == "1"


def test_what_nobody_expected(client: httpx.Client, front: FakeFront, caplog: pytest.LogCaptureFixture) -> None:
    front.failure = RuntimeError(f"with {KEY}")
    with caplog.at_level(logging.ERROR):
        response = client.post(CHAT, json=HELLO, headers={"X-Request-Id": "mine", "Origin": "https://app.example"})
    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert KEY not in response.text
    assert (response.headers["x-request-id"], response.headers["access-control-allow-origin"]) == (
        "mine",
        "https://app.example",
    )
    assert [record.request_id for record in caplog.records if record.name.endswith("middleware")] == ["mine"]  # type: ignore[attr-defined]


def test_what_goes_wrong_after_the_head_cuts_the_answer(front: FakeFront) -> None:
    import httpx2

    application = build(front, options())

    async def broken(_request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"some"
            raise RuntimeError("broken")

        from starlette.responses import StreamingResponse

        return StreamingResponse(body())

    application.add_route("/broken", broken)
    with served(front, application) as base, pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"{base}/broken")
