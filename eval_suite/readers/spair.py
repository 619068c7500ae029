"""`reader: spair71k`: semantic keypoints with fixed image pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.readers.contracts import TEST, TRAIN, KeypointImages, KeypointObject, LabelledData
from eval_suite.readers.nodes import FileReaderNode, split_of
from eval_suite.readers.photo_sizes import PhotoSize, check_box, check_label, check_points
from eval_suite.readers.text_files import read_json


class SpairNode(FileReaderNode):
    """SPair-71k: JPEGImages, ImageAnnotation/<class>/<id>.json, PairAnnotation/{trn,val,test}/*.json."""

    reader: Literal["spair71k"]
    size: Pixels | tuple[Pixels, Pixels] = 448
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "trn", TEST: "test"})

    def open(self, name: str) -> "SpairData":
        self.folder(name)
        return SpairData(name, self)


class SpairData(LabelledData):
    """One object an image; the pairs are those of the benchmark."""

    def __init__(self, name: str, node: SpairNode) -> None:
        self.name = name
        self.node = node

    def keypoints(self, split: str) -> KeypointImages:
        root = self.node.folder(self.name)
        root = root / "SPair-71k" if (root / "SPair-71k").is_dir() else root
        folder = root / "PairAnnotation" / split_of(split, self.node.splits)
        listed = sorted(folder.glob("*.json"))
        if not listed:
            raise UserError(f'data "{self.name}": {folder} has no pair annotations')
        pairs = [_read(listed[at]) for at in self.node.kept(len(listed), split)]
        known: dict[tuple[str, str], int] = {}
        for pair in pairs:
            for side in ("src_imname", "trg_imname"):
                known.setdefault((pair["category"], Path(pair[side]).stem), len(known))
        files = [root / "JPEGImages" / kind / f"{stem}.jpg" for kind, stem in known]
        images = self.node.photographs(self.name, files)
        objects = [self._object(root, kind, stem, row, images.photo(row)) for (kind, stem), row in known.items()]
        numbers = [tuple(known[p["category"], Path(p[s]).stem] for s in ("src_imname", "trg_imname")) for p in pairs]
        return KeypointImages(images, objects, self.node.fitting.size, [(a, b) for a, b in numbers])

    def _object(self, root: Path, kind: str, stem: str, row: int, photo: PhotoSize) -> KeypointObject:
        path = root / "ImageAnnotation" / kind / f"{stem}.json"
        note = _read(path)
        if missing := {"image_width", "image_height", "kps", "bndbox"} - note.keys():
            raise UserError(f"{path} has no {', '.join(sorted(missing))}; it is not of SPair-71k")
        width, height = note["image_width"], note["image_height"]
        check_label((height, width), replace(photo, exact=True), str(path))
        check_box([float(side) for side in note["bndbox"]], photo, str(path))
        check_points([place for place in note["kps"].values() if place is not None], photo, str(path))
        move = self.node.fitting.affine(height, width)
        points = {
            name: (place[0] * move.scale_x + move.shift_x, place[1] * move.scale_y + move.shift_y)
            for name, place in note["kps"].items()
            if place is not None
        }
        x0, y0, x1, y1 = (float(side) for side in note["bndbox"])
        box = (
            x0 * move.scale_x + move.shift_x,
            y0 * move.scale_y + move.shift_y,
            x1 * move.scale_x + move.shift_x,
            y1 * move.scale_y + move.shift_y,
        )
        return KeypointObject(row, kind, points, box)


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, "an annotation of SPair-71k")
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object")
    return found
