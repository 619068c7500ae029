"""ADE20K, PASCAL VOC 2012 and COCO-Stuff as downloaded: semantic segmentation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from common.errors import UserError
from common.recipes import Pixels
from eval_suite.readers.contracts import IGNORE, TEST, TRAIN
from eval_suite.readers.dense_folders import DenseFolders, LabelPlan, matched
from eval_suite.readers.fitting import Fit
from eval_suite.readers.label_values import to_classes
from eval_suite.readers.layout_names import COCO_STUFF_COARSE, VOC_CLASSES, coarse_of_fine
from eval_suite.readers.nodes import FileReaderNode, split_of
from eval_suite.readers.rasters import read_raster
from eval_suite.readers.text_files import read_list


class SegmentationLayout(FileReaderNode):
    """What the segmentation layouts share: one label, `semantic`."""

    size: Pixels | tuple[Pixels, Pixels] = 512
    label_size: Pixels | tuple[Pixels, Pixels] | None = None  #: of the label maps the probes see; None: the images'

    def dense_folders(
        self,
        name: str,
        files: Callable[[str], Mapping[str, Path]],
        plans: Callable[[str], Mapping[str, LabelPlan]],
    ) -> DenseFolders:
        """The data set from image files by key and plans of labels, the limit applied."""

        def kept(split: str) -> dict[str, Path]:
            found = files(split)
            keys = list(found)
            return {keys[at]: found[keys[at]] for at in self.kept(len(keys), split)}

        fit = self.fitting
        side = self.label_size
        label_fit = fit if side is None else Fit(*((side, side) if isinstance(side, int) else side), self.fit)
        return DenseFolders(name, fit, label_fit, kept, plans, self.orientation)


class Ade20kNode(SegmentationLayout):
    """ADEChallengeData2016: images/{training,validation}/*.jpg, annotations/... .png; 0 is "other" and not counted.

    `keep_other: true` counts it as a class of its own (JAFAR's 151 classes), which does not compare with 150.
    """

    reader: Literal["ade20k"]
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "training", TEST: "validation"})
    keep_other: bool = False  #: count class 0 as one of its own: 151 classes

    def open(self, name: str) -> DenseFolders:
        root = inside(self.folder(name), "ADEChallengeData2016")
        first = 0 if self.keep_other else 1
        classes = 151 if self.keep_other else 150

        def files(split: str) -> dict[str, Path]:
            return matched(root, f"images/{split_of(split, self.splits)}/*.jpg")

        def plans(split: str) -> dict[str, LabelPlan]:
            folder = root / "annotations" / split_of(split, self.splits)
            return {"semantic": class_plan(lambda key: folder / f"{key}.png", tuple(map(str, range(classes))), first)}

        return self.dense_folders(name, files, plans)


class Voc2012Node(SegmentationLayout):
    """VOCdevkit/VOC2012: palette masks, 21 classes with the background, 255 not counted.

    `augmented: true` trains on SegmentationClassAug with its list `aug.txt` (10 582 images) instead of `train.txt`.
    """

    reader: Literal["voc2012"]
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train", TEST: "val"})
    augmented: bool = False  #: train on the 10,582 images of `aug.txt`

    def open(self, name: str) -> DenseFolders:
        root = inside(self.folder(name), "VOCdevkit/VOC2012", "VOC2012")

        def augmented(split: str) -> bool:
            return self.augmented and split == TRAIN

        def files(split: str) -> dict[str, Path]:
            listed = "aug" if augmented(split) else split_of(split, self.splits)
            path = root / "ImageSets" / "Segmentation" / f"{listed}.txt"
            return {key: root / "JPEGImages" / f"{key}.jpg" for key in read_list(path, "the list of images")}

        def plans(split: str) -> dict[str, LabelPlan]:
            folder = root / ("SegmentationClassAug" if augmented(split) else "SegmentationClass")
            return {"semantic": class_plan(lambda key: folder / f"{key}.png", VOC_CLASSES, 0)}

        return self.dense_folders(name, files, plans)


class CocoStuffNode(SegmentationLayout):
    """COCO-Stuff: 182 fine labels folded into the 27 coarse classes that upsampler papers probe; 255 not counted.

    The image list is curated/<split>/Coco164kFull_Stuff_Coarse.txt where it is there (IIC, STEGO, FeatUp), else every
    image with a label map. The folders may lie in `dataset/` (JAFAR).
    """

    reader: Literal["coco_stuff"]
    size: Pixels | tuple[Pixels, Pixels] = 224
    fit: Literal["stretch", "crop", "pad"] = "crop"
    #: train, test -> the name of that split in this layout
    splits: dict[str, str] = Field(default_factory=lambda: {TRAIN: "train2017", TEST: "val2017"})
    coarse: bool = True  #: 27 classes; false: the 182 fine ones

    def open(self, name: str) -> DenseFolders:
        root = inside(self.folder(name), "dataset")
        listing = self.folder(name)

        def files(split: str) -> dict[str, Path]:
            own = split_of(split, self.splits)
            found = matched(root, f"images/{own}/*.jpg")
            curated = [place / "curated" / own / "Coco164kFull_Stuff_Coarse.txt" for place in (root, listing)]
            lists = [path for path in curated if path.is_file()]
            if not lists:
                return {key: path for key, path in found.items() if (root / f"annotations/{own}/{key}.png").is_file()}
            keys = read_list(lists[0], "the curated list")
            if missing := [key for key in keys if key not in found]:
                raise UserError(f'data "{name}": {len(missing)} curated images are missing, the first is {missing[0]}')
            return {key: found[key] for key in keys}

        def plans(split: str) -> dict[str, LabelPlan]:
            folder = root / "annotations" / split_of(split, self.splits)
            return {"semantic": self._plan(folder)}

        return self.dense_folders(name, files, plans)

    def _plan(self, folder: Path) -> LabelPlan:
        fine = class_plan(lambda key: folder / f"{key}.png", tuple(map(str, range(182))), 0)
        if not self.coarse:
            return fine
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[:182] = coarse_of_fine()
        return LabelPlan("classes", lambda key: table[fine.decode(key)], fine.path, COCO_STUFF_COARSE)


def class_plan(path: Callable[[str], Path], names: tuple[str, ...], first: int) -> LabelPlan:
    """Class maps whose value `first` is class 0; what is below it, and 255, does not count."""

    def decode(key: str) -> np.ndarray:
        return to_classes(read_raster(path(key)), len(names), path(key), first=first)

    return LabelPlan("classes", decode, lambda key: str(path(key)), names)


def inside(root: Path, *names: str) -> Path:
    """The folder of that name in the root if there is one: people point at either."""
    return next((root / name for name in names if (root / name).is_dir()), root)
