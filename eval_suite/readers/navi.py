"""`reader: navi`: objects photographed from many sides, with 16-bit disparity, poses and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.readers.contracts import TEST, DenseImages, ImagePairs, LabelledData, PairGeometry
from eval_suite.readers.depth_normals import depth_normals
from eval_suite.readers.image_files import Crop, size_of_file
from eval_suite.readers.label_files import DepthLabels
from eval_suite.readers.label_maps import DecodedMaps
from eval_suite.readers.nodes import FileReaderNode, rows_of
from eval_suite.readers.photo_sizes import PhotoSize, check_label
from eval_suite.readers.text_files import read_json
from eval_suite.readers.view_geometry import DepthView, correspondences, pair_geometry
from eval_suite.units import UnitRule

#: metres of a stored value v are 65535 * 10 / v / 1000 (NAVI README: scale_depth 10, millimetres)
DISPARITY = DepthLabels(kind="disparity", files="*", scale=65535 * 10 / 1000)
EVERY = 4  #: Probe3D tests on each fourth image
PROBE3D_CENTRE = (0.5, 0.5)  #: Probe3D works NAVI's normals out with the principal point in the cut's first pixel
SMALLEST = 0.01  #: relative depth is between this and 1


@dataclass(frozen=True)
class Photo:
    """One photograph with its camera: object-to-camera 4x4 in metres, intrinsics 3x3 in pixels."""

    image: Path
    depth: Path
    collection: str  #: object and scene; partners are of one
    extrinsics: np.ndarray
    intrinsics: np.ndarray
    size: tuple[int, int]  #: (height, width) as annotated


class NaviNode(FileReaderNode):
    """navi_v1: <object>/{multiview*,wild_set}/{annotations.json,images,depth}.

    `multiview_` and `multiview-` spellings are read, `video*` and the `downsampled_` copies of Probe3D's script are
    not. Train is every multiview photograph, test each fourth one of wild_set, cut to the smallest square around the
    object. `relative_depth` is the variant that RADIO reports: (d - min) / (max - min), from 0.01 to 1.
    """

    layout_unit = UnitRule(name="object", pattern=r"([^/]+)/[^/]+/images/")

    reader: Literal["navi"]
    size: Pixels | tuple[Pixels, Pixels] = 512
    relative_depth: bool = True  #: depth from 0.01 to 1 within each object; false: metres
    points: int = Field(default=1000, gt=0)  #: correspondences kept of a pair
    widest: float = Field(default=120.0, gt=0)  #: degrees between the two views of a pair, at most

    def open(self, name: str) -> "NaviData":
        root = self.folder(name)
        nested = root / "navi_v1"
        return NaviData(name, nested if nested.is_dir() else root, self)


class NaviData(LabelledData):
    """Relative (or metric) depth and normals of objects, and pairs of views of one object."""

    def __init__(self, name: str, root: Path, node: NaviNode) -> None:
        self.name = name
        self.root = root
        self.node = node
        self._photos: dict[str, list[Photo]] = {}
        self._checked: set[Path] = set()
        self._decode = lru_cache(maxsize=64)(DISPARITY.decode)  # the whole set would not fit into memory

    def dense(self, split: str) -> DenseImages:
        photos = self._split(split)
        if split == TEST:
            photos = photos[::EVERY]
        photos = [photos[at] for at in self.node.kept(len(photos), split)]
        crops = [object_square(self._depth(photo)) for photo in photos]
        images = self.node.photographs(self.name, [photo.image for photo in photos], crops)

        def depth(row: int) -> np.ndarray:
            metres = self._depth(photos[row])
            near = metres[metres > 0].min()
            cut = cropped(metres, crops[row])
            return relative(cut, near) if self.node.relative_depth else cut

        def normals(row: int) -> np.ndarray:
            focal = float(photos[row].intrinsics[0, 0])
            return depth_normals(cropped(self._depth(photos[row]), crops[row]), focal, PROBE3D_CENTRE)

        def cut_size(row: int) -> PhotoSize:
            x0, y0, x1, y1 = (int(side) for side in crops[row])
            return PhotoSize(y1 - y0, x1 - x0)

        names = images.name_of
        maps = {
            "depth": DecodedMaps(depth, self.node.fitting, 0, names, cut_size),
            "normals": DecodedMaps(normals, self.node.fitting, 0, names, cut_size),
        }
        return DenseImages(images, rows_of(len(images)), maps, {}, {})

    def pairs(self, split: str) -> ImagePairs:
        chosen = draw_partners(self._split(TEST), self.node.widest)
        chosen = [chosen[at] for at in self.node.kept(len(chosen), TEST)]
        if not chosen:
            raise UserError(f'data "{self.name}": no two views of one object are within {self.node.widest:g} degrees')
        sides = list(zip(*chosen, strict=True))
        crops = [[object_square(self._depth(photo)) for photo in side] for side in sides]
        sources = [
            self.node.photographs(self.name, [photo.image for photo in side], cut)
            for side, cut in zip(sides, crops, strict=True)
        ]
        found = [self._points(pair, (crops[0][at], crops[1][at]), at) for at, pair in enumerate(chosen)]
        points, targets, valid = (torch.stack(parts) for parts in zip(*found, strict=True))

        def geometry(row: int, cells: tuple[int, int]) -> PairGeometry:
            one, other = (
                DepthView(self._depth(photo), photo.intrinsics, np.linalg.inv(photo.extrinsics), cut[row])
                for photo, cut in zip(chosen[row], crops, strict=True)
            )
            return pair_geometry(one, other, self.node.fitting, cells)

        return ImagePairs(sources[0], sources[1], points, targets, valid, self.node.fitting.size, geometry)

    def _points(
        self, pair: tuple[Photo, Photo], crops: tuple[Crop, Crop], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        points, targets, valid = correspondences(
            (self._depth(pair[0]), self._depth(pair[1])),
            (pair[0].intrinsics, pair[1].intrinsics),
            (np.linalg.inv(pair[0].extrinsics), np.linalg.inv(pair[1].extrinsics)),
            count=self.node.points,
            seed=seed,
        )
        moved = []
        for places, crop in zip((points, targets), crops, strict=True):
            affine = self.node.fitting.affine(int(crop[3] - crop[1]), int(crop[2] - crop[0]))
            moved.append(affine.points(places - places.new_tensor(crop[:2])))
        return moved[0], moved[1], valid

    def _depth(self, photo: Photo) -> np.ndarray:
        metres = self._decode(photo.depth)
        if photo.image not in self._checked:  # depth and camera are in pixels of the photograph as annotated
            seen = replace(size_of_file(photo.image, self.node.orientation), exact=True)
            check_label(photo.size, seen, f"{photo.image}: image_size of annotations.json")
            check_label(metres.shape, seen, str(photo.depth))
            self._checked.add(photo.image)
        if not (metres > 0).any():
            raise UserError(f"{photo.depth} has no valid depth; leave its image out of annotations.json")
        return metres

    def _split(self, split: str) -> list[Photo]:
        if split not in self._photos:
            self._photos[split] = read_photos(self.root, split, self.name)
        return self._photos[split]


def read_photos(root: Path, split: str, name: str) -> list[Photo]:
    """Photographs of all objects that have both multiview collections and a wild set; UserError where there is none."""
    out: list[Photo] = []
    for thing in sorted(path for path in root.iterdir() if path.is_dir()):
        multiview = sorted(path for path in thing.iterdir() if path.name.startswith("multiview"))
        wild = thing / "wild_set"
        if multiview and wild.is_dir():
            for collection in [wild] if split == TEST else multiview:
                out += collection_photos(collection)
    if not out:
        raise UserError(f'data "{name}": {root} has no object with wild_set and multiview folders; set root to navi_v1')
    return out


def collection_photos(folder: Path) -> list[Photo]:
    """The annotated photographs of a collection."""
    path = folder / "annotations.json"
    try:
        return [_photo(folder, entry) for entry in read_json(path, "the cameras of a collection")]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: an entry is not as NAVI writes it ({error!r}); fetch it again") from error


def _photo(folder: Path, entry: dict[str, Any]) -> Photo:
    camera, file = entry["camera"], entry["filename"]
    height, width = entry["image_size"]
    focal = float(camera["focal_length"])
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    depth = folder / "depth" / f"{Path(file).stem}.png"
    collection = f"{folder.parent.name}/{folder.name}"
    return Photo(
        folder / "images" / file,
        depth,
        collection,
        extrinsics(camera["q"], camera["t"]),
        intrinsics,
        (int(height), int(width)),
    )


def extrinsics(quaternion: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """[w, x, y, z] and millimetres -> object-to-camera 4x4 in metres."""
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    out = np.eye(4)
    out[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    out[:3, 3] = np.asarray(translation) / 1000
    return out


def draw_partners(photos: Sequence[Photo], widest: float) -> list[tuple[Photo, Photo]]:
    """Each fourth photograph with one of the same collection turned by at most `widest` degrees, drawn with seed 8."""
    generator = torch.Generator().manual_seed(8)
    pairs = []
    for query in photos[::EVERY]:
        near = [p for p in photos if p.collection == query.collection and 0 < turned(query, p) <= widest]
        if near:
            pairs.append((query, near[int(torch.randint(len(near), (1,), generator=generator))]))
    return pairs


def turned(first: Photo, second: Photo) -> float:
    """Degrees between the orientations of two cameras."""
    relative_rotation = second.extrinsics[:3, :3] @ first.extrinsics[:3, :3].T
    return (
        float(np.degrees(np.arccos(np.clip((np.trace(relative_rotation) - 1) / 2, -1, 1)))) if first != second else 0.0
    )


def object_square(depth: np.ndarray) -> Crop:
    """The smallest square around valid depth that stays in the image: x0, y0, x1, y1."""
    rows, columns = np.nonzero(depth > 0)
    height, width = depth.shape
    side = min(max(rows.max() - rows.min(), columns.max() - columns.min()) + 1, height, width)
    corner = []
    for values, limit in ((columns, width), (rows, height)):
        middle = (int(values.min()) + int(values.max()) + 1) / 2
        corner.append(int(np.clip(round(middle - side / 2), 0, limit - side)))
    return corner[0], corner[1], corner[0] + int(side), corner[1] + int(side)


def cropped(values: np.ndarray, crop: Crop) -> np.ndarray:
    """The part of a map inside a box of whole pixels."""
    x0, y0, x1, y1 = (int(side) for side in crop)
    return values[y0:y1, x0:x1]


def relative(metres: np.ndarray, nearest: float) -> np.ndarray:
    """(d - nearest) / (farthest - nearest) on object pixels, scaled to 0.01 .. 1; 0 elsewhere."""
    valid = metres >= nearest
    span = max(SMALLEST, float(metres.max()) - nearest)
    return np.where(valid, (metres - nearest) / span * (1 - SMALLEST) + SMALLEST, 0.0).astype(np.float32)
