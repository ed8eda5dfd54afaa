"""What one writes without this daemon: FastAPI's StreamingResponse on uvicorn, httptools and uvloop. A baseline.

    python -m scripts.bench.plain_fastapi PORT

The same events as the daemon's `test-model`, as fast as the socket takes them. It is as cheap as such an application
can be: all that is the same in the events of a stream is formatted once, and neither a model nor JSON is in the loop.
"""

from __future__ import annotations

import secrets
import sys
import time
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from scripts.bench.completion_events import AFTER_LAST_NUMBER, AFTER_NUMBER, opening

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


class Asked(BaseModel):
    """What a request asks for."""

    max_tokens: int = 16


async def _events(token_count: int) -> AsyncGenerator[str]:
    beginning = opening(secrets.token_hex(12), int(time.time()))
    for number in range(token_count - 1):
        yield f"{beginning}{number}{AFTER_NUMBER}"
    yield f"{beginning}{token_count - 1}{AFTER_LAST_NUMBER}"


async def _completions(asked: Asked) -> StreamingResponse:
    return StreamingResponse(_events(asked.max_tokens), media_type="text/event-stream")


def application() -> FastAPI:
    """One route, and no documentation."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/v1/completions", _completions, methods=["POST"], response_model=None)
    return app


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal ends the process."""
    if len(arguments) != 1:
        print("python -m scripts.bench.plain_fastapi PORT", file=sys.stderr)
        return 2
    uvicorn.run(
        application(),
        host="127.0.0.1",
        port=int(arguments[0]),
        http="httptools",
        loop="uvloop",
        log_level="warning",
        access_log=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
