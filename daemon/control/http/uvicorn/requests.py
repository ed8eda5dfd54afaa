"""The bodies of OpenAI's API as the HTTP front takes them, and as its OpenAPI document describes them.

A field that is not listed here is let through to the upstream as it came. A field that is listed has the type and the
bounds that OpenAI's reference gives it; null is the same as leaving it out. Nothing is converted: "5" is no number.

What may be long is looked at quickly first (`quick`), and stays as it came: of a request's class its type says what it
holds, and not of which class that is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from backends.openai.request import MODEL_CHARACTERS_MAX
from daemon.control.http.uvicorn import quick
from daemon.control.http.uvicorn.quick import BIAS_MAX, TOKENS_MAX

CHOICES_MAX = 128
STOPS_MAX = 4
TEXT = "?text"  # what begins with a question mark is a branch of a union, and no part of a field's path
LIST = "?list"
OBJECT = "?object"
TEXT_PART = "?text part"
OTHER_PART = "?other part"


def _shape(value: Any) -> str | None:  # noqa: ANN401  (whatever a client sent)
    """Which branch of a union a value is for; None where it fits none."""
    if isinstance(value, str):
        return TEXT
    if isinstance(value, list):
        return LIST
    return OBJECT if isinstance(value, dict) else None


def _prompt_shape(value: Any) -> str | None:  # noqa: ANN401
    """The same, of a prompt: a list is of what its first element is."""
    if not isinstance(value, list) or not value:
        return TEXT if isinstance(value, str) else None
    first = cast("list[object]", value)[0]
    if isinstance(first, str):
        return "?texts"
    return "?token lists" if isinstance(first, list) else "?tokens"


def _part_shape(value: Any) -> str | None:  # noqa: ANN401
    """The same, of a part of a message."""
    if not isinstance(value, dict):
        return None
    return TEXT_PART if cast("dict[str, object]", value).get("type") == "text" else OTHER_PART


class Body(BaseModel):
    """What all objects of a request have in common."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


Tokens: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=0, le=TOKENS_MAX)]], Field(fail_fast=True, min_length=1), quick.TOKENS
]
Prompt: TypeAlias = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[str], Field(fail_fast=True, min_length=1), Tag("?texts")]
    | Annotated[Tokens, Tag("?tokens")]
    | Annotated[list[Tokens], Field(fail_fast=True, min_length=1), Tag("?token lists")],
    Discriminator(_prompt_shape),
    quick.PROMPT,
]
Stop: TypeAlias = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[str], Field(fail_fast=True, max_length=STOPS_MAX), Tag(LIST)],
    Discriminator(_shape),
]
Choice: TypeAlias = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[dict[str, Any], Tag(OBJECT)],
    Discriminator(_shape),
]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
Numbers: TypeAlias = Annotated[list[int], Field(fail_fast=True), quick.NUMBERS]
TokenCount: TypeAlias = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


class StreamOptions(Body):
    """What a stream tells besides its text."""

    include_usage: bool | None = Field(None, description="One more event before `[DONE]`, with the counts of tokens.")
    continuous_usage_stats: bool | None = Field(None, description="Counts in every event, where the upstream can.")


class Sampling(Body):
    """What both endpoints take: OpenAI's parameters, and those that servers of open models have added."""

    model: Annotated[str, Field(max_length=MODEL_CHARACTERS_MAX)] | None = Field(
        None,
        description="One of `GET /v1/models`. Left out: the default model. That is `test-model` where no upstream is"
        " configured, and there it is also called `test` and `default`.",
        examples=["test-model"],
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = Field(
        None, description="Tokens of the answer at most. 0 is an answer without any. `test-model` makes 16 by default."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = Field(None, description="How many answers.")
    stop: Stop | None = Field(None, description="A string, or at most 4 of them, before which the answer ends.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-BIAS_MAX, le=BIAS_MAX)]], quick.BIASES] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    user: str | None = Field(None, description="The end user, for the upstream.")
    top_k: Annotated[int, Field(ge=-1, le=TOKENS_MAX)] | None = Field(None, description="-1 and 0: all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    length_penalty: float | None = None
    use_beam_search: bool | None = None
    stop_token_ids: Numbers | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: TokenCount | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: Numbers | None = None
    prompt_logprobs: Annotated[int, Field(ge=-1)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None

    @property
    def tokens_max(self) -> int | None:
        """How many tokens are asked for at most."""
        return self.max_tokens


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`."""

    prompt: Prompt | None = Field(
        None, description="Text, token numbers, or a list of either. Left out: empty.", examples=["Hello"]
    )
    suffix: str | None = None
    echo: bool | None = Field(None, description="Begin the answer with the prompt.")
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None


# ---- a conversation


class TextPart(Body):
    """Text in a message."""

    type: Literal["text"]
    text: str


class OtherPart(Body):
    """A picture, sound, a file, a refusal, or what else an upstream knows."""

    type: Annotated[str, Field(min_length=1, json_schema_extra={"not": {"const": "text"}})]


Part: TypeAlias = Annotated[
    Annotated[TextPart, Tag(TEXT_PART)] | Annotated[OtherPart, Tag(OTHER_PART)],
    Discriminator(_part_shape),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Field(fail_fast=True, min_length=1), quick.PARTS, Tag(LIST)],
    Discriminator(_shape),
]


class CalledFunction(Body):
    """Which function an assistant called, and with what."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that an assistant made."""

    id: str
    type: str
    function: CalledFunction | None = None


class SystemMessage(Body):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Body):
    """What a person says."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Body):
    """What the model said."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True), quick.TOOL_CALLS] | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None


class ToolMessage(Body):
    """What a tool gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


class FunctionMessage(Body):
    """What a function gave, in the older form."""

    role: Literal["function"]
    content: Content | None = None
    name: str


Message: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may use."""

    type: Annotated[str, Field(min_length=1)]
    function: Function | None = None


class ResponseFormat(Body):
    """How the answer is to be written."""

    type: Annotated[str, Field(min_length=1)]
    json_schema: dict[str, Any] | None = None


class ChatCompletionRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1), quick.MESSAGES] = Field(
        examples=[[{"role": "user", "content": "Hello"}]]
    )
    max_completion_tokens: TokenCount | None = Field(None, description="Takes the place of `max_tokens`.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True), quick.TOOLS] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(fail_fast=True), quick.FUNCTIONS] | None = None
    function_call: Choice | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: Annotated[list[str], Field(fail_fast=True)] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    web_search_options: dict[str, Any] | None = None

    @property
    def tokens_max(self) -> int | None:
        """How many tokens are asked for at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
