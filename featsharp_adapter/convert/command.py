"""`python -m featsharp_adapter convert CHECKPOINT --teacher SPEC --out FOLDER`: an author's file as an adapter."""

import argparse
from pathlib import Path

from featsharp_adapter.convert.official import convert
from teachers.registry import load_backbone


def add_convert(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The options of the command."""
    command = commands.add_parser("convert", help="a FeatSharp or FeatUp JBU checkpoint as an adapter folder")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--teacher", required=True, metavar="SPEC", help="the backbone it was trained with")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    command.add_argument(
        "--antialiased-views",
        action="store_true",
        help="resize what the teacher sees as this package does; published code has no antialiasing",
    )
    command.set_defaults(run=run_convert)


def run_convert(arguments: argparse.Namespace) -> int:
    """Read, convert, save."""
    teacher = load_backbone(arguments.teacher)
    adapter = convert(
        arguments.checkpoint, teacher.spec, arguments.teacher, published_views=not arguments.antialiased_views
    )
    folder = adapter.save_pretrained(arguments.out)
    print(f"{adapter.meta.upsampler} {adapter.factor}x for {teacher.spec.name}: {folder}")
    print("which weights of the teacher it was trained on, a checkpoint does not say: check that these are the same")
    return 0
