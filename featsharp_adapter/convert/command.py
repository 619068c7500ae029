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
    command.add_argument("--window", type=int, default=7, help="of FeatSharp's attention; weights do not tell")
    command.set_defaults(run=run_convert)


def run_convert(arguments: argparse.Namespace) -> int:
    """Read, convert, save."""
    teacher = load_backbone(arguments.teacher)
    adapter = convert(arguments.checkpoint, teacher.spec, arguments.teacher, window=arguments.window)
    folder = adapter.save_pretrained(arguments.out)
    print(f"{adapter.meta.upsampler} {adapter.factor}x for {teacher.spec.name}: {folder}")
    print("which weights of the teacher it was trained on, a checkpoint does not say: check that these are the same")
    return 0
