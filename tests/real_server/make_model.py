"""Writes a model of random weights: a real llama in its make-up, half a megabyte in size, and with nothing to say.

    .cache/real-server/bin/python tests/real_server/make_model.py MODEL.gguf

Its words are such that what goes wrong with text goes wrong here: letters of two and three bytes, an emoji, quotation
marks, backslashes, line feeds. Always the same seed, so always the same model.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

SEED = 1
WIDTH, BLOCKS, HEADS, FEED_FORWARD = 64, 2, 4, 128
CONTEXT_TOKENS = 131_072
# llama.cpp's kinds of tokens.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
WORD_SPREAD = 0.5


def vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, their scores and kinds: three of control, every byte, then words."""
    words = [f"▁{first}{second}" for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "ä", "é")]
    words += [*"abcdefghijklmnopqrstuvwxyz▁.,!?:", '▁"', "\\", "\n", "日本", "語", "🙂", "</", "\t"]
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % value for value in range(256))]
    scores = [0.0] * len(tokens)
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    for rank, word in enumerate(words):
        tokens.append(word.encode())
        scores.append(-float(rank))
        kinds.append(NORMAL)
    return tokens, scores, kinds


def add_description(writer: Any, tokens: list[bytes], scores: list[float], kinds: list[int]) -> None:  # noqa: ANN401
    """What llama.cpp must know to load the weights and to split text."""
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(value=True)


def add_weights(writer: Any, kinds: list[int]) -> None:  # noqa: ANN401
    """Random ones. What is no word has a weight of 0 in the output, so that next to nothing but words is said."""
    random = np.random.default_rng(SEED)

    def add(name: str, *shape: int, spread: float = 0.2) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) * spread).astype(np.float32))

    def add_ones(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))

    add("token_embd.weight", len(kinds), WIDTH)
    add_ones("output_norm.weight")
    output = random.standard_normal((len(kinds), WIDTH)) * WORD_SPREAD
    output[np.array(kinds) != NORMAL] = 0
    writer.add_tensor("output.weight", output.astype(np.float32))
    for block in range(BLOCKS):
        prefix = f"blk.{block}."
        add_ones(f"{prefix}attn_norm.weight")
        add_ones(f"{prefix}ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{prefix}{name}.weight", WIDTH, WIDTH)
        add(f"{prefix}ffn_gate.weight", FEED_FORWARD, WIDTH)
        add(f"{prefix}ffn_up.weight", FEED_FORWARD, WIDTH)
        add(f"{prefix}ffn_down.weight", WIDTH, FEED_FORWARD)


def main(path: str) -> None:
    """Write the model to `path`."""
    # Not imported above: it lies in the server's environment, where alone this program runs.
    gguf: Any = importlib.import_module("gguf")
    tokens, scores, kinds = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    add_description(writer, tokens, scores, kinds)
    add_weights(writer, kinds)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
