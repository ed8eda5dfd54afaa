"""Answers of the API as its OpenAPI document describes them. They describe; what is sent is not made of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Described(BaseModel):
    """What an upstream adds comes through."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(Described):
    """What went wrong."""

    message: str = Field(description="Names what is wrong, and what would be right.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault, such as `messages[0].role`.")
    code: str | None = Field(description="A stable word for programs.", examples=["invalid_type"])


class Error(Described):
    """An error, as OpenAI's clients read it."""

    error: ErrorDetail


class Usage(Described):
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(Described):
    """One answer."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class Completion(Described):
    """The answer to a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = Field(description="null where the upstream does not count.")


class AnswerMessage(Described):
    """What the model said."""

    role: str
    content: str | None
    refusal: str | None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Described):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(Described):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = Field(description="null where the upstream does not count.")


class Model(Described):
    """Something that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str = Field(description="The name of the upstream that serves it.")


class ModelList(Described):
    """All that can be asked for by name, sorted."""

    object: Literal["list"]
    data: list[Model]


class Health(Described):
    """The daemon's process runs."""

    status: Literal["healthy"]
    timestamp: int = Field(description="Unix time, in seconds.")


class WorkerInfo(Described):
    """One worker; the data plane is worker_0."""

    worker_id: str
    is_ready: bool
    processed_requests: int


class Ready(Described):
    """Whether new streams are taken, and why not."""

    model_ready: bool
    queue_size: int
    max_queue_size: int
    device: str
    workers: list[WorkerInfo]


DESCRIBED: tuple[type[BaseModel], ...] = (Error, Completion, ChatCompletion, Model, ModelList, Health, Ready)
