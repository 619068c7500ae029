"""`reader: rgbd_pairs` (colour, depth and pose files) and `reader: scannet1500` (the SuperGlue test pairs)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.readers.contracts import ImagePairs, LabelledData, PairGeometry
from eval_suite.readers.dense_folders import matched
from eval_suite.readers.fitting import Fit
from eval_suite.readers.image_files import FileImages
from eval_suite.readers.label_files import DepthLabels
from eval_suite.readers.nodes import FileReaderNode
from eval_suite.readers.photo_sizes import check_label, check_points
from eval_suite.readers.text_files import existing_file
from eval_suite.readers.view_geometry import DepthView, correspondences, pair_geometry
from eval_suite.units import UnitRule

DEPTH_SLACK = 0.01  #: aspects of the two cameras of a sensor differ by so much (ScanNet: 1296x968 and 640x480)


@dataclass(frozen=True)
class View:
    """Files of one RGB-D frame."""

    colour: Path
    depth: Path
    pose: Path
    intrinsics: np.ndarray  #: 3x3, in pixels of the colour image


class RgbdPairs(LabelledData):
    """Pairs of RGB-D frames with correspondences worked out from depth and poses."""

    def __init__(self, name: str, pairs: Sequence[tuple[View, View]], node: "RgbdNode", depth: DepthLabels) -> None:
        self.name = name
        self.views = pairs
        self.node = node
        self.depth = depth

    def pairs(self, split: str) -> ImagePairs:
        fit = self.node.fitting
        first, second = (self.node.photographs(self.name, [pair[at].colour for pair in self.views]) for at in (0, 1))
        found = [self._points(pair, at, (first, second)) for at, pair in enumerate(self.views)]
        points, targets, valid = (torch.stack(parts) for parts in zip(*found, strict=True))
        if not valid.any():
            raise UserError(f'data "{self.name}": no pair has a point that both views see; check poses and depth scale')

        def geometry(row: int, cells: tuple[int, int]) -> PairGeometry:
            one, other = (
                self._view(view, source.photo(row).size)
                for view, source in zip(self.views[row], (first, second), strict=True)
            )
            return pair_geometry(one, other, fit, cells)

        return ImagePairs(first, second, points, targets, valid, fit.size, geometry)

    def _view(self, view: View, size: tuple[int, int]) -> DepthView:
        """A view in the pixels of its photograph: depth is picked up to that size."""
        small = self.depth.decode(view.depth)
        return DepthView(Fit(*size).labels(small, 0), view.intrinsics, read_matrix(view.pose, 4))

    def _points(
        self, pair: tuple[View, View], number: int, images: tuple[FileImages, FileImages]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        depth = (self.depth.decode(pair[0].depth), self.depth.decode(pair[1].depth))
        photos = [source.photo(number) for source in images]
        for view, plane, photo in zip(pair, depth, photos, strict=True):
            check_label(plane.shape, replace(photo, slack=DEPTH_SLACK), str(view.depth))
            check_points([view.intrinsics[:2, 2].tolist()], photo, "the principal point of the intrinsics")
        sizes = [photo.size for photo in photos]
        scaled = [
            _to_depth(view.intrinsics, size, plane.shape) for view, size, plane in zip(pair, sizes, depth, strict=True)
        ]
        poses = (read_matrix(pair[0].pose, 4), read_matrix(pair[1].pose, 4))
        points, targets, valid = correspondences(
            depth, (scaled[0], scaled[1]), poses, count=self.node.points, seed=number, tolerance=self.node.tolerance
        )
        moved = []
        for places, size, plane in zip((points, targets), sizes, depth, strict=True):
            stretch = places.new_tensor([size[1] / plane.shape[1], size[0] / plane.shape[0]])
            moved.append(self.node.fitting.affine(*size).points(places * stretch))
        inside = torch.ones_like(valid)
        for places in moved:  # a crop may have cut a point off
            limit = places.new_tensor([self.node.fitting.width, self.node.fitting.height])
            inside &= ((places >= 0) & (places < limit)).all(-1)
        return moved[0], moved[1], valid & inside


class RgbdNode(FileReaderNode):
    """What both layouts share."""

    points: int = Field(default=200, gt=0)  #: correspondences kept of a pair
    tolerance: float = Field(default=0.05, gt=0)  #: share by which the measured depth may differ from the moved one


class RgbdPairsNode(RgbdNode):
    """Frames as files: `colour`, `depth` and `pose` are paths with one `*`; a pair is a frame and the `gap`-th
    after it. Poses are 4x4 camera-to-world text files, `intrinsics` a 3x3 one for the colour images.
    """

    layout_unit = UnitRule(name="sequence", pattern=r"^(.*?)[^/]*$")  # frames of one folder are one recording

    reader: Literal["rgbd_pairs"]
    colour: str  #: path of the colour images under root, with one `*`
    depth: str  #: path of the depth maps
    pose: str  #: path of the poses
    intrinsics: str  #: path of the camera matrix
    gap: int = Field(default=1, gt=0)  #: frames between the two of a pair
    every: int = Field(default=1, gt=0)  #: only each n-th frame starts a pair
    depth_scale: float = Field(default=0.001, gt=0)  #: metres of one stored unit
    invalid: tuple[float, ...] = (0.0, 65535.0)  #: stored values that mean: no depth

    @model_validator(mode="before")
    @classmethod
    def _depth(cls, node: Any) -> Any:
        """Poses alone are refused in words: recall is of points."""
        if isinstance(node, dict) and node.get("depth") is None:
            raise ValueError(
                "pairs need depth: with poses and intrinsics alone a point is only known to lie on a line in the other "
                "view, and every probe of pairs judges where on it; give depth maps (measured or reconstructed)"
            )
        return node

    def open(self, name: str) -> RgbdPairs:
        folder = self.folder(name)
        intrinsics = read_matrix(existing_file(folder / self.intrinsics, "the 3x3 intrinsics"), 3)
        parts = [matched(folder, pattern) for pattern in (self.colour, self.depth, self.pose)]
        keys = list(parts[0])
        for part, what in zip(parts[1:], ("depth map", "pose"), strict=True):
            if missing := [key for key in keys if key not in part]:
                raise UserError(f'data "{name}": frame "{missing[0]}" has no {what}')
        views = [View(parts[0][key], parts[1][key], parts[2][key], intrinsics) for key in keys]
        pairs = [(views[at], views[at + self.gap]) for at in range(0, len(views) - self.gap, self.every)]
        if not pairs:
            raise UserError(f'data "{name}": {len(views)} frames in {folder} give no pair with gap {self.gap}')
        kept = [pairs[at] for at in self.kept(len(pairs), "test")]
        depth = DepthLabels(kind="depth", files=self.depth, scale=self.depth_scale, invalid=self.invalid)
        return RgbdPairs(name, kept, self, depth)


class ScanNet1500Node(RgbdNode):
    """scannet_test_1500/<scene>/{color,depth,pose}/N.* with intrinsics.npz and test.npz (room, seq, two frames)."""

    layout_unit = UnitRule(name="scene", pattern=r"(scene\d+)_\d+/color/")

    reader: Literal["scannet1500"]
    size: Pixels | tuple[Pixels, Pixels] = (480, 640)

    def open(self, name: str) -> RgbdPairs:
        folder = self.folder(name)
        nested = folder / "scannet_test_1500"
        folder = nested if nested.is_dir() else folder
        with np.load(existing_file(folder / "test.npz", "the list of pairs"), allow_pickle=False) as listed:
            rows = listed["name"]
        with np.load(existing_file(folder / "intrinsics.npz", "intrinsics by scene"), allow_pickle=False) as known:
            cameras = {scene: known[scene] for scene in known.files}
        pairs = [self._pair(folder, row, cameras) for row in rows.tolist()]
        kept = [pairs[at] for at in self.kept(len(pairs), "test")]
        return RgbdPairs(name, kept, self, DepthLabels(kind="depth", files="*", scale=0.001, invalid=(0.0, 65535.0)))

    def _pair(self, folder: Path, row: list[int], cameras: dict[str, np.ndarray]) -> tuple[View, View]:
        scene = f"scene{row[0]:04d}_{row[1]:02d}"
        if scene not in cameras:
            raise UserError(f"intrinsics.npz has no scene {scene}, which test.npz lists")
        camera = cameras[scene][:3, :3]
        place = folder / scene
        first, second = (
            View(place / "color" / f"{n}.jpg", place / "depth" / f"{n}.png", place / "pose" / f"{n}.txt", camera)
            for n in row[2:4]
        )
        return first, second


def read_matrix(path: Path, side: int) -> np.ndarray:
    """A square matrix written as text; UserError names a file that is not one (a lost frame has -inf poses)."""
    try:
        matrix = np.loadtxt(existing_file(path, "a camera matrix"), dtype=np.float64, ndmin=2)[:side, :side]
    except ValueError as error:
        raise UserError(f"{path} is no matrix of numbers ({error})") from error
    if matrix.shape != (side, side) or not np.isfinite(matrix).all():
        raise UserError(f"{path} is not a finite {side}x{side} matrix; leave the frame out")
    return matrix


def _to_depth(intrinsics: np.ndarray, size: tuple[int, int], depth: tuple[int, ...]) -> np.ndarray:
    """Intrinsics of the colour image in pixels of a depth map of another size."""
    out = intrinsics.astype(np.float64).copy()
    out[0] *= depth[1] / size[1]
    out[1] *= depth[0] / size[0]
    return out
