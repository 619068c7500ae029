"""`python -m featsharp_adapter sharpen IMAGE... --adapter FOLDER --out DIR`: feature files and pictures of them."""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.progress import ProgressBar
from common.tensor_files import write_tensors
from featsharp_adapter.adapter.adapter import Adapter, make_untrained
from featsharp_adapter.model.phi_s import CovarianceStatistics
from featsharp_adapter.sharpening.backbone import recorded_teacher
from featsharp_adapter.sharpening.max_memory import parse_memory, return_freed_memory
from featsharp_adapter.sharpening.pictures import ColourBasis, save_panels, to_pictures
from featsharp_adapter.sharpening.sharpener import FITS, Sharpener, SharpenSettings
from imagery.decode import BadImage, decode_image, is_image_name
from teachers.contracts import resize_images
from teachers.frozen import DTYPES, FrozenBackbone
from teachers.registry import load_backbone

#: Longest side of an image in a panel.
PANEL_PIXELS = 480


def add_sharpen(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The options of the command."""
    command = commands.add_parser("sharpen", help="sharpened features of images, and pictures of them")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, and folders of them")
    command.add_argument("--adapter", required=True, help="a folder, builtin:NAME, or a Hub repository")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="NAME.safetensors, NAME.png of each")
    command.add_argument("--teacher", help="a backbone with the weights the adapter was made for, if it moved")
    command.add_argument("--fit", choices=FITS, default="auto", help="how an image meets the teacher's size")
    command.add_argument("--grid", metavar="ROWSxCOLUMNS", help="tokens wanted, at most what the adapter gives")
    command.add_argument("--overlap", type=float, default=0.0, metavar="SHARE", help="of neighbouring tiles, blended")
    passes_help = "teacher passes an image at most (below 1: a share of all), on the tiles predicted to change most"
    command.add_argument("--passes", type=float, metavar="NUMBER", help=passes_help)
    command.add_argument("--low-res", action="store_true", help="write the map before sharpening too, as low_res")
    command.add_argument("--max-memory", metavar="SIZE", help='for tensors, e.g. "2G"')
    command.add_argument("--dtype", choices=DTYPES, help="of the teacher's matrix products; float32 without")
    command.add_argument("--no-pictures", action="store_true", help="feature files only")
    command.set_defaults(run=run_sharpen)


def run_sharpen(arguments: argparse.Namespace) -> int:
    """Sharpen every image, then draw all of them in one basis."""
    settings = SharpenSettings(
        fit=arguments.fit,
        grid=None if arguments.grid is None else parse_grid(arguments.grid),
        overlap=arguments.overlap,
        passes=arguments.passes,
        max_memory=None if arguments.max_memory is None else parse_memory(arguments.max_memory),
    )
    if settings.max_memory is not None:
        return_freed_memory()
    files = find_images(arguments.images)
    adapter = Adapter.from_pretrained(arguments.adapter)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    node = recorded_teacher(arguments.adapter, adapter) if arguments.teacher is None else arguments.teacher
    backbone = FrozenBackbone(load_backbone(node), dtype=arguments.dtype).to(device)
    adapter.meta.check_teacher(arguments.adapter, backbone.spec)
    sharpener = Sharpener(backbone, adapter.to(device), settings)
    bad = sharpen_files(files, sharpener, arguments.out, device, low_res=arguments.low_res)
    done = {name: path for name, path in files.items() if name not in bad}
    for name, reason in bad.items():
        print(f"skipped {files[name]}: {reason}")
    if not done:
        raise UserError(f"none of the images could be sharpened; the last: {list(bad.values())[-1]}")
    if not arguments.no_pictures:
        unsharp = make_untrained("bilinear", backbone.spec, adapter.factor).to(device)
        draw_files(done, Sharpener(backbone, unsharp, replace(settings, passes=None)), arguments.out, device)
    print(f"{len(done)} images: features{'' if arguments.no_pictures else ' and pictures'} in {arguments.out}")
    return 0


def parse_grid(text: str) -> tuple[int, int]:
    """ "48x64" -> (48, 64)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise UserError(f'a grid is ROWSxCOLUMNS, e.g. "48x64", got "{text}"')
    return int(match[1]), int(match[2])


def find_images(paths: Sequence[Path]) -> dict[str, Path]:
    """Name of the output -> image, folders searched in depth; a name that comes twice gets a number."""
    files: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"no image at {path}")
        found = sorted(p for p in path.rglob("*") if p.is_file() and is_image_name(p.name)) if path.is_dir() else [path]
        if not found:
            raise UserError(f"no images in {path}")
        for image in found:
            name = str(image.relative_to(path).with_suffix("")) if path.is_dir() else image.stem
            files[_free(name, files)] = image
    return files


@torch.no_grad()
def sharpen_files(
    files: dict[str, Path], sharpener: Sharpener, out: Path, device: torch.device, *, low_res: bool = False
) -> dict[str, str]:
    """Write OUT/NAME.safetensors {spatial [C, h, w], summary [S] if there is one, low_res [C, g, g'] if asked for};
    returns those that cannot be read.

    A single image that cannot be read is an error; among several it is skipped, and so is one that is too small.
    """
    bad: dict[str, str] = {}
    for name, path in ProgressBar(len(files), "sharpening", "image").over(files.items()):
        try:
            image = read_image(path).to(device)
            features = sharpener(image)
        except UserError as error:
            if len(files) == 1:
                raise
            bad[name] = str(error)
            continue
        tensors = {"spatial": features.spatial[0]}
        if features.summary is not None:
            tensors["summary"] = features.summary[0]
        if low_res:
            tensors["low_res"] = sharpener.low_res(image)[0]
        write_tensors(out / f"{name}.safetensors", tensors)
    return bad


def read_image(path: Path) -> Tensor:
    """[1, 3, H, W] in [0, 1]."""
    try:
        pixels = decode_image(path)
    except BadImage as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def draw_files(files: dict[str, Path], bilinear: Sharpener, out: Path, device: torch.device) -> None:
    """OUT/NAME.png of each: the image, the teacher's own map, the same views enlarged bilinearly, the sharpened map.

    The third panel says what of the fourth is the adapter's doing: an image that is shown in windows has a finer map
    than the teacher's own without any sharpening. All images are drawn in one colour basis.
    """
    spec = bilinear.backbone.spec
    statistics = CovarianceStatistics(spec.spatial_dim)
    for _, _, *maps in _all_maps(files, bilinear, out, device, "fitting colours"):
        for each in maps:
            statistics.update(each)
    basis = ColourBasis.fit(statistics)
    for name, image, own, plain, sharp in _all_maps(files, bilinear, out, device, "drawing"):
        scale = min(1.0, PANEL_PIXELS / max(image.shape[-2:]))
        size = (max(1, round(image.shape[-2] * scale)), max(1, round(image.shape[-1] * scale)))
        columns = {
            "image": to_pictures(resize_images(image, size), size),
            f"{spec.name}, {own.shape[-2]}x{own.shape[-1]}": to_pictures(basis.paint(own), size),
            f"same views, bilinear, {plain.shape[-2]}x{plain.shape[-1]}": to_pictures(basis.paint(plain), size),
            f"sharpened, {sharp.shape[-2]}x{sharp.shape[-1]}": to_pictures(basis.paint(sharp), size),
        }
        save_panels(columns, out / f"{name}.png")


def _all_maps(
    files: dict[str, Path], bilinear: Sharpener, out: Path, device: torch.device, title: str
) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """Name, image, and three maps of each file: the teacher's own, enlarged, sharpened."""
    for name, path in ProgressBar(len(files), title, "image").over(files.items()):
        image = read_image(path)
        shown = image.to(device)
        own = bilinear.backbone(resize_images(shown, bilinear.backbone.spec.native_size)).spatial
        plain = bilinear(shown).spatial
        try:
            sharp = load_file(out / f"{name}.safetensors")["spatial"][None]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{out / name}.safetensors cannot be read back: {error}") from error
        yield name, image, own.cpu(), plain.cpu(), sharp


def _free(name: str, taken: dict[str, Path]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
