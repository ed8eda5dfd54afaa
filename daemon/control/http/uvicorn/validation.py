"""From a body's bytes to a request that is right, or to an error that says which field is wrong, and what is right.

The JSON is decoded once, by msgspec, which takes nothing but RFC 8259's: no NaN, no invalid UTF-8, no endless nesting.
pydantic looks at the fields. An error never holds a value: it may be a secret, and it may be long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import msgspec
from pydantic import ValidationError

from daemon.control.http.api.errors import ApiError
from daemon.control.http.uvicorn.requests import Body

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_core import ErrorDetails

B = TypeVar("B", bound=Body)

PATH_CHARACTERS_MAX = 200
REQUIRED = {"messages": "messages is required and must be a non-empty array"}
# What is right where a value fits no branch of a union, by the field's last name.
_UNIONS = {
    "prompt": "a string, or a non-empty array of strings, of token numbers or of arrays of token numbers",
    "stop": "a string or an array of at most 4 strings",
    "content": "a string or a non-empty array of parts",
    "tool_choice": "a string or an object",
    "function_call": "a string or an object",
}
_ROLES = '"system", "developer", "user", "assistant", "tool" or "function"'
_ELEMENTS = {"messages": "an object with role and content", "content": 'an object such as {"type":"text","text":"..."}'}
# What is right, by pydantic's type of error; what the error's context holds is filled in.
_RIGHT = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "an array of {min_length} or more",
    "too_long": "an array of {max_length} or fewer",
    "string_too_short": "a string of {min_length} characters or more",
    "string_too_long": "a string of {max_length} characters or fewer",
}
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (str, "a string"),
    (int, "an integer"),
    (float, "a number"),
    (list, "an array"),
    (dict, "an object"),
)


def parse(model: type[B], raw: bytes) -> tuple[B, dict[str, Any]]:
    """The body as its class has it, and everything that it says. Raises ApiError 400."""
    try:
        said: object = msgspec.json.decode(raw)
    except RecursionError:
        raise ApiError(
            400, "malformed_json", "the body is not JSON that can be read: it is nested too deeply"
        ) from None
    except UnicodeDecodeError:
        raise _malformed("it must be UTF-8") from None
    except msgspec.DecodeError as error:
        raise _malformed(str(error) if raw else "it is empty") from None
    if not isinstance(said, dict):
        raise ApiError(400, "not_an_object", f"the body must be a JSON object, and is {_kind(said)}")
    found = cast("dict[str, Any]", said)
    try:
        return model.model_validate(found), found
    except ValidationError as error:
        _refuse(error.errors(include_url=False)[0], found)
    except RecursionError:
        raise ApiError(
            400, "malformed_json", "the body is not JSON that can be read: it is nested too deeply"
        ) from None


def _malformed(why: str) -> ApiError:
    return ApiError(400, "malformed_json", f"the body is not JSON that can be read: {why}")


def _refuse(error: ErrorDetails, said: Mapping[str, Any]) -> NoReturn:
    kind = error["type"]
    names = _names(error["loc"])
    context = error.get("ctx", {})
    given: object = error["input"]
    if kind in {"union_tag_invalid", "union_tag_not_found"} and isinstance(given, dict):
        if context.get("discriminator") == "'role'":
            names.append("role")
            kind = "missing" if "role" not in given else kind
            right = _ROLES
        else:
            right = _element(names)
    elif kind in {"union_tag_invalid", "union_tag_not_found", "model_attributes_type"}:
        right = _element(names)
    else:
        right = _RIGHT.get(kind, "another value").format(**context)
    path = _path(names)
    if kind == "missing" or (path in REQUIRED and not said.get(path)):
        wanted = f": it must be {right}" if kind != "missing" or names[-1] == "role" else ""
        message = REQUIRED.get(path, f"{path} is required{wanted}")
        raise ApiError(400, "missing_required_parameter", message, param=path)
    is_type = kind.endswith("_type") or kind.startswith("union_tag")
    found = f", and is {_kind(error['input'])}" if is_type and names[-1:] != ["role"] else ""
    code = "invalid_type" if is_type else "invalid_value"
    raise ApiError(400, code, f"{path} must be {right}{found}", param=path)


def _element(names: Sequence[str | int]) -> str:
    """What is right at a place that takes more than one kind of value."""
    if isinstance(names[-1], int):
        return next((_ELEMENTS[name] for name in reversed(names) if name in _ELEMENTS), "an object")
    return _UNIONS.get(names[-1], "an object")


def _names(location: Sequence[str | int]) -> list[str | int]:
    """A place in a body: without the branches of unions, and without the role that a message was looked at as."""
    is_message = location[:1] == ("messages",)
    return [
        name
        for index, name in enumerate(location)
        if not (isinstance(name, str) and name.startswith("?")) and not (is_message and index == 2)
    ]


def _path(names: Sequence[str | int]) -> str:
    """A place as OpenAI writes it, such as messages[0].content."""
    path = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names).lstrip(".")
    return "".join(character if " " <= character <= "~" else "?" for character in path[:PATH_CHARACTERS_MAX])


def _kind(value: object) -> str:
    return next((text for kind, text in _KINDS if isinstance(value, kind)), "null")
