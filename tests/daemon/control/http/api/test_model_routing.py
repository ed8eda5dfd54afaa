"""Which backend serves which model."""

from __future__ import annotations

import pytest

from daemon.control.http.api.errors import ApiError
from daemon.control.http.api.model_routing import Router, Served, Target, UpstreamModels

TEST = Target("test_model", "test-model")


def router(*backends: str, upstreams: tuple[UpstreamModels, ...] = (), default_model: str = "") -> Router:
    return Router(Served(frozenset(backends), upstreams, default_model), created_s=1)


def refusal(one: Router, model: str | None) -> ApiError:
    with pytest.raises(ApiError) as raised:
        one.route(model)
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")
    return raised.value


def listed(one: Router) -> list[tuple[object, object]]:
    return [(model["id"], model["owned_by"]) for model in one.models()]


@pytest.mark.parametrize("model", ["test-model", "test", "default", "", None])
def test_the_test_model_alone(model: str | None) -> None:
    one = router("test_model", "mock")
    assert one.route(model) == TEST
    assert listed(one) == [("test-model", "streaming-daemon")]
    refusal(one, "mock")
    refusal(one, "gpt-4")


def test_with_upstreams_only_its_own_name_is_the_test_models() -> None:
    one = router("test_model", "openai", upstreams=(UpstreamModels("up", ("m",)),))
    assert one.route("test-model") == TEST
    assert one.route("m") == Target("openai", "m")
    for model in (None, ""):
        assert one.route(model) == Target("openai", None)
    for model in ("test", "default", "other"):
        refusal(one, model)


def test_an_upstream_without_a_list_takes_any() -> None:
    one = router("openai", upstreams=(UpstreamModels("a", ("m",)), UpstreamModels("b")), default_model="d")
    for model in ("m", "anything", "test"):
        assert one.route(model) == Target("openai", model)
    assert listed(one) == [("d", "b"), ("m", "a")]
    assert router("openai", default_model="d").route("x") == Target("openai", "x")
    assert listed(router("openai", default_model="d")) == [("d", "openai")]


def test_the_first_upstream_owns_a_model() -> None:
    one = router("openai", upstreams=(UpstreamModels("b", ("m", "k")), UpstreamModels("a", ("m",))), default_model="m")
    assert listed(one) == [("k", "b"), ("m", "b")]
    assert one.model("m") == {"id": "m", "object": "model", "created": 1, "owned_by": "b"}
    with pytest.raises(ApiError, match="does not exist"):
        one.model("x")


def test_nothing_is_served() -> None:
    one = router("mock", upstreams=(UpstreamModels("a", ("m",)),))
    assert one.models() == []
    for model in ("test-model", "m"):
        refusal(one, model)
    assert "by default" in refusal(one, None).message


def test_a_change() -> None:
    one = router("test_model")
    one.configure(Served(frozenset({"openai"}), (UpstreamModels("a", ("m",)),)))
    assert listed(one) == [("m", "a")]
    refusal(one, "test-model")


def test_a_long_name_is_not_told_whole() -> None:
    assert len(refusal(router("test_model"), "x\n" * 200).message) < 300
    assert "\n" not in refusal(router("test_model"), "x\n").message
