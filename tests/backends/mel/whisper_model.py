"""A Whisper model of random weights, in the form that CTranslate2 reads: 4 MB, made in a second, no download.

It hears nothing, but all that is around it is real: the layout of the multilingual vocabulary, the rules of timestamps,
and an encoder and decoder whose words depend on each feature that they are given.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

TEXT_TOKENS = 50_257
LANGUAGES = ["en", "de", "fr", *(f"l{number:02}" for number in range(96))]
WIDTH, HEADS, LAYERS = 16, 2, 1


def vocabulary() -> list[str]:
    """Texts as a byte-level tokenizer writes them (a space is U+0120), then Whisper's own tokens in their order."""
    # The tokenizer's own alphabet has a letter for each byte: "ä" is C3 A4.
    texts = [f"\u0120\u00c3\u00a4{number}" for number in range(TEXT_TOKENS - 1)]
    texts[220] = "\u0120"  # the blank, where Whisper has it
    specials = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev"]
    specials += ["nospeech", "notimestamps", *(f"{number * 0.02:.2f}" for number in range(1501))]
    # The empty one is what a multilingual vocabulary is known by.
    return [*texts, "", *(f"<|{name}|>" for name in specials)]


def make_model(directory: Path, bins: int = 80, seed: int = 1) -> Path:
    """Write a model into a directory, which may be there."""
    specs: Any = importlib.import_module("ctranslate2.specs")
    random = np.random.default_rng(seed)
    tokens = vocabulary()
    model = specs.WhisperSpec(LAYERS, HEADS, LAYERS, HEADS)

    def weights(*shape: int, scale: float = 0.6) -> Any:  # noqa: ANN401
        return random.normal(0, scale, shape).astype(np.float32)

    def linear(layer: Any, outputs: int, inputs: int) -> None:  # noqa: ANN401
        layer.weight, layer.bias = weights(outputs, inputs), weights(outputs)

    def norm(layer: Any) -> None:  # noqa: ANN401
        layer.gamma, layer.beta = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def attention(layer: Any, sizes: list[int]) -> None:  # noqa: ANN401
        norm(layer.layer_norm)
        for one, size in zip(layer.linear, sizes, strict=True):
            linear(one, size, WIDTH)

    def feed_forward(layer: Any) -> None:  # noqa: ANN401
        norm(layer.layer_norm)
        linear(layer.linear_0, 2 * WIDTH, WIDTH)
        linear(layer.linear_1, WIDTH, 2 * WIDTH)

    encoder, decoder = model.encoder, model.decoder
    for convolution, inputs in ((encoder.conv1, bins), (encoder.conv2, WIDTH)):
        convolution.weight, convolution.bias = weights(WIDTH, inputs, 3), weights(WIDTH)
    encoder.position_encodings.encodings = weights(1500, WIDTH)
    for layer in encoder.layer:
        attention(layer.self_attention, [3 * WIDTH, WIDTH])
        feed_forward(layer.ffn)
    decoder.embeddings.weight = weights(len(tokens), WIDTH)
    decoder.position_encodings.encodings = weights(448, WIDTH)
    decoder.projection.weight = weights(len(tokens), WIDTH)
    for layer in decoder.layer:
        attention(layer.self_attention, [3 * WIDTH, WIDTH])
        attention(layer.attention, [WIDTH, 2 * WIDTH, WIDTH])
        feed_forward(layer.ffn)
    for one in (encoder, decoder):
        norm(one.layer_norm)
    first_language = tokens.index("<|en|>")
    model.config.lang_ids = list(range(first_language, first_language + len(LANGUAGES)))
    model.config.suppress_ids = list(range(tokens.index("<|translate|>"), tokens.index("<|notimestamps|>")))
    model.config.suppress_ids_begin = [220, tokens.index("<|endoftext|>")]
    model.config.alignment_heads = [(0, 0)]
    model.register_vocabulary(tokens)
    model.validate()
    directory.mkdir(exist_ok=True)
    model.save(str(directory))
    return directory
