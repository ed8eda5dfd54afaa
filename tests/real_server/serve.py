"""Runs llama.cpp's server on one model until it is told to stop.

    .cache/real-server/bin/python tests/real_server/serve.py MODEL.gguf PORT API_KEY

The wheel holds the C++ server itself, the one that the program llama-server is, and starts it on threads of this
process. It is built without TLS: that is what the tests put nginx before it for.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

SLOTS = 2
CONTEXT_TOKENS = 65_536  # of all slots
SEED = 7


def main(arguments: list[str]) -> None:
    """Serve; the first line on standard output is the address."""
    # Not imported above: it lies in the server's environment, where alone this program runs.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port = arguments[0], int(arguments[1])
    parameters.api_keys = [arguments[2]]
    parameters.model_alias = {"tiny"}
    parameters.hostnames = ["127.0.0.1"]
    parameters.n_parallel, parameters.n_ctx = SLOTS, CONTEXT_TOKENS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.sampling.seed = SEED
    parameters.endpoint_metrics = parameters.endpoint_slots = True
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.sigwait(stopping)


if __name__ == "__main__":
    main(sys.argv[1:])
