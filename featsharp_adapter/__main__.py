"""`python -m featsharp_adapter sharpen | compare | convert ...`; each command's `--help` says what it takes."""

import argparse
import sys

from featsharp_adapter.compare_command import add_compare
from featsharp_adapter.convert_command import add_convert
from featsharp_adapter.sharpen_command import add_sharpen
from teachers.errors import add_debug_flag, guard


def main(argv: list[str]) -> int:
    """Read the command line and run its command."""
    parser = argparse.ArgumentParser(prog="python -m featsharp_adapter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_sharpen, add_compare, add_convert):
        add(commands)
    add_debug_flag(parser)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(guard(main))
