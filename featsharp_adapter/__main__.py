"""`python -m featsharp_adapter sharpen | compare | measure | convert ...`; `--help` of each says what it takes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import add_debug_flag, guard
from featsharp_adapter.compare.command import add_compare
from featsharp_adapter.compare.measure_command import add_measure
from featsharp_adapter.compare.probes import Probes
from featsharp_adapter.convert.command import add_convert
from featsharp_adapter.sharpening.command import add_sharpen
from teachers.contracts import Backbone


def open_probes(path: Path, overrides: Sequence[str]) -> Probes:
    """An evaluation suite as a function of a backbone: every probe's result by `task metric`."""
    from eval_suite.suite import load_suite, run_suite  # this script may reach into the neighbouring room

    suite = load_suite(path, overrides)

    def probes(backbone: Backbone) -> dict[str, float]:
        results = run_suite(backbone, suite, progress=False)["results"]
        return {f"{result['task']} {result['metric']}": result["value"] for result in results}

    return probes


def main(argv: list[str]) -> int:
    """Read the command line and run its command."""
    parser = argparse.ArgumentParser(prog="python -m featsharp_adapter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_sharpen(commands)
    add_compare(commands, open_probes)
    add_measure(commands)
    add_convert(commands)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(guard(main))
