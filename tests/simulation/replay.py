"""Replay one seed and print what happened: `python -m tests.simulation.replay SEED [JUMP]`."""

from __future__ import annotations

import sys

from tests.simulation.scenario import Simulation


def main() -> int:
    """The trace on standard output, then how it ended."""
    seed = int(sys.argv[1])
    simulation = Simulation(seed, trace=print, jump=float(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(simulation.kernel.hostility)
    try:
        simulation.run()
    except AssertionError as error:
        print(f"seed {seed}: {type(error).__name__}: {error}")
        return 1
    print(f"seed {seed}: {simulation.kernel.turns} turns, {dict(simulation.reasons)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
