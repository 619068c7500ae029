"""`reader: revisited`: Oxford5k and Paris6k with the revisited ground truth."""

from pathlib import Path
from typing import Any, Literal

import torch

from common.errors import UserError
from eval_suite.readers.contracts import LabelledData, RankedImages
from eval_suite.readers.image_files import Crop
from eval_suite.readers.nodes import FileReaderNode
from eval_suite.readers.photo_sizes import check_box, check_coordinates
from eval_suite.readers.safe_pickle import read_pickle
from eval_suite.units import UnitRule


class RevisitedNode(FileReaderNode):
    """<root>/{jpg,gnd_<dataset>.pkl}; `crop_queries` cuts queries to their box (the benchmark does; DINO does not)."""

    layout_unit = UnitRule(name="landmark", pattern=r"([^/]+)_\d+\.\w+$")  # five or more queries of each building

    reader: Literal["revisited"]
    dataset: Literal["roxford5k", "rparis6k"]  #: Oxford or Paris
    crop_queries: bool = True  #: cut queries to their box, as the benchmark does

    def open(self, name: str) -> "RevisitedData":
        root = self.folder(name)
        nested = root / self.dataset
        return RevisitedData(name, nested if nested.is_dir() else root, self)


class RevisitedData(LabelledData):
    """Queries, gallery, and who counts at which difficulty."""

    def __init__(self, name: str, root: Path, node: RevisitedNode) -> None:
        self.name = name
        self.root = root
        self.node = node

    def ranked(self, split: str) -> RankedImages:
        path = self.root / f"gnd_{self.node.dataset}.pkl"
        truth = read_pickle(path)
        if not isinstance(truth, dict) or not {"imlist", "qimlist", "gnd"} <= truth.keys():
            raise UserError(f"{path} is not the revisited ground truth: it lacks imlist, qimlist or gnd")
        chosen = self.node.kept(len(truth["qimlist"]), "test")
        notes = [truth["gnd"][at] for at in chosen]
        files = [self.root / "jpg" / f"{truth['qimlist'][at]}.jpg" for at in chosen]
        boxes = [_box(note["bbx"]) for note in notes] if self.node.crop_queries else None
        queries = self.node.photographs(f"{self.name}-queries", files, boxes)
        for row, box in enumerate(boxes or ()):
            check_coordinates(queries.photo(row), queries.name_of(row))
            check_box(box, queries.photo(row), queries.name_of(row))
        listed = [self.root / "jpg" / f"{one}.jpg" for one in truth["imlist"]]
        gallery = self.node.photographs(f"{self.name}-gallery", listed)
        return RankedImages(queries, gallery, *difficulties(notes, len(gallery)))


def _box(sides: Any) -> Crop:
    x0, y0, x1, y1 = (float(side) for side in sides)
    return x0, y0, x1, y1


def difficulties(notes: list[dict[str, Any]], count: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Positive and junk masks bool [Q, G] for easy, medium (easy and hard) and hard."""
    easy, hard, junk = (_mask(notes, key, count) for key in ("easy", "hard", "junk"))
    positive = {"easy": easy, "medium": easy | hard, "hard": hard}
    return positive, {"easy": junk | hard, "medium": junk, "hard": junk | easy}


def _mask(notes: list[dict[str, Any]], key: str, count: int) -> torch.Tensor:
    out = torch.zeros(len(notes), count, dtype=torch.bool)
    for row, note in enumerate(notes):
        members = torch.as_tensor([int(number) for number in note[key]], dtype=torch.int64)
        if len(members) and int(members.max()) >= count:
            raise UserError(f"the ground truth names image {int(members.max())} of {count}")
        out[row, members] = True
    return out
