"""`python -m imagery.scenes preview OUT.png`: a sheet of scenes with their labels."""

import argparse
import sys
from pathlib import Path

from common.errors import UserError
from imagery.scenes.preview import write_sheet
from imagery.scenes.settings import PRESETS


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and write the sheet; 0 when it worked, 2 when the user has to put something right."""
    parser = argparse.ArgumentParser(prog="python -m imagery.scenes", description=__doc__)
    commands = parser.add_subparsers(required=True)
    preview = commands.add_parser("preview", help="draw a sheet of scenes with all their labels")
    preview.add_argument("out", type=Path, help="PNG file to write")
    preview.add_argument("--seed", type=int, default=0, help="stream of scenes (0)")
    preview.add_argument("--start", type=int, default=0, help="first scene of the stream (0)")
    preview.add_argument("--count", type=int, default=4, help="number of scenes (4)")
    preview.add_argument("--size", type=int, default=224, help="width of a label map in pixels (224)")
    preview.add_argument("--preset", choices=sorted(PRESETS), default="default", help="what kind of scenes")
    args = parser.parse_args(argv)
    try:
        _check(args)
        settings = PRESETS[args.preset]
        write_sheet(args.out, seed=args.seed, start=args.start, count=args.count, size=args.size, settings=settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {args.out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.count < 1:
        raise UserError(f"--count must be at least 1, got {args.count}")
    if not 64 <= args.size <= 1024:
        raise UserError(f"--size must lie between 64 and 1024 pixels, got {args.size}")
    if min(args.seed, args.start) < 0:
        raise UserError("--seed and --start must not be negative")
    if args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out} is no PNG file name; end it in .png")


if __name__ == "__main__":
    sys.exit(main())
