"""`python -m scripts.bench`: run the scenarios asked for, print what was found. Exit 1 when any stream went wrong."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from scripts.bench import comparing, http_front, options, plot, processes, relay, report
from scripts.bench.probe import ProbeError

if TYPE_CHECKING:
    from collections.abc import Sequence


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _machine() -> dict[str, Any]:
    return {"kernel": platform.release(), "python": platform.python_version(), "cores": os.cpu_count()}


def _run_all(given: options.Options) -> list[dict[str, Any]]:
    """Every scenario on every kind of client socket; what is found is printed as it is found."""
    results: list[dict[str, Any]] = []
    for tcp in given.socket_kinds:
        for scenario in given.scenarios:
            kind = "HTTP" if scenario.is_http else "TCP" if tcp else "socketpairs"
            _say(f"{scenario.name} on {kind}: {scenario.shows}")
            if scenario.is_http:
                result = http_front.run_scenario(given, scenario, say=_say)
            else:
                run_scenario = relay.run_scenario if scenario.is_relayed else comparing.run_scenario
                result = run_scenario(given, scenario, tcp=tcp, say=_say)
            results.append(result)
            print(f"== {scenario.name}, {kind}, checked by {result['checked']} ==")
            print("\n".join(report.scenario_lines(result)), end="\n\n", flush=True)
            if any(run["interrupted"] for figures in result["rounds"] for run in figures.values()):
                raise KeyboardInterrupt
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all streams complete. 1: some were not. 2: it could not be run. 130: Ctrl-C."""
    given = options.parse(arguments)
    try:
        if given.plot is not None:
            plot.load_matplotlib()  # missing? say so before the work, not after it
        for scenario in given.scenarios:
            processes.raise_open_files_limit(min(scenario.streams, scenario.total))
        results = _run_all(given)
        if len(results) > 1:
            print("\n".join(report.summary_lines(results)))
        if given.output is not None:
            given.output.write_text(json.dumps({"machine": _machine(), "results": results}) + "\n")
        if given.plot is not None:
            is_soak = all(scenario.is_soak for scenario in given.scenarios)
            (plot.draw_memory if is_soak else plot.draw)(results, given.plot)
    except KeyboardInterrupt:
        return 130
    except (ProbeError, RuntimeError, ValueError, OSError) as error:
        _say(f"bench: {error}")
        return 2
    return 1 if any(report.is_failed(result) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
