"""NYUv2 as Probe3D packs it: GeoNet's .mat files to train on, the labelled set as a pickle to test on."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.readers.contracts import TEST, DenseImages, LabelledData
from eval_suite.readers.image_files import MadeImages, files_digest
from eval_suite.readers.label_maps import DecodedMaps
from eval_suite.readers.nodes import FileReaderNode, rows_of
from eval_suite.readers.photo_sizes import PhotoSize
from eval_suite.readers.rasters import read_mat
from eval_suite.readers.safe_pickle import array_of, read_pickle
from eval_suite.readers.text_files import existing_file

#: added twice to the mean-shifted images of the GeoNet release (Probe3D's loader)
GEONET_MEAN = np.array([122.175, 116.169, 103.508])
BROKEN = (21181, 6919)  #: positions in the sorted list that Probe3D drops
FARTHEST = 10.0  #: metres; what lies behind is invalid
MARGIN = 80  #: columns cut off left and right: 480x640 -> 480x480


class NyuProbe3dNode(FileReaderNode):
    """`train`: folder of GeoNet .mat files (img, depth, norm). `test`: nyuv2_snorm_all.pkl, its 654 test images.

    Depth is the raw one (holes are 0 and invalid); both are cut to the centre square of 480 pixels.
    """

    reader: Literal["nyu_probe3d"]
    size: Pixels | tuple[Pixels, Pixels] = 480
    train: str = "nyuv2_geonet"  #: `nyu_geonet` is found too
    test: str = "nyuv2/nyuv2_snorm_all.pkl"  #: file under root

    def open(self, name: str) -> "NyuProbe3d":
        self.folder(name)
        return NyuProbe3d(name, self)


class NyuProbe3d(LabelledData):
    """Depth and normals."""

    def __init__(self, name: str, node: NyuProbe3dNode) -> None:
        self.name = name
        self.node = node
        self._open: dict[str, DenseImages] = {}

    def dense(self, split: str) -> DenseImages:
        if split not in self._open:
            self._open[split] = self._test() if split == TEST else self._train()
        return self._open[split]

    def _train(self) -> DenseImages:
        root = self.node.folder(self.name)
        folder = next(
            (root / n for n in (self.node.train, "nyu_geonet") if (root / n).is_dir()), root / self.node.train
        )
        files = sorted(folder.glob("*.mat"))
        if not files:
            raise UserError(f'data "{self.name}": {folder} holds no .mat files (the GeoNet release)')
        files = [path for at, path in enumerate(files) if at not in BROKEN]
        files = [files[at] for at in self.node.kept(len(files), "train")]
        images = MadeImages(
            f"{self.name}-train-{files_digest(files, '')}",
            len(files),
            lambda row: geonet(files[row])[0],
            self.node.fitting,
        )
        return self._dense(images, lambda row: geonet(files[row])[1:], lambda row: str(files[row]))

    def _test(self) -> DenseImages:
        path = existing_file(self.node.folder(self.name) / self.node.test, "Probe3D's create_nyu_pkl.py writes it")
        data = read_pickle(path)
        pictures, depths, normals, chosen = (
            array_of(data, k, path) for k in ("images", "depths", "snorms", "test_indices")
        )
        chosen = chosen[self.node.kept(len(chosen), TEST)]

        def labels(row: int) -> tuple[np.ndarray, np.ndarray]:
            return square(depths[chosen[row]]), square(np.moveaxis(normals[chosen[row]], 0, -1))

        images = MadeImages(
            f"{self.name}-test-{files_digest([path], str(len(chosen)))}",
            len(chosen),
            lambda row: square(np.moveaxis(pictures[chosen[row]], 0, -1)).astype(np.uint8),
            self.node.fitting,
        )
        return self._dense(images, labels, lambda row: f"{path}[{int(chosen[row])}]")

    def _dense(
        self, images: MadeImages, labels: Callable[[int], tuple[np.ndarray, ...]], names: Callable[[int], str]
    ) -> DenseImages:
        fit = self.node.fitting

        def photo(row: int) -> PhotoSize:
            height, width = images.original(row).shape[-2:]
            return PhotoSize(height, width)

        maps = {
            "depth": DecodedMaps(lambda row: valid_depth(labels(row)[0]), fit, 0, names, photo),
            "normals": DecodedMaps(lambda row: valid_normals(*labels(row)), fit, 0, names, photo),
        }
        return DenseImages(images, rows_of(len(images)), maps, {}, {})


def geonet(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8 [480, 480, 3], depth [480, 480], normals [480, 480, 3] of a GeoNet file."""
    variables = read_mat(path)
    if missing := {"img", "depth", "norm"} - variables.keys():
        raise UserError(f"{path} has no {', '.join(sorted(missing))}; it is not of the GeoNet release")
    pixels = (np.asarray(variables["img"], dtype=np.float64) + 2 * GEONET_MEAN).clip(0, 255).astype(np.uint8)
    return square(pixels), square(np.asarray(variables["depth"])), square(np.asarray(variables["norm"]))


def square(values: np.ndarray) -> np.ndarray:
    """[480, 640, ...] -> [480, 480, ...]; other sizes lose the same share of columns."""
    margin = values.shape[1] * MARGIN // 640
    return values[:, margin : values.shape[1] - margin]


def valid_depth(metres: np.ndarray) -> np.ndarray:
    """float32 with 0 for holes and what lies behind 10 m."""
    metres = metres.astype(np.float32)
    return np.where(np.isfinite(metres) & (metres > 0) & (metres <= FARTHEST), metres, 0.0).astype(np.float32)


def valid_normals(depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Unit vectors where there is depth, else 0."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = normals / np.maximum(length, 1e-6)
    return np.where((valid_depth(depth)[..., None] > 0) & (length > 0.5), unit, 0.0).astype(np.float32)
