"""Answers as real servers give them, kept in corpus/: what the parsers find in them, and that faults fool nobody.

Every test has a fixed seed; a failure names the bytes.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.compilation import INTERPRETED
from daemon.plane.sse import is_done
from tests.daemon.plane.event_feeding import MEMORY, events
from tests.daemon.plane.guarded import cut, mutate
from tests.daemon.plane.parser_reference import events_reference, rewrite_reference
from tests.daemon.plane.test_http1 import PARSED
from tests.daemon.plane.test_http1 import check as check_head
from tests.daemon.plane.test_json_walk import WALKED, check, rewrite

pytestmark = pytest.mark.plane

CORPUS = Path(__file__).parent / "corpus"
ROUNDS = 3 if INTERPRETED else 60


def bodies() -> list[str]:
    return sorted(path.name for path in CORPUS.glob("*.sse"))


def heads() -> list[str]:
    return sorted(path.name for path in CORPUS.glob("*.head"))


def body_of(stream: bytes) -> bytes:
    return stream.removeprefix(b"\xef\xbb\xbf")


def sizes(chance: random.Random) -> list[int]:
    return [chance.choice([0, 1, 2, 7, 100, 500]) for _ in range(60)]


@dataclass
class Answer:
    """What one body of the corpus says in all."""

    text: str = ""
    tokens: int = 0
    finish: bytes = b""
    model: bytes = b""
    counts: tuple[int, int] = (-1, -1)
    error: bool = False
    done: bool = False


def answer_of(stream: bytes) -> Answer:
    answer = Answer()
    for event in events([stream]):
        data = b"\n".join(event.data)
        answer.error |= event.is_error
        if not event.data:
            continue
        if is_done(MEMORY.at_end(data), len(data)):
            answer.done = True
            continue
        assert check(data)
        text = WALKED.span(data, "content")
        if text is not None:
            written = rewrite(text)
            assert written is not None
            answer.text += json.loads(b'"' + written + b'"')
        answer.tokens += WALKED["token"]
        answer.finish = WALKED.span(data, "finish") or answer.finish
        answer.model = answer.model or WALKED.span(data, "model") or b""
        answer.error |= bool(WALKED["error"])
        if WALKED["usage"]:
            answer.counts = (WALKED["prompt_tokens"], WALKED["completion_tokens"])
    return answer


OPENAI = Answer('Hello! "Hi"\n 😀 中文', 3, b"stop", b"gpt-4o-2024-08-06", (19, 3), done=True)
ANSWERS = {
    "azure.sse": Answer("Yes sir", 2, b"stop", b"gpt-4o-2024-11-20", done=True),
    "bom.sse": OPENAI,
    "cr.sse": OPENAI,
    "crlf.sse": OPENAI,
    "cut.sse": Answer("Hello", 1, model=b"gpt-4o-2024-08-06"),
    "error.sse": Answer("Par", 1, model=b"gpt-4o-2024-08-06", error=True),
    "error_event.sse": Answer("Par", 1, model=b"gpt-4o-2024-08-06", error=True),
    "llama_cpp.sse": Answer("Sure\t{\\", 2, b"length", b"gpt-3.5-turbo", (11, 2), done=True),
    "ollama.sse": Answer("<The> sky", 2, b"stop", b"llama3.2", done=True),
    "openai.sse": OPENAI,
    "openai_completions.sse": Answer("This is a test", 3, b"stop", b"gpt-3.5-turbo-instruct", done=True),
    "openai_tools.sse": Answer("", 3, b"tool_calls", b"gpt-4o-2024-08-06", done=True),
    "openrouter.sse": Answer("Bonjour", 2, b"stop", b"mistralai/mistral-small", (8, 2), done=True),
    "sglang.sse": Answer("Paris.", 2, b"stop", b"meta-llama/Llama-3.1-8B-Instruct", done=True),
    "vllm.sse": Answer("4", 2, b"stop", b"Qwen/Qwen2.5-7B-Instruct", (30, 3), done=True),
}


def test_every_body_of_the_corpus_has_its_answer() -> None:
    assert bodies() == sorted(ANSWERS)


@pytest.mark.parametrize("name", bodies())
def test_answers_of_real_servers_are_understood(name: str) -> None:
    stream = (CORPUS / name).read_bytes()
    assert answer_of(stream) == ANSWERS[name]
    if name in {"cr.sse", "crlf.sse"}:
        assert events_reference(stream) != events_reference((CORPUS / "openai.sse").read_bytes())


@pytest.mark.parametrize("name", bodies())
def test_a_stream_of_a_real_server_may_be_cut_anywhere(name: str) -> None:
    stream = (CORPUS / name).read_bytes()
    chance = random.Random(name)
    expected = events_reference(body_of(stream))
    for _ in range(3):
        assert events(cut(stream, sizes(chance))) == expected


@pytest.mark.parametrize("name", bodies())
def test_faulty_streams_are_read_as_the_standard_says(name: str) -> None:
    chance = random.Random(f"stream {name}")
    stream = (CORPUS / name).read_bytes()
    for _ in range(ROUNDS // 3):
        faulty = mutate(chance, stream, b"\r\n: data")
        assert events(cut(faulty, sizes(chance))) == events_reference(body_of(faulty)), faulty


@pytest.mark.parametrize("name", bodies())
def test_faulty_documents_are_refused_or_read_as_python_reads_them(name: str) -> None:
    chance = random.Random(f"document {name}")
    stream = body_of((CORPUS / name).read_bytes())
    documents = [b"\n".join(event.data) for event in events_reference(stream) if event.data]
    for _ in range(ROUNDS):
        for document in documents:
            faulty = mutate(chance, document, b'{}[]",:\\u0e1-+. tfn\n\x01\xe9')
            content = WALKED.span(faulty, "content") if check(faulty) else faulty[:100]
            if content is not None:
                assert rewrite(content) == rewrite_reference(content), content


@pytest.mark.parametrize("name", heads())
def test_heads_of_real_servers_are_understood(name: str) -> None:
    head = (CORPUS / name).read_bytes()
    assert check_head(head + b"5\r\n") == len(head)
    is_plain = name in {"openai.head", "vllm.head", "llama_cpp.head"}
    expected = (200, 1, -1, 1, 0, 1, 0)
    names = ("status", "minor_version", "content_length", "is_chunked", "closes", "is_event_stream", "is_compressed")
    assert (tuple(PARSED[field] for field in names) == expected) == is_plain


@pytest.mark.parametrize("name", heads())
def test_faulty_heads_are_refused_or_read_as_the_reference_reads_them(name: str) -> None:
    chance = random.Random(f"head {name}")
    head = (CORPUS / name).read_bytes()
    for _ in range(ROUNDS * 5):
        check_head(mutate(chance, head, b"\r\n:, \t\0019-clHT"))
