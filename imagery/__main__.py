"""`python -m imagery index SOURCE`: make the indices of shards before a training, and say what is in them.

An index beside a shard is found by all machines that see it; uploaded beside the object (`a.tar.index`), by all that
read the object. SOURCE is as in a recipe: `webdataset:PATH`, or any other kind, which is looked through the same way.
"""

import argparse
import sys

from common.errors import add_debug_flag, guard
from imagery.sources import open_source, summary


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m imagery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    index = commands.add_parser("index", help="make the indices of shards, and say what is in them")
    index.add_argument("source", nargs="+", metavar="SOURCE")
    add_debug_flag(index)
    for spec in parser.parse_args(argv).source:
        print("\n".join(summary(open_source(spec))))


if __name__ == "__main__":
    sys.exit(guard(main))
