"""How the tokens of a streamed completion look, as the daemon's `test-model` and the baseline send them."""

from __future__ import annotations

import json
import re

OPENING = 'data: {"id":"cmpl-'
VARYING = "*"  # stands for what differs from stream to stream, and is the same within one
BEFORE_NUMBER = ',"object":"text_completion","model":"test-model","choices":[{"text":"token_'
NUMBER = "#"
AFTER_NUMBER = ' ","index":0,"logprobs":null,"finish_reason":null}]}\n\n'
AFTER_LAST_NUMBER = ' ","index":0,"logprobs":null,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
TEMPLATE = OPENING + VARYING + BEFORE_NUMBER + NUMBER + AFTER_NUMBER
_VARYING = r'[0-9a-f]{24}","created":\d{10}'


def opening(identity: str, created_s: int) -> str:
    """An event of one stream, up to its number."""
    return f'{OPENING}{identity}","created":{created_s}{BEFORE_NUMBER}'


def is_right(body: str, token_count: int) -> bool:
    """Whether a whole body is a completion of so many tokens, byte for byte."""
    found = re.match(re.escape(OPENING) + _VARYING + re.escape(BEFORE_NUMBER), body)
    if found is None:
        return False
    events = [f"{found[0]}{number}{AFTER_NUMBER}" for number in range(token_count - 1)]
    return body == "".join([*events, f"{found[0]}{token_count - 1}{AFTER_LAST_NUMBER}"])


def request(token_count: int, port: int) -> bytes:
    """A whole HTTP request for a stream of so many tokens."""
    asked = {"model": "test-model", "prompt": "benchmark", "max_tokens": token_count, "stream": True}
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
