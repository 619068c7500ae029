"""A world of coloured squares whose colours are its labels: an oracle can read them, a constant backbone can't."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eval_suite.features import ProbedBackbone
from eval_suite.readers.contracts import (
    AskedQuestion,
    CaptionedImages,
    ClassifiedImages,
    DenseImages,
    ImagePairs,
    ImageSource,
    KeypointImages,
    KeypointObject,
    LabelledData,
    QuestionImages,
)
from teachers.contracts import Backbone, BackboneSpec, Features

PATCH, GRID, CLASSES = 8, 4, 4
SIZE = PATCH * GRID
COLOURS = ("red", "green", "blue", "white")
DIRECTIONS = F.normalize(torch.tensor([[1.0, 0, -1], [-1, 0, -1], [0, 1, -1], [0, -1, -1]]), dim=1)


class Squares(ImageSource):
    """Images [N, 3, 32, 32] of 4x4 squares; the red channel holds 40 x class, green 10 x place (or what is given)."""

    def __init__(self, key: str, cells: Tensor, places: Tensor | None = None) -> None:
        self.key = key
        self.cells = cells
        places = torch.arange(GRID * GRID).view(1, GRID, GRID).expand_as(cells) if places is None else places
        planes = torch.stack([40 * cells, 10 * places, torch.zeros_like(cells)], 1)
        self.pixels = planes.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, rows: Tensor) -> Tensor:
        return self.pixels[rows]


def cells_of(count: int, seed: int) -> Tensor:
    """Random classes of squares [N, 4, 4]."""
    return torch.randint(0, CLASSES, (count, GRID, GRID), generator=torch.Generator().manual_seed(seed))


class ToyData(LabelledData):
    """Every kind of label, derived from the squares; the image's class is that of its first square.

    Classes are finer than the token grid; what is regressed has its resolution, where an exact fit is possible.
    """

    name = "toy"

    def __init__(self, train: int = 48, test: int = 24) -> None:
        self.sources = {"train": Squares("train", cells_of(train, 0)), "test": Squares("test", cells_of(test, 1))}

    def _rows(self, split: str) -> tuple[Squares, Tensor]:
        return self.sources[split], torch.arange(len(self.sources[split]))

    def classes(self, split: str) -> ClassifiedImages:
        source, rows = self._rows(split)
        return ClassifiedImages(source, rows, source.cells[:, 0, 0], COLOURS)

    def dense(self, split: str) -> DenseImages:
        source, rows = self._rows(split)
        cells = source.cells
        maps = {
            "semantic": cells.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint8),
            "saliency": (cells == 0).to(torch.uint8),
            "depth": 1.0 + cells,
            "normals": DIRECTIONS[cells].movedim(-1, 1),
        }
        names = {"semantic": COLOURS, "saliency": ("background", "salient")}
        return DenseImages(source, rows, maps, names, {"even": rows % 2 == 0, "none": rows < 0})

    def captions(self, split: str) -> CaptionedImages:
        source, rows = self._rows(split)
        texts = [" ".join(COLOURS[c] for c in cells.flatten().tolist()) for cells in source.cells]
        return CaptionedImages(source, rows, [[text, text] for text in texts])

    def questions(self, split: str) -> QuestionImages:
        source, _ = self._rows(split)
        asked = []
        for row, cells in enumerate(source.cells):
            for place in (0, 5):
                answer = COLOURS[int(cells.flatten()[place])]
                asked.append(AskedQuestion(row, "colour", f"what colour is square {place}?", answer))
        return QuestionImages(source, asked)

    def pairs(self, split: str) -> ImagePairs:
        """The second view is the first, shifted right by one square; every square has a colour of its own."""
        places = torch.arange(GRID * GRID).view(1, GRID, GRID).expand(6, -1, -1)
        cells = cells_of(6, 2)
        first = Squares("first", cells, places)
        second = Squares("second", cells.roll(1, 2), places.roll(1, 2))
        centres = (torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).flip(1) + 0.5) * PATCH
        points = centres[None].expand(6, -1, -1).float()
        targets = points + torch.tensor([PATCH, 0.0])
        return ImagePairs(first, second, points, targets, targets[..., 0] < SIZE, (SIZE, SIZE))

    def keypoints(self, split: str) -> KeypointImages:
        """Object k of an image is its row of squares k; its keypoints are the ends, told apart by their place."""
        source, _ = self._rows(split)
        left, right = (0.5 * PATCH, 0.5 * PATCH), (3.5 * PATCH, 0.5 * PATCH)
        objects = [
            KeypointObject(row, "bar", {"left": left, "right": right}, (0.0, 0.0, float(SIZE), float(PATCH)))
            for row in range(len(source))
        ]
        return KeypointImages(source, objects, (SIZE, SIZE))


class ToyBackbone(Backbone):
    """What the oracle and the constant one share; 32 px, 4x4 tokens, a summary and a text tower."""

    def __init__(self, dim: int, summary: int) -> None:
        super().__init__()
        size, ones = (SIZE, SIZE), (1.0, 1.0, 1.0)
        self.spec = BackboneSpec(
            "toy", "test", PATCH, dim, summary, size, False, ones, ones, "none", "test", "sha256:0"
        )


class Oracle(ToyBackbone):
    """Reads class and place of every square off the pixels; its summary is the class of every square."""

    def __init__(self) -> None:
        super().__init__(CLASSES + GRID * GRID, GRID * GRID * CLASSES)

    def forward(self, images: Tensor) -> Features:
        red, green = (images[:, :2, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH] * 255).round().unbind(1)
        classes = F.one_hot((red / 40).long(), CLASSES).float()
        places = F.one_hot((green / 10).long(), GRID * GRID).float()
        spatial = torch.cat([classes, 2 * places], -1).movedim(-1, 1)
        return Features(self.weigh(classes), spatial)

    def weigh(self, classes: Tensor) -> Tensor:
        """[B, 4, 4, K] -> [B, S], the first square first: the image's class is its class."""
        weight = torch.full((GRID * GRID, 1), 0.2)
        weight[0] = 1.0
        return (classes.flatten(1, 2) * weight).flatten(1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """A caption lists all squares; a prompt of one colour names the first."""
        out = torch.zeros(len(texts), GRID * GRID, CLASSES)
        for row, text in enumerate(texts):
            for place, word in enumerate(word for word in text.split() if word in COLOURS):
                out[row, place, COLOURS.index(word)] = 1.0
        return self.weigh(out.unflatten(1, (GRID, GRID)))


class Constant(ToyBackbone):
    """Says the same of every image and of every place in it."""

    def __init__(self) -> None:
        super().__init__(6, 6)

    def forward(self, images: Tensor) -> Features:
        count = len(images)
        return Features(torch.ones(count, 6), torch.ones(count, 6, GRID, GRID))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), 6)


class Dumb(ToyBackbone):
    """Only a map: no summary, no text, no inner layers."""

    def __init__(self, poison: int | None = None) -> None:
        super().__init__(6, 6)
        self.poison = poison
        self.calls = 0

    def forward(self, images: Tensor) -> Features:
        self.calls += 1
        spatial = images[:, :1, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].repeat(1, 6, 1, 1).clone()
        if self.poison is not None and len(images) > self.poison:
            spatial[self.poison, 2, 1, 1] = float("nan")
        return Features(None, spatial)


def probed(backbone: Backbone) -> ProbedBackbone:
    return ProbedBackbone(backbone, batch_size=16)
