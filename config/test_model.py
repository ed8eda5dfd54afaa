"""The settings of [backend.test_model]. What its streams look like is said in docs/backends.md."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from config.declaring import reloadable


class TestModelBackend(msgspec.Struct, frozen=True, kw_only=True):
    """The model `test-model`: tokens at a set rate, in the shapes of OpenAI's API, for load tests."""

    __test__ = False  # its name is the model's: no test is in it

    enabled: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="have the model; auto: where [http] listens and no upstream of [backend.openai] is configured"
        ),
    ] = "auto"
    tokens_per_second: Annotated[
        int, reloadable("rate of a stream's tokens; 0 = as fast as the socket takes", ge=0, le=100_000_000)
    ] = 120_000
