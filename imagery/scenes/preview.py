"""A sheet that shows scenes with all their labels, for a look at what everything is trained and judged on."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.errors import UserError
from imagery.scenes import colouring, vocab
from imagery.scenes.render import render_scene
from imagery.scenes.scene import Scene, SecondView
from imagery.scenes.settings import SceneSettings

_GAP = 8
_LINE = 30
_INK, _SOFT, _PAPER = (28, 30, 34), (110, 114, 120), (255, 255, 255)
_SAMPLES = 2  # the two large pictures are drawn at twice the size and averaged
_MARKS = 12


def write_sheet(path: Path, *, seed: int, start: int, count: int, size: int, settings: SceneSettings) -> None:
    """Save a sheet of `count` scenes to `path`; small tiles are `size` pixels wide, the pictures twice that."""
    if not path.parent.is_dir():
        raise UserError(f"folder {path.parent} does not exist")
    strips = [_strip(seed, start + index, size, settings) for index in range(count)]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips) + _GAP), _PAPER)
    top = _GAP
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the sheet to {path}: {error}") from None


def _strip(seed: int, index: int, size: int, settings: SceneSettings) -> Image.Image:
    """One scene: the picture, eight label maps, the second view, and two lines of text below."""
    large = 2 * size + _GAP
    scene = render_scene(seed, index, large, large, settings=settings, second_view=True)
    if scene.second is None:
        raise ValueError("the scene was asked for with its second view")
    smooth = _smooth(seed, index, large, settings)
    tiles = _tiles(scene)
    width = 4 * _GAP + 2 * large + 4 * (size + _GAP) - _GAP
    strip = Image.new("RGB", (width, large + 2 * _LINE + 4 * _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    first, second = _marked_pair(scene, smooth, scene.second)
    strip.paste(first, (_GAP, 0))
    for number, (name, tile) in enumerate(tiles.items()):
        x = 2 * _GAP + large + (number % 4) * (size + _GAP)
        y = (number // 4) * (size + _GAP)
        strip.paste(tile.resize((size, size), Image.Resampling.LANCZOS), (x, y))
        _tag(draw, x, y, name)
    strip.paste(second, (width - large - _GAP, 0))
    _tag(draw, _GAP, 0, f"scene {index}, seed {seed}")
    _tag(draw, width - large - _GAP, 0, "second view")
    _write(draw, scene, large + _GAP // 2, width)
    return strip


def _smooth(seed: int, index: int, large: int, settings: SceneSettings) -> tuple[np.ndarray, np.ndarray]:
    """Both views without jagged edges, averaged from a larger drawing."""
    big = render_scene(
        seed, index, _SAMPLES * large, _SAMPLES * large, settings=settings, labels=False, second_view=True
    )
    if big.second is None:
        raise ValueError("the scene was asked for with its second view")
    return _halve(big.rgb, large), _halve(big.second.rgb, large)


def _halve(rgb: np.ndarray, large: int) -> np.ndarray:
    return rgb.reshape(large, _SAMPLES, large, _SAMPLES, 3).mean(axis=(1, 3)).astype(np.uint8)


def _tiles(scene: Scene) -> dict[str, Image.Image]:
    """The label maps by their title."""
    maps = {
        "semantic": colouring.colour_ids(scene.label_map("semantic"), colouring.class_palette()),
        "instances": colouring.colour_ids(scene.label_map("instance"), colouring.spread_palette(64)),
        "parts": colouring.colour_ids(scene.label_map("part"), colouring.spread_palette(len(vocab.PARTS))),
        "keypoints": colouring.colour_mask(np.zeros_like(scene.label_map("saliency")), scene.rgb),
        "depth": colouring.colour_depth(scene.label_map("depth")),
        "normals": colouring.colour_normals(scene.label_map("normals")),
        "boundaries": colouring.colour_edges(scene.label_map("boundary")),
        "saliency": colouring.colour_mask(scene.label_map("saliency"), scene.rgb),
    }
    tiles = {name: Image.fromarray(rgb) for name, rgb in maps.items()}
    _dot_keypoints(tiles["keypoints"], scene)
    return tiles


def _dot_keypoints(tile: Image.Image, scene: Scene) -> None:
    draw = ImageDraw.Draw(tile)
    palette = colouring.spread_palette(64)
    for point in scene.keypoints:
        if point.visible:
            box = (point.x - 3.5, point.y - 3.5, point.x + 3.5, point.y + 3.5)
            draw.ellipse(box, fill=tuple(palette[point.instance].tolist()), outline=_INK)


def _marked_pair(
    scene: Scene, smooth: tuple[np.ndarray, np.ndarray], view: SecondView
) -> tuple[Image.Image, Image.Image]:
    """Both views with the same numbered marks on points that both of them see: middles of objects' visible pixels."""
    first, second = Image.fromarray(smooth[0]), Image.fromarray(smooth[1])
    for number, (x, y) in enumerate(_points_to_mark(scene, view)):
        u, v = view.flow_xy[y, x]
        _mark(ImageDraw.Draw(first), x + 0.5, y + 0.5, number)
        _mark(ImageDraw.Draw(second), float(u), float(v), number)
    return first, second


def _points_to_mark(scene: Scene, view: SecondView) -> list[tuple[int, int]]:
    """For the largest objects the pixel seen by both views that lies nearest to the middle of what is seen."""
    points = []
    for fact in sorted(scene.objects, key=lambda fact: -fact.pixels)[:_MARKS]:
        rows, columns = np.nonzero((scene.instance == fact.instance) & view.visible)
        if len(rows) > 20:
            nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
            points.append((int(columns[nearest]), int(rows[nearest])))
    return points


def _mark(draw: ImageDraw.ImageDraw, x: float, y: float, number: int) -> None:
    colour = tuple(colouring.spread_palette(_MARKS + 1)[number + 1].tolist())
    draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour, outline=_PAPER, width=2)
    draw.text((x, y), str(number + 1), fill=_PAPER, font=ImageFont.load_default(11), anchor="mm")


def _tag(draw: ImageDraw.ImageDraw, x: int, y: int, text: str) -> None:
    font = ImageFont.load_default(13)
    right = x + draw.textlength(text, font=font) + 12
    draw.rectangle((x, y, right, y + 20), fill=_PAPER)
    draw.text((x + 6, y + 10), text, fill=_INK, font=font, anchor="lm")


def _write(draw: ImageDraw.ImageDraw, scene: Scene, top: int, width: int) -> None:
    """The first caption, the scene class, and one question of each kind."""
    text, small = ImageFont.load_default(22), ImageFont.load_default(18)
    draw.text((_GAP, top), f"“{scene.captions[0]}”", fill=_INK, font=text)
    chosen = {question.kind: question for question in scene.questions}
    asked = [f"{question.question} {question.answer}" for question in chosen.values()]
    line = f"class: {vocab.SCENE_CLASSES[scene.scene_class]}"
    for part in asked:
        longer = f"{line}   ·   {part}"
        if draw.textlength(longer, font=small) < width - 3 * _GAP:
            line = longer
    draw.text((_GAP, top + _LINE + 2), line, fill=_SOFT, font=small)
