"""`python -m teachers list` shows what is known; `python -m teachers check SPEC [option=value ...]` loads and runs one;
`python -m teachers fetch RECIPE [field=value ...] --to FOLDER` downloads all that a recipe's teachers need.

SPEC is PREFIX:NAME or a short name of the list; an option is written as in a recipe, e.g. `summary=none`.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError, add_debug_flag, guard
from common.plain_yaml import parse_yaml
from common.recipes import read_recipe
from teachers.contracts import Backbone, Features, capability, fit_images
from teachers.fetch import fetch
from teachers.frozen import FrozenBackbone, count_parameters
from teachers.known import KNOWN, KnownTeacher, gating_of
from teachers.registry import load_backbone, loaders
from teachers.weights import in_cache


def main(argv: list[str]) -> int:
    """Parse and do; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m teachers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_debug_flag(commands.add_parser("list", help="registered libraries and the papers' teachers"))
    check = commands.add_parser("check", help="load one backbone, run it once, print its card")
    check.add_argument("spec", help="PREFIX:NAME, or a short name of `list`")
    check.add_argument("options", nargs="*", metavar="option=value", help="as in a recipe's node")
    check.add_argument("--image", type=Path, help="a picture to run it on; random pixels without")
    check.add_argument(
        "--pca",
        type=Path,
        help="save image and features (three principal components) as PNG here; IMAGE.features.png without",
    )
    check.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="size to run at; the native one without")
    check.add_argument("--device", default="cpu", help="where to run it, e.g. cuda (default: cpu)")
    check.add_argument("--bf16", action="store_true", help="run under bf16 autocast")
    add_debug_flag(check)
    get = commands.add_parser("fetch", help="download a recipe's teachers into a folder that works offline")
    get.add_argument("recipe", type=Path, help="of a distillation or of an adapter")
    get.add_argument("overrides", nargs="*", metavar="field=value", help="as on the command line of the run")
    get.add_argument("--to", type=Path, required=True, help="the folder to make or to add to")
    add_debug_flag(get)
    args = parser.parse_args(argv)
    if args.command == "fetch":
        print(fetch(read_recipe(args.recipe, args.overrides), args.to))
    else:
        print(known_table() if args.command == "list" else check_one(args))
    return 0


def known_table() -> str:
    """The registered prefixes and the table of known teachers."""
    head = (
        "short name",
        "spec",
        "role",
        "px",
        "patch",
        "grid",
        "C",
        "S",
        "norm",
        "Mparams",
        "GFLOPs",
        "here",
        "licence",
    )
    rows = [head, *(_known_row(row) for row in KNOWN.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    prefixes = "\n".join(f"  {name:<13} {point.value}" for name, point in sorted(loaders().items()))
    return (
        f"libraries (PREFIX of a spec):\n{prefixes}\n  {'class':<13} PACKAGE.MODULE.NAME, your own Backbone\n\n"
        "teachers of the papers (C, S: widths of map and summary; Mparams of the image tower, GFLOPs of one\n"
        "image at px; norm: pixels are normalised as; here: whether weights are in the hub's cache on this machine):\n"
        + "\n".join(lines)
    )


def _known_row(row: KnownTeacher) -> tuple[str, ...]:
    summary = "-" if row.summary_dim is None else str(row.summary_dim)
    notes = [note for note, holds in (("gated", row.gated), ("trust_remote_code", row.own_code)) if holds]
    return (
        row.short,
        row.spec,
        row.role,
        f"{row.native}",
        f"{row.patch}",
        f"{row.native // row.patch}",
        f"{row.spatial_dim}",
        summary,
        row.norm,
        f"{row.parameters:.0f}",
        f"{row.gflops:.0f}" if row.gflops else "?",
        "yes" if in_cache(row.repository) else "no",
        row.licence + (f" ({', '.join(notes)})" if notes else ""),
    )


def check_one(args: argparse.Namespace) -> str:
    """Load the backbone, run it once, and describe both."""
    options = dict(_option(text) for text in args.options)
    backbone = load_backbone({"spec": args.spec, **options})
    card = _card(backbone)
    if backbone.spec.digest == "meta":
        return f"{card}\nbuilt on the meta device: there are no weights to run"
    frozen = FrozenBackbone(backbone.to(_device(args.device)), dtype="bfloat16" if args.bf16 else None)
    images = _pixels(args.image, frozen, args.size).to(args.device)
    started = time.perf_counter()
    features = frozen(images)
    elapsed = time.perf_counter() - started
    lines = [card, _describe(features, images), f"time          {elapsed:.2f} s for one image, first call"]
    picture = args.pca or (args.image and Path(f"{args.image.stem}.features.png"))
    if picture:
        pca_picture(images[0].cpu(), features.spatial[0].cpu()).save(picture)
        lines.append(f"picture       {picture}")
    return "\n".join(lines)


def _card(backbone: Backbone) -> str:
    spec = backbone.spec
    rows = {key: str(value) for key, value in spec.to_dict().items()}
    rows["gating"] = gating_of(spec.name) or "none that the table knows of"
    rows["native_size"] = (
        f"{spec.native_size[0]}x{spec.native_size[1]} px, {'x'.join(map(str, spec.native_grid))} tokens"
    )
    rows["parameters"] = f"{count_parameters(backbone):,}"
    rows["capabilities"] = ", ".join(
        name for name in ("intermediate", "encode_text", "adaptor") if capability(backbone, name)
    )
    return "\n".join(f"{key:<13} {value}" for key, value in rows.items())


def _describe(features: Features, images: Tensor) -> str:
    lines = [f"input         {list(images.shape)}"]
    for name, tensor in (("summary", features.summary), ("spatial", features.spatial)):
        if tensor is None:
            lines.append(f"{name:<13} none")
            continue
        if not torch.isfinite(tensor).all():
            raise UserError(f"the {name} holds values that are not finite: are these the right weights?")
        channels = (
            tensor.flatten(2).float().std(dim=2).mean().item() if tensor.ndim == 4 else tensor.float().std().item()
        )
        lines.append(f"{name:<13} {list(tensor.shape)}, mean {tensor.mean().item():.4f}, std {channels:.4f}")
    return "\n".join(lines)


def _pixels(path: Path | None, backbone: Backbone, size: list[int] | None) -> Tensor:
    """[1, 3, H, W] in [0, 1], at the size asked for or the native one."""
    height, width = size or backbone.spec.native_size
    if path is None:
        return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    try:
        with Image.open(path) as opened:
            array = np.asarray(opened.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the picture {path}: {error}") from error
    image = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
    return fit_images(image, backbone.spec) if size is None else image


def pca_picture(image: Tensor, spatial: Tensor) -> Image.Image:
    """Image [3, H, W] in [0, 1] beside the three first principal components of spatial [C, h, w], as RGB."""
    channels, height, width = spatial.shape
    tokens = spatial.float().reshape(channels, -1).T
    centred = tokens - tokens.mean(dim=0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    scores = torch.zeros(height * width, 3)
    scores[:, : len(basis)] = centred @ basis.T
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    colours = ((scores - low) / (high - low).clamp_min(1e-8)).clamp(0, 1).reshape(height, width, 3)
    side = Image.fromarray((colours.numpy() * 255).astype(np.uint8)).resize(
        (image.shape[2], image.shape[1]), Image.Resampling.NEAREST
    )
    both = Image.new("RGB", (2 * image.shape[2], image.shape[1]))
    both.paste(Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)), (0, 0))
    both.paste(side, (image.shape[2], 0))
    return both


def _option(text: str) -> tuple[str, object]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UserError(f'an option is name=value, got "{text}"')
    return name, parse_yaml(value, f"option {name}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'there is no device "{name}"') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device on this machine; leave --device out")
    return device


if __name__ == "__main__":
    sys.exit(guard(main))
