"""One pass over one JSON object of an OpenAI-compatible stream: is it valid, and what does it say.

The pass follows the few objects that matter by name (the object itself, `choices`, the first choice, its `delta`,
`usage`), a function each, and skips every other value with a loop that keeps its nesting in one integer: nothing is
recursive, nothing is allocated, and a decoy elsewhere in the document is never taken for the real thing. Of duplicate
keys the last one wins, as in Python's json. Whether text is UTF-8 is not looked at here, but by `rewrite_string`.

Data-plane thread, or tests. Memory is only read in [address, address + length). Source: RFC 8259.
"""

from __future__ import annotations

from typing import Any

from config.compilation import compiled, inlined
from daemon.plane.bytes_search import NO_NAME, Words, add_to_words, name_words, plain_words
from daemon.plane.json_text import rewrite_string
from daemon.plane.json_values import DEPTH_MAX, behind_colon, four_digits, skip_space, skip_string, skip_value
from daemon.plane.records import load_byte, record, record_accessor

__all__ = [
    "CONTENT_ABSENT",
    "CONTENT_ESCAPED",
    "CONTENT_NULL",
    "CONTENT_OTHER",
    "CONTENT_PLAIN",
    "DEPTH_MAX",
    "WALK",
    "rewrite_string",
    "walk_chunk",
    "walk_of",
]

# `content_kind`
CONTENT_ABSENT = 0
CONTENT_NULL = 1
CONTENT_PLAIN = 2  # a string without a backslash: its bytes are its text
CONTENT_ESCAPED = 3  # a string with backslashes
CONTENT_OTHER = 4  # neither a string nor null

WALK = record(
    # choices[0].delta.content, or choices[0].text where there is no such key; the span is inside the quotes
    "content_offset:i8 content_bytes:i8 content_kind:i8 "
    # elements of `choices`; -1 where it is no array
    "choice_count:i8 "
    # choices[0].finish_reason is there and not null; the span is inside the quotes, -1 and 0 where it is no string
    "finish:i8 finish_offset:i8 finish_bytes:i8 "
    # choices[0] says something: text, reasoning, a tool call, but not only a role
    "token:i8 "
    # `usage` is an object; its counts, -1 where not given
    "usage:i8 prompt_tokens:i8 completion_tokens:i8 "
    # `error` is there and not null; the span is the whole value
    "error:i8 error_offset:i8 error_bytes:i8 "
    # `model`, inside the quotes; -1 and 0 where it is no string
    "model_offset:i8 model_bytes:i8 "
    "object_count:i8 "
    # while walking: the completions API's text, and what spoke
    "text_offset:i8 text_bytes:i8 text_kind:i8 content_says:i8 text_says:i8 others_say:i8",
    192,
)
walk_of = record_accessor(WALK)

# What a key is
_OTHER = 0
_END = 1  # no key: the object ends
_CHOICES = 2
_DELTA = 3
_CONTENT = 4
_FINISH_REASON = 5
_TEXT = 6
_ROLE = 7
_USAGE = 8
_PROMPT_TOKENS = 9
_COMPLETION_TOKENS = 10
_ERROR = 11
_MODEL = 12

_CHOICES_WORDS = name_words(b"choices")
_DELTA_WORDS = name_words(b"delta")
_CONTENT_WORDS = name_words(b"content")
_FINISH_REASON_WORDS = name_words(b"finish_reason")
_TEXT_WORDS = name_words(b"text")
_ROLE_WORDS = name_words(b"role")
_USAGE_WORDS = name_words(b"usage")
_PROMPT_TOKENS_WORDS = name_words(b"prompt_tokens")
_COMPLETION_TOKENS_WORDS = name_words(b"completion_tokens")
_ERROR_WORDS = name_words(b"error")
_MODEL_WORDS = name_words(b"model")

_COUNT_DIGITS_MAX = 18  # of a number of tokens: what surely fits into 63 bits


# ---- the document


@compiled
def walk_chunk(walk: Any, address: int, length: int) -> bool:
    """Whether these bytes are one valid JSON object; `walk` then holds what it says, and nothing of use otherwise."""
    _reset(walk)
    cursor = skip_space(address, 0, length)
    if cursor >= length or load_byte(address + cursor) != 123:
        return False
    cursor = _walk_top(walk, address, cursor + 1, length)
    if cursor < 0 or skip_space(address, cursor, length) != length:
        return False
    if walk.content_kind == CONTENT_ABSENT:
        walk.content_kind = walk.text_kind
        walk.content_offset = walk.text_offset
        walk.content_bytes = walk.text_bytes
    walk.token = walk.content_says | walk.text_says | walk.others_say
    return True


@inlined
def _reset(walk: Any) -> None:
    walk.object_count = 1
    walk.error = 0
    walk.error_offset = -1
    walk.error_bytes = 0
    walk.model_offset = -1
    walk.model_bytes = 0
    walk.choice_count = -1
    _reset_usage(walk)
    _reset_choice(walk)


@inlined
def _reset_usage(walk: Any) -> None:
    walk.usage = 0
    walk.prompt_tokens = -1
    walk.completion_tokens = -1


@inlined
def _reset_choice(walk: Any) -> None:
    walk.finish = 0
    walk.finish_offset = -1
    walk.finish_bytes = 0
    walk.text_offset = -1
    walk.text_bytes = 0
    walk.text_kind = CONTENT_ABSENT
    walk.text_says = 0
    _reset_delta(walk)


@inlined
def _reset_delta(walk: Any) -> None:
    walk.content_offset = -1
    walk.content_bytes = 0
    walk.content_kind = CONTENT_ABSENT
    walk.content_says = 0
    walk.others_say = 0


# ---- the objects that matter: each takes the cursor where its value begins, and gives it behind, or -1


@compiled
def _walk_top(walk: Any, address: int, cursor: int, length: int) -> int:
    """The members of the object itself, its brace already read."""
    cursor, name = _member(address, cursor, length, True)
    while cursor >= 0 and name != _END:
        start = cursor
        if name == _CHOICES:
            cursor = _walk_choices(walk, address, start, length)
        elif name == _USAGE:
            cursor = _walk_usage(walk, address, start, length)
        elif name == _MODEL:
            cursor, kind = _text_value(walk, address, start, length, 1)
            is_string = _is_string(kind)
            walk.model_offset = start + 1 if is_string else -1
            walk.model_bytes = cursor - start - 2 if is_string else 0
        else:
            cursor = skip_value(walk, address, start, length, 1)
            if name == _ERROR and cursor >= 0:
                is_error = load_byte(address + start) != 110
                walk.error = 1 if is_error else 0
                walk.error_offset = start if is_error else -1
                walk.error_bytes = cursor - start if is_error else 0
        if cursor >= 0:
            cursor, name = _member(address, cursor, length, False)
    return cursor


@compiled
def _walk_choices(walk: Any, address: int, cursor: int, length: int) -> int:
    """The array of choices, of which only the first is looked at."""
    walk.choice_count = -1
    _reset_choice(walk)
    if cursor >= length or load_byte(address + cursor) != 91:
        return skip_value(walk, address, cursor, length, 1)
    walk.choice_count = 0
    cursor = skip_space(address, cursor + 1, length)
    if cursor < length and load_byte(address + cursor) == 93:
        return cursor + 1
    while True:
        if walk.choice_count == 0 and cursor < length and load_byte(address + cursor) == 123:
            cursor = _walk_choice(walk, address, cursor + 1, length)
        else:
            cursor = skip_value(walk, address, cursor, length, 2)
        if cursor < 0:
            return -1
        walk.choice_count += 1
        cursor = skip_space(address, cursor, length)
        if cursor >= length:
            return -1
        byte = load_byte(address + cursor)
        if byte == 93:
            return cursor + 1
        if byte != 44:
            return -1
        cursor = skip_space(address, cursor + 1, length)


@compiled
def _walk_choice(walk: Any, address: int, cursor: int, length: int) -> int:
    """The first choice, its brace already read."""
    walk.object_count += 1
    cursor, name = _member(address, cursor, length, True)
    while cursor >= 0 and name != _END:
        start = cursor
        if name == _DELTA:
            cursor = _walk_delta(walk, address, start, length)
        elif name == _TEXT:
            cursor, kind = _text_value(walk, address, start, length, 3)
            walk.text_kind = kind
            walk.text_offset = start + 1 if _is_string(kind) else -1
            walk.text_bytes = cursor - start - 2 if _is_string(kind) else 0
            walk.text_says = 1 if walk.text_bytes > 0 else 0
        elif name == _FINISH_REASON:
            cursor, kind = _text_value(walk, address, start, length, 3)
            walk.finish = 0 if kind == CONTENT_NULL else 1
            walk.finish_offset = start + 1 if _is_string(kind) else -1
            walk.finish_bytes = cursor - start - 2 if _is_string(kind) else 0
        else:
            cursor = skip_value(walk, address, start, length, 3)
        if cursor >= 0:
            cursor, name = _member(address, cursor, length, False)
    return cursor


@compiled
def _walk_delta(walk: Any, address: int, cursor: int, length: int) -> int:
    """What the first choice adds. Of duplicate keys other than `content`, any may be what says something."""
    _reset_delta(walk)
    if cursor >= length or load_byte(address + cursor) != 123:
        return skip_value(walk, address, cursor, length, 3)
    walk.object_count += 1
    cursor, name = _member(address, cursor + 1, length, True)
    while cursor >= 0 and name != _END:
        start = cursor
        if name == _CONTENT:
            cursor, kind = _text_value(walk, address, start, length, 4)
            walk.content_kind = kind
            walk.content_offset = start + 1 if _is_string(kind) else -1
            walk.content_bytes = cursor - start - 2 if _is_string(kind) else 0
            walk.content_says = _says(address, start, cursor)
        else:
            cursor = skip_value(walk, address, start, length, 4)
            if name != _ROLE:
                walk.others_say |= _says(address, start, cursor)
        if cursor >= 0:
            cursor, name = _member(address, cursor, length, False)
    return cursor


@compiled
def _walk_usage(walk: Any, address: int, cursor: int, length: int) -> int:
    """How many tokens the upstream has counted."""
    _reset_usage(walk)
    if cursor >= length or load_byte(address + cursor) != 123:
        return skip_value(walk, address, cursor, length, 1)
    walk.usage = 1
    walk.object_count += 1
    cursor, name = _member(address, cursor + 1, length, True)
    while cursor >= 0 and name != _END:
        start = cursor
        cursor = skip_value(walk, address, start, length, 2)
        if name == _PROMPT_TOKENS:
            walk.prompt_tokens = _count_of(address, start, cursor)
        elif name == _COMPLETION_TOKENS:
            walk.completion_tokens = _count_of(address, start, cursor)
        if cursor >= 0:
            cursor, name = _member(address, cursor, length, False)
    return cursor


@inlined
def _count_of(address: int, start: int, after: int) -> int:
    """A value as a number of tokens, or -1 where it is no plain row of digits."""
    if after - start > _COUNT_DIGITS_MAX:
        return -1
    count = 0
    for cursor in range(start, after):
        byte = load_byte(address + cursor)
        if byte < 48 or byte > 57:
            return -1
        count = count * 10 + byte - 48
    return count


@inlined
def _says(address: int, start: int, after: int) -> int:
    """1 when this value is a string, an array or an object that is not empty."""
    if after < 0:
        return 0
    byte = load_byte(address + start)
    if byte == 34:
        return 1 if after - start > 2 else 0
    if byte == 123 or byte == 91:
        return 1 if skip_space(address, start + 1, after) < after - 1 else 0
    return 0


@inlined
def _is_string(kind: int) -> bool:
    return kind in (CONTENT_PLAIN, CONTENT_ESCAPED)


@inlined
def _text_value(walk: Any, address: int, cursor: int, length: int, depth: int) -> tuple[int, int]:
    """Skip a value that should be a string; where it ends, or -1, and its CONTENT_ kind."""
    if cursor < length and load_byte(address + cursor) == 34:
        after, is_escaped = skip_string(address, cursor + 1, length)
        return after, CONTENT_ESCAPED if is_escaped else CONTENT_PLAIN
    after = skip_value(walk, address, cursor, length, depth)
    is_null = after >= 0 and load_byte(address + cursor) == 110
    return after, CONTENT_NULL if is_null else CONTENT_OTHER


# ---- members and their names


@compiled
def _member(address: int, cursor: int, length: int, is_first: bool) -> tuple[int, int]:
    """Read on to the next value of an object: where it begins, or -1, and which key it has; or the object's end."""
    cursor = skip_space(address, cursor, length)
    if cursor >= length:
        return -1, _OTHER
    byte = load_byte(address + cursor)
    if byte == 125:
        return cursor + 1, _END
    if not is_first:
        if byte != 44:
            return -1, _OTHER
        cursor = skip_space(address, cursor + 1, length)
    if cursor >= length or load_byte(address + cursor) != 34:
        return -1, _OTHER
    after, is_escaped = skip_string(address, cursor + 1, length)
    if after < 0:
        return -1, _OTHER
    key_bytes = after - cursor - 2
    if is_escaped:
        name = _name_of(_escaped_words(address + cursor + 1, key_bytes))
    else:
        name = _name_of(plain_words(address + cursor + 1, key_bytes))
    return behind_colon(address, after, length), name


@inlined
def _name_of(words: Words) -> int:
    length, first = words[0], words[1]
    name = _OTHER
    if length == 7:
        if first == _CONTENT_WORDS[1]:
            name = _CONTENT
        elif first == _CHOICES_WORDS[1]:
            name = _CHOICES
    elif length == 5:
        name = _name_of_five(first)
    elif length == 4:
        if first == _TEXT_WORDS[1]:
            name = _TEXT
        elif first == _ROLE_WORDS[1]:
            name = _ROLE
    elif length == 13:
        if words == _FINISH_REASON_WORDS:
            name = _FINISH_REASON
        elif words == _PROMPT_TOKENS_WORDS:
            name = _PROMPT_TOKENS
    elif words == _COMPLETION_TOKENS_WORDS:
        name = _COMPLETION_TOKENS
    return name


@inlined
def _name_of_five(first: int) -> int:
    if first == _DELTA_WORDS[1]:
        return _DELTA
    if first == _MODEL_WORDS[1]:
        return _MODEL
    if first == _USAGE_WORDS[1]:
        return _USAGE
    if first == _ERROR_WORDS[1]:
        return _ERROR
    return _OTHER


@compiled
def _escaped_words(address: int, length: int) -> Words:
    """A key with escapes, which are valid. No name we know holds a character that needs one of two letters."""
    words = (0, 0, 0, 0)
    cursor = 0
    while cursor < length and words[0] >= 0:
        byte = load_byte(address + cursor)
        if byte != 92:
            words = add_to_words(words, byte)
            cursor += 1
        elif load_byte(address + cursor + 1) == 117:
            words = add_to_words(words, four_digits(address + cursor + 2))
            cursor += 6
        else:
            return NO_NAME
    return words
