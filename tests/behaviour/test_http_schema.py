"""The daemon's own OpenAPI document, asked and checked by schemathesis: what is documented is what is answered.

The requests are made from a fixed seed, and are few: a run is the same each time, and takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode, checks

from tests.behaviour.http_helpers import Front, http_config, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = 40
_checks: Any = checks  # whose types are partly unknown
CHECKS: list[Any] = [
    _checks.not_a_server_error,
    _checks.status_code_conformance,
    _checks.content_type_conformance,
    _checks.response_headers_conformance,
    _checks.response_schema_conformance,
]
JSON_OPERATIONS = (
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/metrics", "GET"),
)


@pytest.fixture(name="front", scope="module")
def _front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    # The kernel makes no difference to what is answered.
    with serving("epoll", tmp_path_factory.mktemp("schema"), http_config()) as front:
        yield front


def schema_of(front: Front) -> Any:  # noqa: ANN401  (schemathesis has no public name for it)
    """The document that the daemon serves."""
    return cast("Any", schemathesis).openapi.from_url(f"{front.url}/openapi.json")


def test_everything_that_is_documented_is_tried(front: Front) -> None:
    paths: dict[str, dict[str, Any]] = schema_of(front).raw_schema["paths"]
    documented = {(path, method.upper()) for path, item in paths.items() for method in item}
    uploads = {(path, method) for path, method in documented if path.startswith("/audio/")}
    assert documented - uploads == set(JSON_OPERATIONS)


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((*operation, GenerationMode.POSITIVE) for operation in JSON_OPERATIONS),
        # Of the others nothing can be wrong.
        *((*operation, GenerationMode.NEGATIVE) for operation in JSON_OPERATIONS if operation[1] == "POST"),
    ],
)
def test_answers_are_as_documented(front: Front, path: str, method: str, mode: GenerationMode) -> None:
    operation = schema_of(front)[path][method]
    statuses: set[int] = set()

    @seed(20_261_121)
    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:  # noqa: ANN401
        body: object = case.body
        if isinstance(body, dict):
            fields = cast("dict[str, Any]", body)
            if mode is GenerationMode.POSITIVE:
                fields["model"] = "test-model"
            if isinstance(fields.get("max_tokens"), int) or "max_completion_tokens" in fields:
                # An answer of two thousand million tokens would be right, and would take its time.
                fields.update({name: 3 for name in ("max_tokens", "max_completion_tokens") if name in fields})
        response = case.call(timeout=30)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()
    if mode is GenerationMode.NEGATIVE:
        assert 400 in statuses
    elif "{" not in path:
        assert 200 in statuses
    front.is_well()
