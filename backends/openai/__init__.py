"""Relaying streams of OpenAI-compatible servers: which one is asked, with what, and what becomes of it.

Pure decisions on the main thread, with a clock and a source of randomness from outside; the daemon does the rest. Read
`backend` first, then `request` (what is asked), `relay` (one stream's story) and `upstreams` (who is asked).
"""

from backends.openai.backend import OpenAI

__all__ = ["OpenAI"]
