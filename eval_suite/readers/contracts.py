"""Kinds of labelled data a probe can ask for, and what a reader of some layout gives.

A reader answers for each kind of label it has and says so in words for those it has not. Images are read in batches of
one size by row number; labels are anything indexed by row tensors, so a tensor in memory and a lazy map of files on
disk are the same thing to a probe.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from common.errors import UserError
from eval_suite.units import Units

IGNORE = 255  #: class maps: a pixel that does not count

TRAIN, TEST = "train", "test"


class ImageSource(ABC):
    """Images of one size, read by row. `key` names content and size: equal keys share extracted features."""

    key: str
    units: Units | None = None  #: which images are one draw, e.g. frames of a sequence; None: each is its own

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Row numbers int64 [b] -> images uint8 [b, 3, H, W]."""

    def name_of(self, row: int) -> str:
        """What to call an image in an error; a file reader gives the path."""
        return f"{self.key}[{row}]"

    def members(self) -> Sequence[str]:
        """What each image is, by row; equal texts in two sources of one data set are one image."""
        return [self.name_of(row) for row in range(len(self))]


class LabelMaps(Protocol):
    """Per-pixel labels of a set: `maps[rows]` with int64 [b] gives [b, h, w], or [b, 3, h, w] for normals."""

    def __getitem__(self, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ClassifiedImages:
    """One class per image: labels int64 [N]; `names[c]` is the class in words, for prompts."""

    images: ImageSource
    rows: Tensor
    labels: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class DenseImages:
    """Per-pixel labels by name, each [N, h, w] at any resolution.

    Class maps are uint8 with `IGNORE` for pixels that do not count and their class names in `names`; `depth` is metres,
    0 where invalid; `normals` [N, 3, h, w] are unit vectors, 0 where invalid.
    """

    images: ImageSource
    rows: Tensor
    maps: Mapping[str, LabelMaps]
    names: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, Tensor]  #: named subsets: bool [N], e.g. "indoor"

    def subset(self, group: str) -> "DenseImages":
        """Only the images of one named group; the others' labels are not looked at."""
        if group not in self.groups:
            raise UserError(f'{self.images.key} has no group "{group}"; it has: {", ".join(self.groups) or "none"}')
        keep = self.groups[group].nonzero().flatten()
        if not len(keep):
            raise UserError(f'{self.images.key}: group "{group}" is empty; use more images')
        maps = {name: Picked(labels, keep) for name, labels in self.maps.items()}
        groups = {name: members[keep] for name, members in self.groups.items()}
        return replace(self, rows=self.rows[keep], maps=maps, groups=groups)

    def labels(self, name: str) -> LabelMaps:
        """The maps called `name`; UserError where the set has none."""
        if name not in self.maps:
            raise UserError(f'{self.images.key} has no "{name}" labels; it has: {", ".join(self.maps)}')
        return self.maps[name]


@dataclass(frozen=True)
class Picked:
    """A view of label maps through a list of positions."""

    maps: LabelMaps
    positions: Tensor

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.maps[self.positions[rows]]


@dataclass(frozen=True)
class CaptionedImages:
    """Several captions for each image."""

    images: ImageSource
    rows: Tensor
    captions: Sequence[Sequence[str]]


@dataclass(frozen=True)
class PairGeometry:
    """What both views show in space, on a grid of cells: camera coordinates in metres, z = 0 where nothing is known."""

    first: Tensor  #: [h, w, 3], in the first camera
    second: Tensor  #: [h, w, 3], in the second camera
    motion: Tensor  #: [4, 4], first camera to second
    intrinsics: Tensor  #: [3, 3] of the second view, in pixels of the images as they are read


@dataclass(frozen=True)
class ImagePairs:
    """Two views of the same world with known correspondence, sampled points per pair.

    points [N, K, 2] are pixels (x, y) in the first view and targets [N, K, 2] where they are in the second, pixel
    centres at +0.5; valid bool [N, K]: visible in both.
    """

    first: ImageSource
    second: ImageSource
    points: Tensor
    targets: Tensor
    valid: Tensor
    size: tuple[int, int]  #: (height, width) of the images the coordinates refer to
    geometry: Callable[[int, tuple[int, int]], PairGeometry] | None = None  #: of a pair, on a grid of that many cells


@dataclass(frozen=True)
class KeypointObject:
    """One object with named points (x, y), in an image of its own (row): only visible points are listed."""

    row: int
    kind: str
    points: Mapping[str, tuple[float, float]]
    box: tuple[float, float, float, float]  #: x0, y0, x1, y1 of the object, pixels


@dataclass(frozen=True)
class KeypointImages:
    """Objects with keypoints that have the same names within a kind."""

    images: ImageSource
    objects: Sequence[KeypointObject]
    size: tuple[int, int]
    pairs: Sequence[tuple[int, int]] | None = None  #: (source, target) positions where the benchmark fixes them


@dataclass(frozen=True)
class InstanceObject:
    """One object in the pixels of the photograph at its own size."""

    kind: int  #: position of its category in the names
    box: tuple[float, float, float, float]  #: x0, y0, x1, y1
    area: float  #: pixels, as the annotation says
    crowd: bool  #: many objects in one region
    mask: Callable[[], Tensor]  #: bool [H, W], decoded when asked for


@dataclass(frozen=True)
class InstanceImages:
    """Objects with boxes and masks: a list for each image, in the pixels of `images.original(row)`."""

    images: ImageSource
    objects: Sequence[Sequence[InstanceObject]]
    names: tuple[str, ...]


@dataclass(frozen=True)
class RankedImages:
    """Instance retrieval: which images of a gallery show what a query shows; the junk counts neither way.

    positive[q] and junk[q] are bool [G] over the gallery, by difficulty ("easy", "medium", "hard").
    """

    queries: ImageSource
    gallery: ImageSource
    positive: Mapping[str, Tensor]
    junk: Mapping[str, Tensor]


@dataclass(frozen=True)
class AskedQuestion:
    """A question about an image, of some kind, with its short answer."""

    row: int  #: position in the image source
    kind: str
    question: str
    answer: str
    others: tuple[str, ...] = ()  #: further answers that count, e.g. of other annotators
    options: tuple[str, ...] = ()  #: what may be chosen from; `answer` is then the letter A, B, ...
    more: tuple[int, ...] = ()  #: rows of further pictures that the question is about


@dataclass(frozen=True)
class QuestionImages:
    """Questions and short answers about images, and the rule (metrics.answer_rules) that scores a reply."""

    images: ImageSource
    questions: Sequence[AskedQuestion]
    rule: str = "exact"
    benchmark: str = ""  #: the published benchmark these are, which fixes the prompt; "" for a user's own


@dataclass(frozen=True)
class Conversation:
    """Turns (question, answer) about the pictures in these rows; no rows for text alone."""

    rows: tuple[int, ...]
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ConversationImages:
    """Conversations to train on, and the pictures they are about (None where all are text alone)."""

    images: ImageSource | None
    conversations: Sequence[Conversation]


class LabelledData:
    """What a reader gives: a method per kind of label. A layout overrides those it has; `split` is train or test."""

    name: str

    def classes(self, split: str) -> ClassifiedImages:
        self._missing("class labels", split)

    def dense(self, split: str) -> DenseImages:
        self._missing("label maps", split)

    def captions(self, split: str) -> CaptionedImages:
        self._missing("captions", split)

    def pairs(self, split: str) -> ImagePairs:
        self._missing("image pairs", split)

    def keypoints(self, split: str) -> KeypointImages:
        self._missing("keypoints", split)

    def instances(self, split: str) -> InstanceImages:
        self._missing("objects with masks", split)

    def questions(self, split: str) -> QuestionImages:
        self._missing("questions", split)

    def conversations(self, split: str) -> ConversationImages:
        self._missing("conversations", split)

    def ranked(self, split: str) -> RankedImages:
        self._missing("instance retrieval lists", split)

    def _missing(self, kind: str, split: str) -> NoReturn:
        raise UserError(f'data "{self.name}" has no {kind} (split {split}); choose other data for this probe')


def all_rows(images: ImageSource) -> Tensor:
    """Every row of a source, int64 [N]."""
    return torch.arange(len(images))
