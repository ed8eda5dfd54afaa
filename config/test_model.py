"""The settings of [backend.test_model]. docs/backends.md describes its streams."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from config.declaring import reloadable


class TestModelBackend(msgspec.Struct, frozen=True, kw_only=True):
    """The model `test-model`: tokens at a set rate, in the formats of OpenAI's API, for load tests."""

    __test__ = False  # the name is the model's: this is not a test

    enabled: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="enable the model; auto: if [http] listens and no upstream of [backend.openai] is configured"),
    ] = "auto"
    tokens_per_second: Annotated[
        int, reloadable("tokens per second and stream; 0 = as fast as the socket accepts", ge=0, le=100_000_000)
    ] = 120_000
