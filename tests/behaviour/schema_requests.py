"""Asks a daemon what its OpenAPI document allows and what it does not, and checks that each answer is as documented.

    PYTHONHASHSEED=0 python -m tests.behaviour.schema_requests http://127.0.0.1:8000

In a process of its own, as Hypothesis draws on what other tests have imported: with the same seed it asks the same. Its
last line is a digest of all that was asked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from typing import Any, cast

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode, checks

EXAMPLES = 40
SEED = 20_261_121
OPERATIONS = (
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
)
# Their types are partly unknown.
_checks: Any = checks
_schemathesis: Any = schemathesis
CHECKS: list[Any] = [
    _checks.not_a_server_error,
    _checks.status_code_conformance,
    _checks.content_type_conformance,
    _checks.response_headers_conformance,
    _checks.response_schema_conformance,
]


def whole_stream(_context: Any, response: Any) -> str:  # noqa: ANN401
    """A stream as the string that the document says it is, where schemathesis would take it apart."""
    assert response.content.endswith(b"data: [DONE]\n\n")
    return str(response.content, "utf-8")


_schemathesis.deserializer("text/event-stream")(whole_stream)


def ask_all(operation: Any, mode: GenerationMode, digest: Any) -> set[tuple[int, str]]:  # noqa: ANN401
    """Ask one operation in one way; the statuses and types of the answers. Raises what schemathesis finds."""
    seen: set[tuple[int, str]] = set()
    numbers = itertools.count()

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:  # noqa: ANN401
        body: object = case.body
        if isinstance(body, dict):
            fields = cast("dict[str, Any]", body)
            if mode is GenerationMode.POSITIVE:
                fields.update(model="test-model", stream=next(numbers) % 2 == 0)
            # An answer of two thousand million tokens would be right, and would take its time.
            fields.update({name: 3 for name in ("max_tokens", "max_completion_tokens") if name in fields})
        response = case.call(timeout=30)
        request = response.request
        digest.update(repr((request.method, request.url.rpartition(":")[2][5:], request.body)).encode())
        seen.add((response.status_code, response.headers["content-type"][0].partition(";")[0]))
        case.validate_response(response, checks=CHECKS)

    ask()
    return seen


def main(url: str) -> None:
    """Ask everything."""
    schema = _schemathesis.openapi.from_url(f"{url}/openapi.json")
    paths: dict[str, dict[str, Any]] = schema.raw_schema["paths"]
    documented = {(path, method.upper()) for path, item in paths.items() for method in item}
    # Uploads are no JSON, and have tests of their own.
    assert {one for one in documented if not one[0].startswith("/audio/")} == set(OPERATIONS)
    digest = hashlib.sha256()
    for path, method in OPERATIONS:
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if method == "POST" else (GenerationMode.POSITIVE,)
        for mode in modes:
            print(json.dumps([path, mode.value, sorted(ask_all(schema[path][method], mode, digest))]), flush=True)
    print(digest.hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])
