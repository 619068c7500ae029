"""python -m eval_suite run | rescore | record | vlm | table | data check: probe backbones, compare runs, look at data.

Several processes probe one backbone with: accelerate launch --multi_gpu --num_processes N -m eval_suite run ...
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.errors import UserError, add_debug_flag, guard
from common.launch_options import refuse_unheeded
from common.plain_yaml import parse_yaml
from common.recipes import read_recipe
from common.run_lock import add_take_over_flag, maybe_locked
from eval_suite.class_table import class_table
from eval_suite.like_with_like import check_alike
from eval_suite.power import power_lines
from eval_suite.published import CsvOptions
from eval_suite.results import read_metrics, write_metrics
from eval_suite.table import build_table
from eval_suite.table_formats import FORMATS, render
from eval_suite.table_rows import find_baseline, read_rows
from teachers.imports import many_imports

HELP_BACKBONE = (
    "PREFIX:REST, e.g. tiny:dino, timm:NAME, run:runs/NAME; or a node with options, inline or a file: "
    "'{spec: timm:NAME, weights: FILE}', backbone.yaml"
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval_suite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="probe one backbone and write its metrics.json"))
    _add_record(commands.add_parser("record", help="probe one backbone and keep the answer in the package"))
    _add_vlm(commands.add_parser("vlm", help="train a suite's vision-language model into a folder, e.g. for lmms-eval"))
    _add_data(commands.add_parser("data", help="what is there of a suite's data, and what is missing"))
    _add_rescore(commands.add_parser("rescore", help="compute the scores again from kept predictions"))
    _add_table(commands.add_parser("table", help="the Δm table of several runs against a baseline"))
    return parser


def _add_backbone_and_suite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", required=True, help=HELP_BACKBONE)
    parser.add_argument("--suite", required=True, help="suite file, e.g. recipes/suites/embedded.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the suite, e.g. seed=1")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_backbone_and_suite(parser)
    parser.add_argument("--out", required=True, type=Path, help="metrics.json to write")
    parser.add_argument(
        "--cache", type=Path, help="folder to keep features in: an interrupted or repeated run goes on from there"
    )
    parser.add_argument(
        "--keep-predictions",
        action="store_true",
        help="also write what was predicted of each test image, for the report's pictures and `rescore`",
    )
    parser.add_argument("--device", default="cpu", help="where the backbone runs, e.g. cuda")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the backbone's matrix products; a table does not mix them",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="GROUP",
        help="run this group of probes, e.g. vlm; may be repeated",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="of several processes: how long one waits for another that does not answer",
    )
    add_take_over_flag(parser)
    add_debug_flag(parser)


def _add_record(parser: argparse.ArgumentParser) -> None:
    _add_backbone_and_suite(parser)
    add_debug_flag(parser)


def _add_vlm(parser: argparse.ArgumentParser) -> None:
    _add_backbone_and_suite(parser)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for checkpoints and the model; goes on from there"
    )
    parser.add_argument("--device", default="cpu", help="where it runs, e.g. cuda")
    add_take_over_flag(parser)
    add_debug_flag(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["check"])
    parser.add_argument("suite", help="suite file, e.g. recipes/suites/radio.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.ade20k.root=/data/ade20k")
    parser.add_argument("--thorough", action="store_true", help="decode every file, not eight of each set")
    add_debug_flag(parser)


def _add_rescore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("metrics", type=Path, help="run folder or metrics.json, probed with --keep-predictions")
    add_debug_flag(parser)


def _add_table(parser: argparse.ArgumentParser) -> None:
    help_sources = (
        "run folders, the folder of an ablation (its arms), metrics.json or CSV files, published:NAME, "
        "recorded:tiny-dino; "
        "NAME=PATH names a row, twice: two runs of it"
    )
    parser.add_argument("sources", nargs="+", metavar="RUN_OR_JSON", help=help_sources)
    parser.add_argument("--baseline", required=True, metavar="NAME", help="the row the others are compared with")
    parser.add_argument("--format", metavar="|".join(FORMATS), help="default: what --out ends in, else md")
    parser.add_argument("--out", type=Path, help="write there instead of printing")
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="NAME",
        help="a group, group/task or group/task/metric that may be missing: it is left out of every row",
    )
    parser.add_argument(
        "--power", type=float, metavar="PERCENT", help="also say how many runs and test units a Δm of that size needs"
    )
    parser.add_argument(
        "--by-class", metavar="TASK", help="instead of the Δm table the IoU of every class of a task, for every row"
    )
    for direction in ("lower", "higher"):
        parser.add_argument(
            f"--{direction}-is-better",
            action="append",
            default=[],
            metavar="NAME",
            help="a CSV's metric, task/metric or group/task/metric whose name does not say its direction",
        )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="WHAT",
        help="what may differ between the rows' measurements: protocol, data, program, dtype, scale (shares of 1 "
        "beside percent), unrecorded (an older file), or one option, e.g. protocol.k; may be repeated",
    )
    add_debug_flag(parser)


def run(options: argparse.Namespace) -> None:
    """Probe a backbone and write what was found."""
    with many_imports():  # torch, datasets and all: `table` does without them
        from eval_suite.finished import FinishedTasks
        from eval_suite.predictions import Predictions
        from eval_suite.processes import joined_processes, rank, world
        from eval_suite.suite import load_suite, run_suite
        from teachers.frozen import in_dtype
        from teachers.registry import load_backbone

    suite = load_suite(options.suite, options.overrides).only(options.only)
    check_place(options.out)
    check_device(options.device)
    heeded = {"--mixed_precision": ["bf16"]} if options.dtype == "bfloat16" else {}
    refuse_unheeded({"--mixed_precision": "--dtype"}, heeded)
    if not 0 < options.patience < 1e6:
        raise UserError(f"--patience {options.patience:g}: give a positive number of minutes")
    mine = options.out if int(os.environ.get("RANK", "0")) == 0 else None  # one of several processes writes
    locked = maybe_locked(mine, is_file=True, take_over=options.take_over)
    with locked, joined_processes(options.device, options.patience) as device:
        node = backbone_node(options.backbone)
        kept = Predictions() if options.keep_predictions else None
        metrics = run_suite(
            in_dtype(load_backbone(node), options.dtype, suite.batch_size),
            suite,
            progress=rank() == 0,
            samples=True,
            cache=options.cache,
            device=device,
            finished=options.out,
            predictions=kept,
        )
        if rank() == 0:
            keep_metrics(options.out, metrics, world())
            FinishedTasks.beside(options.out).clear()


def keep_metrics(out: Path, metrics: dict[str, Any], processes: int) -> None:
    """Write what was measured, and say what was not; UserError when nothing was."""
    lacking = [f"{task}: {reason}" for task, reason in metrics.get("absent", {}).items()]
    if not metrics["results"]:
        raise UserError(f"nothing could be measured ({'; '.join(lacking)}); probe what this backbone can do")
    write_metrics(out, metrics)
    by = f" by {processes} processes" if processes > 1 else ""
    print(f"{len(metrics['results'])} results written to {out}{by}")
    for line in lacking:
        print(f"not measured: {line}")


def check_place(out: Path) -> None:
    """UserError where no file can be written, before hours are spent on what should go into it."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it, e.g. {out / 'metrics.json'}")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: cannot write into {above}; name another place")


def check_device(name: str) -> None:
    """UserError for a device that torch does not know or this machine does not have."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name}: {reason}; use cpu, cuda or cuda:0 as there is") from error


def vlm(options: argparse.Namespace) -> None:
    """Train a suite's vision-language model, or go on with it; it stays in a folder."""
    import torch

    from eval_suite.readers.remembered import Remembered
    from eval_suite.suite import load_suite
    from eval_suite.vlm.training import Where, trained
    from teachers.registry import load_backbone

    suite = load_suite(options.suite, options.overrides)
    if suite.vlm is None:
        raise UserError(f"{options.suite} has no vlm node")
    wanted = {stage.data for stage in suite.vlm.stages.values()}
    data = {name: Remembered(suite.data[name].open(name)) for name in wanted}
    node = backbone_node(options.backbone)
    where = Where(torch.device(options.device), options.out, node=node, progress=True, take_over=options.take_over)
    trained(load_backbone(node), suite.vlm, data, suite.seed, where)
    print(f"the model is in {options.out}")


def keep(options: argparse.Namespace) -> None:
    """Probe a backbone and keep the answer where later runs find it."""
    from eval_suite.recorded import record
    from eval_suite.suite import load_suite
    from teachers.registry import load_backbone

    suite = load_suite(options.suite, options.overrides)
    node = backbone_node(options.backbone)
    print(f"written to {record(load_backbone(node), suite)}")


def backbone_node(text: str) -> str | dict[str, Any]:
    """The short form as it is; `{...}` and a .yaml file as the mapping they hold."""
    if text.endswith((".yaml", ".yml")):
        return read_recipe(text)
    if not text.startswith("{"):
        return text
    node = parse_yaml(text, f"--backbone {text:.80}")
    if not isinstance(node, dict):
        raise UserError(f"--backbone {text}: write {{spec: PREFIX:REST, option: value}}")
    return node


def data(options: argparse.Namespace) -> None:
    """Say what was found of a suite's data; UserError where anything is missing."""
    from eval_suite.data_check import check_suite, report_lines
    from eval_suite.suite import load_suite

    findings = check_suite(load_suite(options.suite, options.overrides), thorough=options.thorough)
    for line in report_lines(findings):
        print(line)
    if problems := sum(finding.problem for finding in findings):
        raise UserError(f"{problems} of {len(findings)} sets cannot be used; see the lines marked PROBLEM")


def rescore(options: argparse.Namespace) -> None:
    """Print kept and recomputed scores side by side; UserError where they differ."""
    from eval_suite.predictions import TOLERANCE, read_predictions
    from eval_suite.predictions import rescore as compute_again

    path = options.metrics / "metrics.json" if options.metrics.is_dir() else options.metrics
    metrics, kept = read_metrics(path), read_predictions(path)
    if kept is None:
        raise UserError(f"no predictions beside {path}; probe with --keep-predictions")
    lines = compute_again(metrics, kept)
    for task, metric, before, after in lines:
        print(f"{task}/{metric}: {before:.6g}, again {after:.6g}")
    if odd := [
        f"{task}/{metric}" for task, metric, before, after in lines if abs(before - after) > TOLERANCE * abs(before)
    ]:
        raise UserError(f"{len(odd)} of {len(lines)} scores do not come out again: {', '.join(odd)}")
    print(f"{len(lines)} of {len(metrics.results)} scores come out again; the others keep no predictions")


def table(options: argparse.Namespace) -> None:
    """Print or write a Δm table."""
    said = CsvOptions(options.lower_is_better, options.higher_is_better)
    rows = read_rows(options.sources, said)
    ending = options.out.suffix.removeprefix(".") if options.out else ""
    form = options.format or (ending if ending in FORMATS else "md")
    if options.by_class is not None:
        if form != "md":
            raise UserError(f"--by-class writes Markdown, not {form}")
        if options.power is not None or options.allow_missing:
            raise UserError("--by-class is no Δm table: take out --power and --allow-missing")
        check_alike(rows, find_baseline(rows, options.baseline), (), options.allow)
        show(class_table(rows, options.by_class), options.out)
        return
    built = build_table(rows, find_baseline(rows, options.baseline), options.allow_missing, options.allow)
    if options.power is not None and not options.power > 0:
        raise UserError(f"--power {options.power:g}: the wished-for difference is a positive percentage")
    show(render(built, form), options.out)
    for line in power_lines(built, options.power) if options.power is not None else ():
        print(line, file=sys.stderr)


def show(text: str, out: Path | None) -> None:
    """Print a table, or write it down and say where."""
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(f"written to {out}")


def main(argv: list[str]) -> None:
    """Run one command."""
    options = build_parser().parse_args(argv)
    {"run": run, "record": keep, "vlm": vlm, "data": data, "rescore": rescore, "table": table}[options.command](options)


if __name__ == "__main__":
    sys.exit(guard(main))
