"""Response schemas for the OpenAPI document. Responses are not built from them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Described(BaseModel):
    """Allows additional fields, because an upstream's fields are passed on."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(Described):
    """Details of an error."""

    message: str = Field(description="What is wrong, and what would be correct.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault, such as `messages[0].role`.")
    code: str | None = Field(description="A stable code for programs.", examples=["invalid_type"])


class Error(Described):
    """An error in OpenAI's format."""

    error: ErrorDetail


class Usage(Described):
    """Tokens used by a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(Described):
    """One choice."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class Completion(Described):
    """The response to a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = Field(description="null where the upstream does not count.")


class AnswerMessage(Described):
    """The model's message."""

    role: str
    content: str | None
    refusal: str | None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Described):
    """One choice."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(Described):
    """The response to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = Field(description="null where the upstream does not count.")


class Model(Described):
    """A model that can be requested."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str = Field(description="The name of the upstream that serves it.")


class ModelList(Described):
    """All models that can be requested by name, sorted."""

    object: Literal["list"]
    data: list[Model]


class Health(Described):
    """The daemon's process is running."""

    status: Literal["healthy"]
    timestamp: int = Field(description="Unix time, in seconds.")


class WorkerInfo(Described):
    """One worker; the data plane is worker_0."""

    worker_id: str
    is_ready: bool
    processed_requests: int


class Ready(Described):
    """Whether new streams are accepted, and if not, why."""

    model_ready: bool
    queue_size: int
    max_queue_size: int
    device: str
    workers: list[WorkerInfo]


DESCRIBED: tuple[type[BaseModel], ...] = (Error, Completion, ChatCompletion, Model, ModelList, Health, Ready)
