"""The daemon's own OpenAPI document, asked and checked by schemathesis: what is documented is what is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.behaviour.daemon_process import ROOT
from tests.behaviour.http_helpers import CHAT, COMPLETIONS, Front, http_config, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="front", scope="module")
def _front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    # The kernel makes no difference to what is answered.
    with serving("epoll", tmp_path_factory.mktemp("schema"), http_config()) as front:
        yield front


def test_answers_are_as_documented(front: Front) -> None:
    command = [sys.executable, "-m", "tests.behaviour.schema_requests", front.url]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *lines, digest = ran.stdout.splitlines()
    print(digest)
    seen = {
        (path, mode): {(status, kind) for status, kind in answers} for path, mode, answers in map(json.loads, lines)
    }
    # That little was wrong is no comfort where little was tried.
    for path in (CHAT, COMPLETIONS):
        assert {(200, "application/json"), (200, "text/event-stream")} <= seen[path, "positive"]
        assert (400, "application/json") in seen[path, "negative"]
    assert len(seen) == 9
    front.is_well()
