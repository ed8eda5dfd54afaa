"""A quick look at what of a request may be long: most of it is right, and then nobody has to look closely.

pydantic says what is right, and what is wrong with the rest, but makes an object of every element for that: 85,000
short messages take it a tenth of a second, in which nobody else is served. msgspec sees in a tenth of that time that
they are right. What it takes pydantic would take, too; the reverse need not be. The names are those of `requests`.

Where it finds a fault, pydantic looks at the element at fault and no other: a list whose last element is wrong is
refused as soon as a right one would be taken.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import msgspec
from msgspec import Meta, Struct
from pydantic import ValidationError, WrapValidator
from pydantic_core import InitErrorDetails

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ValidatorFunctionWrapHandler

TOKENS_MAX = 2**31 - 1
BIAS_MAX = 100
Place: TypeAlias = int | str | None  # of an element; None is the whole value
_index_of = re.compile(r" - at `\$\.value\[(\d+)\]").search


class _Part(Struct, gc=False):
    type: Annotated[str, Meta(min_length=1)]
    text: Any = None  # of a part of the type `text` it is a string


_Content: TypeAlias = str | Annotated[list[_Part], Meta(min_length=1)]


class _CalledFunction(Struct, gc=False):
    name: str
    arguments: str


class _ToolCall(Struct, gc=False):
    id: str
    type: str
    function: _CalledFunction | None = None


class _System(Struct, tag_field="role", tag="system", gc=False):
    content: _Content


class _Developer(_System, tag="developer", gc=False):
    pass


class _User(_System, tag="user", gc=False):
    pass


class _Assistant(Struct, tag_field="role", tag="assistant", gc=False):
    content: _Content | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _CalledFunction | None = None
    refusal: str | None = None


class _Tool(_System, tag="tool", gc=False):
    tool_call_id: str


class _Called(Struct, tag_field="role", tag="function", gc=False):
    name: str
    content: _Content | None = None


class _Function(Struct, gc=False):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _OfferedTool(Struct, gc=False):
    type: Annotated[str, Meta(min_length=1)]
    function: _Function | None = None


_Token: TypeAlias = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
_TokenList: TypeAlias = Annotated[list[_Token], Meta(min_length=1)]
_Bias: TypeAlias = Annotated[float, Meta(ge=-BIAS_MAX, le=BIAS_MAX)]


# What msgspec finds out about a type it keeps of a class, and finds out anew of everything else.
class _Messages(Struct):
    value: Annotated[list[_System | _Developer | _User | _Assistant | _Tool | _Called], Meta(min_length=1)]


class _Parts(Struct):
    value: Annotated[list[_Part], Meta(min_length=1)]


class _ToolCalls(Struct):
    value: list[_ToolCall]


class _Texts(Struct):
    value: Annotated[list[str], Meta(min_length=1)]


class _Tokens(Struct):
    value: _TokenList


class _TokenLists(Struct):
    value: Annotated[list[_TokenList], Meta(min_length=1)]


class _Tools(Struct):
    value: list[_OfferedTool]


class _Functions(Struct):
    value: list[_Function]


class _Numbers(Struct):
    value: list[int]


class _Biases(Struct):
    value: dict[str, _Bias]


class NotTaken(Exception):  # noqa: N818  (the condition's name)
    """The quick look does not take a value, because of the element at `place`."""

    def __init__(self, place: Place = None) -> None:
        super().__init__()
        self.place = place


def _taken(value: object, form: type[Struct]) -> Any:  # noqa: ANN401  (of each form something else)
    """The value as the form has it. Raises NotTaken."""
    try:
        return cast("Any", msgspec.convert({"value": value}, form)).value
    except msgspec.ValidationError as error:
        index = _index_of(str(error))
        raise NotTaken(None if index is None else int(index[1])) from None
    except RecursionError:
        raise NotTaken from None


def _taken_before(value: object, form: type[Struct], take: Callable[[object], None]) -> Any:  # noqa: ANN401
    """As `_taken`; of the elements before the one at fault, `take` may find more than their form says."""
    try:
        return _taken(value, form)
    except NotTaken as fault:
        if fault.place:
            take(cast("list[object]", value)[: cast("int", fault.place)])
        raise


def _lacks_text(part: _Part) -> bool:
    return part.type == "text" and type(part.text) is not str


def _take_messages(value: object) -> None:
    for index, message in enumerate(_taken_before(value, _Messages, _take_messages)):
        content: object = message.content
        if isinstance(content, list) and any(map(_lacks_text, cast("list[_Part]", content))):
            raise NotTaken(index)


def _take_parts(value: object) -> None:
    for index, part in enumerate(_taken_before(value, _Parts, _take_parts)):
        if _lacks_text(part):
            raise NotTaken(index)


def _take_prompt(value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise NotTaken
    first = cast("list[object]", value)[0] if value else None
    form = _Texts if isinstance(first, str) else _TokenLists if isinstance(first, list) else _Tokens
    _taken(cast("object", value), form)


def _take_biases(value: object) -> None:
    try:
        _taken(value, _Biases)
    except NotTaken:
        if not isinstance(value, dict):
            raise
        for name, bias in cast("dict[str, object]", value).items():
            if type(bias) not in {int, float} or not -BIAS_MAX <= cast("float", bias) <= BIAS_MAX:
                raise NotTaken(name) from None
        raise


def _look_at(value: object, place: Place, look_closely: ValidatorFunctionWrapHandler) -> None:
    """Raises ValidationError where the element at this place, or the value, is wrong."""
    if isinstance(place, str):
        look_closely({place: cast("dict[str, object]", value)[place]})
    elif place is not None:
        elements = cast("list[object]", value)
        # The first one stays the first, because what a prompt is goes by it.
        places = [0, place] if place > 0 else [0]
        try:
            look_closely([elements[index] for index in places])
        except ValidationError as error:
            raise _elsewhere(error, places) from None
    look_closely(value)  # the close look takes the element, so it has to see them all


def _elsewhere(error: ValidationError, places: list[int]) -> ValidationError:
    """The first fault, whose place is that in the whole list."""
    fault = error.errors(include_url=False)[0]
    location = list(fault["loc"])  # a prompt's begins with the name of its branch
    position = next(index for index, name in enumerate(location) if isinstance(name, int))
    location[position] = places[cast("int", location[position])]
    details = InitErrorDetails(type=fault["type"], loc=tuple(location), input=fault["input"], ctx=fault.get("ctx", {}))
    return ValidationError.from_exception_data(error.title, [details])


def _quickly(take: Callable[[object], None]) -> WrapValidator:
    def look(value: object, look_closely: ValidatorFunctionWrapHandler) -> object:
        try:
            take(value)
        except NotTaken as fault:
            _look_at(value, fault.place, look_closely)
        return value

    return WrapValidator(look)


def _quickly_as(form: type[Struct]) -> WrapValidator:
    def take(value: object) -> None:
        _taken(value, form)

    return _quickly(take)


# Metadata of fields: the value stays as it came, and is right.
MESSAGES = _quickly(_take_messages)
PARTS = _quickly(_take_parts)
TOOL_CALLS = _quickly_as(_ToolCalls)
PROMPT = _quickly(_take_prompt)
TOKENS = _quickly_as(_Tokens)
TOOLS = _quickly_as(_Tools)
FUNCTIONS = _quickly_as(_Functions)
NUMBERS = _quickly_as(_Numbers)
BIASES = _quickly(_take_biases)
