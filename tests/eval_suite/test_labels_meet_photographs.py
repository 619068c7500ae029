"""Every reader with label geometry: photographs that were turned, mirrored or cut after labelling are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import layout_fixtures as make
import pytest
import torch
from PIL import Image
from test_readers_layouts import opened

from common.errors import UserError
from eval_suite.readers.contracts import LabelledData

COCO = {"keypoints": "annotations/person_keypoints_{split}.json"}
READERS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    "ade20k": ("ade20k", make.ade20k, {}),
    "voc2012": ("voc2012", make.voc2012, {}),
    "coco_stuff": ("coco_stuff", make.coco_stuff, {}),
    "coco instances": ("coco", make.coco, {"instances": "annotations/instances_{split}.json"}),
    "coco panoptic": ("coco", make.coco, {"panoptic": "annotations/panoptic_{split}.json"}),
    "coco keypoints": ("coco", make.coco, COCO),
    "pascal_multitask": ("pascal_multitask", make.pascal_multitask, {}),
    "nyud_multitask": ("nyud_multitask", lambda root: make.nyud_multitask(root, "mtinet"), {}),
    "navi": ("navi", make.navi, {}),
    "navi pairs": ("navi", make.navi, {"points": 20, "widest": 30}),
    "scannet1500": ("scannet1500", make.scannet, {"points": 20}),
    "spair71k": ("spair71k", make.spair, {}),
    "revisited": ("revisited", make.revisited, {"dataset": "roxford5k"}),
    "bsds": ("dense_folders", make.bsds, {"images": "*.jpg", "lists": {"test": "all.txt", "train": "all.txt"},
                                          "labels": {"edge": {"files": "*.mat", "kind": "bsds"}}}),
}  # fmt: skip


def look(case: str, data: LabelledData) -> None:
    """Every label that the data has."""
    if case in ("navi pairs", "scannet1500"):
        data.pairs("test")
    elif case in ("coco keypoints", "spair71k"):
        data.keypoints("test")
    elif case == "revisited":
        data.ranked("test")
    else:
        dense = data.dense("train" if case == "ade20k" else "test")
        for label in dense.maps:
            dense.labels(label)[torch.arange(len(dense.rows))]
        if case == "coco instances":
            data.instances("test")


def photographs(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")]


def tagged(path: Path, tag: int) -> None:
    exif = Image.Exif()
    exif[0x112] = tag
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, "JPEG", exif=exif.tobytes())


def cut(path: Path) -> None:
    with Image.open(path) as picture:
        narrower = picture.resize((picture.width // 2, picture.height))
    narrower.save(path, "JPEG")


@pytest.mark.parametrize("case", READERS)
def test_a_photograph_that_is_not_the_labels_is_refused(case: str, tmp_path: Path) -> None:
    reader, build, fields = READERS[case]
    for change in ("nothing", "turned", "upside down", "mirrored", "cut", "stored"):
        root = build(tmp_path / change.replace(" ", "_"))
        (tmp_path / change.replace(" ", "_") / "all.txt").write_text("1\n")
        for path in photographs(root):
            if change in ("turned", "stored"):
                tagged(path, 6)
            elif change in ("upside down", "mirrored"):
                tagged(path, {"upside down": 3, "mirrored": 2}[change])
            elif change == "cut":
                cut(path)
        more = {"orientation": "stored"} if change == "stored" else {}
        if change in ("nothing", "stored"):
            look(case, opened(reader, root, **fields, **more))
        elif not (case == "revisited" and change == "cut"):  # its boxes come without the size of their photograph
            with pytest.raises(UserError):
                look(case, opened(reader, root, **fields))
