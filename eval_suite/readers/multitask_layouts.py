"""NYUDv2 and PASCAL-Context as the multi-task benchmarks pack them (ATRC's and MTI-Net's archives)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.metrics.thinning import thin
from eval_suite.readers.contracts import IGNORE, TEST, TRAIN
from eval_suite.readers.dense_folders import DenseFolders, LabelPlan
from eval_suite.readers.dense_layouts import SegmentationLayout, inside
from eval_suite.readers.label_values import to_classes, to_depth, to_mask, to_normals
from eval_suite.readers.layout_names import HUMAN_PARTS, PART_NAMES, VOC_CLASSES
from eval_suite.readers.nodes import split_of
from eval_suite.readers.rasters import read_mat, read_raster
from eval_suite.readers.text_files import read_list

PERSON = 15  #: VOC's number of the class whose parts count


class NyudMultitaskNode(SegmentationLayout):
    """NYUDv2: images, segmentation, depth, normals, edge, gt_sets/{train,val}.txt.

    Both archives: PNG images with PNG normals and edges (ATRC, MLoRE, InvPT), or JPEG images with .npy ones (MTI-Net).
    Segmentation 0 is not counted, 1..40 are the classes; depth is metres.
    """

    reader: Literal["nyud_multitask"]
    size: Pixels | tuple[Pixels, Pixels] = (448, 576)
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train", TEST: "val"})

    def open(self, name: str) -> DenseFolders:
        root = inside(self.folder(name), "NYUDv2", "NYUD_MT")

        def files(split: str) -> dict[str, Path]:
            keys = read_list(root / "gt_sets" / f"{split_of(split, self.splits)}.txt", "the list of images")
            return {key: either(root / "images", key, ".png", ".jpg") for key in keys}

        return self.dense_folders(name, files, lambda split: _nyud_plans(root))


def _nyud_plans(root: Path) -> Mapping[str, LabelPlan]:
    def semantic(key: str) -> np.ndarray:
        path = root / "segmentation" / f"{key}.png"
        return to_classes(read_raster(path), 40, path, first=1)

    def depth(key: str) -> np.ndarray:
        path = root / "depth" / f"{key}.npy"
        return to_depth(read_raster(path), path, scale=None)

    def normals(key: str) -> np.ndarray:
        path = either(root / "normals", key, ".png", ".npy")
        return to_normals(read_raster(path), path)

    def edge(key: str) -> np.ndarray:
        path = either(root / "edge", key, ".png", ".npy")
        return to_mask(read_raster(path), path, full=255.0 if path.suffix == ".png" else 1.0)  # the two archives' own

    return {
        "semantic": LabelPlan("classes", semantic, lambda key: str(root / "segmentation" / key), _numbers(40)),
        "depth": LabelPlan("depth", depth, lambda key: str(root / "depth" / key)),
        "normals": LabelPlan("normals", normals, lambda key: str(root / "normals" / key)),
        "edge": LabelPlan("mask", edge, lambda key: str(root / "edge" / key), ("background", "edge")),
    }


class PascalMultitaskNode(SegmentationLayout):
    """PASCALContext: semseg (21 classes), part (7), saliency, normals, edge, for the images of ImageSets/Context.

    The published normals count only where the context label is one of the classes shared with NYU: `normal_classes`
    lists their numbers in the 459-class maps. None counts every pixel that has a normal, which is not the same number.
    """

    reader: Literal["pascal_multitask"]
    size: Pixels | tuple[Pixels, Pixels] = 512
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train", TEST: "val"})
    normal_classes: tuple[int, ...] | None = None  #: numbers of the 459 classes whose normals count; None: all

    def open(self, name: str) -> DenseFolders:
        root = inside(self.folder(name), "PASCALContext", "PASCAL_MT")

        def files(split: str) -> dict[str, Path]:
            path = root / "ImageSets" / "Context" / f"{split_of(split, self.splits)}.txt"
            return {key: root / "JPEGImages" / f"{key}.jpg" for key in read_list(path, "the list of images")}

        return self.dense_folders(name, files, lambda split: self._plans(root))

    def _plans(self, root: Path) -> Mapping[str, LabelPlan]:
        def semantic(key: str) -> np.ndarray:
            path = either(root / "semseg", f"VOC12/{key}", ".png", alternative=f"pascal-context/{key}")
            return to_classes(read_raster(path), len(VOC_CLASSES), path)

        def part(key: str) -> np.ndarray:
            return human_parts(root / "human_parts" / f"{key}.mat", context_map(root, key).shape)

        def saliency(key: str) -> np.ndarray:
            path = root / "sal_distill" / f"{key}.png"
            return to_mask(read_raster(path), path, full=255.0)

        def normals(key: str) -> np.ndarray:
            path = root / "normals_distill" / f"{key}.png"
            vectors = to_normals(read_raster(path), path)
            if self.normal_classes is None:
                return vectors
            context = nearest(context_map(root, key), vectors.shape[:2])
            return np.where(np.isin(context, self.normal_classes)[..., None], vectors, 0.0).astype(np.float32)

        def path(folder: str) -> Any:
            return lambda key: str(root / folder / key)

        return {
            "semantic": LabelPlan("classes", semantic, path("semseg"), VOC_CLASSES),
            "part": LabelPlan("classes", part, path("human_parts"), PART_NAMES),
            "saliency": LabelPlan("mask", saliency, path("sal_distill"), ("background", "salient")),
            "normals": LabelPlan("normals", normals, path("normals_distill")),
            "edge": LabelPlan(
                "mask", lambda key: thin(region_edges(context_map(root, key))).astype(np.uint8), path("pascal-context"),
                ("background", "edge"),
            ),
        }  # fmt: skip


def context_map(root: Path, key: str) -> np.ndarray:
    """The 459-class context labels [H, W]."""
    path = root / "pascal-context" / "trainval" / f"{key}.mat"
    variables = read_mat(path)
    if "LabelMap" not in variables:
        raise UserError(f"{path} has no LabelMap; it holds {', '.join(variables)}")
    return np.asarray(variables["LabelMap"])


def human_parts(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Six groups of person parts, uint8 [H, W]; all `IGNORE` where the image shows no person with parts.

    PASCAL-Part's struct: anno.objects[].class_ind and .parts[].{part_name, mask}; later parts lie over earlier ones.
    """
    anno = read_mat(path).get("anno")
    if anno is None:
        raise UserError(f"{path} has no variable anno")
    out = np.zeros(shape[:2], dtype=np.uint8)
    for thing in np.atleast_1d(np.asarray(anno.objects, dtype=object)).ravel():
        if int(thing.class_ind) != PERSON:
            continue
        for part in np.atleast_1d(np.asarray(thing.parts, dtype=object)).ravel():
            if part.part_name not in HUMAN_PARTS:
                raise UserError(f'{path} has an unknown person part "{part.part_name}"')
            out[nearest(np.asarray(part.mask), out.shape) > 0] = HUMAN_PARTS[part.part_name]
    return out if out.any() else np.full_like(out, IGNORE)


def region_edges(labels: np.ndarray) -> np.ndarray:
    """Where the Laplacian of a label map is not 0: bool [H, W] (mirrored at the border, as OpenCV does)."""
    padded = np.pad(labels.astype(np.int64), 1, mode="reflect")
    total = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return total != 4 * labels.astype(np.int64)


def nearest(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map [H, W] picked to another size."""
    rows = np.floor((np.arange(shape[0]) + 0.5) * values.shape[0] / shape[0]).astype(np.int64)
    columns = np.floor((np.arange(shape[1]) + 0.5) * values.shape[1] / shape[1]).astype(np.int64)
    return values[rows][:, columns]


def either(folder: Path, key: str, *suffixes: str, alternative: str | None = None) -> Path:
    """The first of the spellings that is there; UserError where none is."""
    names = [f"{stem}{suffix}" for stem in filter(None, (key, alternative)) for suffix in suffixes]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder / names[0]} is missing{' (nor ' + ', '.join(names[1:]) + ')' if names[1:] else ''}")


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))
