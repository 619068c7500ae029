"""The embedded world as labelled data: rendered once, kept packed on disk under a key of settings and renderer."""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import imagery.scenes
from common.errors import unknown
from common.recipes import Count, Node, Pixels, Seed, Threads
from eval_suite.readers.contracts import (
    TEST,
    TRAIN,
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
    all_rows,
)
from eval_suite.readers.scene_packs import CLASS_MAPS, PairPack, ScenePack
from eval_suite.readers.store import Stored, cache_folder, stored
from imagery.scenes import Scene, SceneSet, SceneSettings, vocab
from imagery.scenes.cache import render_many

PAIRS = "pairs"
RENDER_CHUNK = 100  #: scenes held with full-size labels at a time


class ScenesNode(Node):
    """`reader: scenes`: which scenes, how many, at what size."""

    reader: Literal["scenes"]
    seed: Seed  #: train scenes use it, test scenes the next number, pairs the one after that
    train: Count  #: scenes to train on
    test: Count  #: scenes to test on
    pairs: int = Field(ge=0, le=10**9)  #: pairs of views
    points: Count  #: correspondences kept for each pair
    size: Pixels  #: pixels of image sides
    label_stride: Pixels  #: dense labels keep every n-th pixel
    settings: dict[str, Any] = Field(default_factory=dict)  #: fields that differ from the default world
    workers: Threads = 2  #: processes that render

    def open(self, name: str) -> "ScenesData":
        """The data set; nothing is rendered before a probe asks."""
        return ScenesData(name, self)


class ArrayImages(ImageSource):
    """Images of a memory-mapped array uint8 [N, 3, H, W]."""

    def __init__(self, key: str, array: np.ndarray) -> None:
        self.key = key
        self.array = torch.from_numpy(array)

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: Tensor) -> Tensor:
        return self.array[rows]


class ScenesData(LabelledData):
    """Every kind of label the scenes have."""

    def __init__(self, name: str, node: ScenesNode) -> None:
        self.name = name
        self.node = node
        self.settings = _settings(node.settings)
        self._splits: dict[str, Stored] = {}

    def classes(self, split: str) -> ClassifiedImages:
        data, images = self._open(split), self._images(split)
        labels = torch.from_numpy(data.arrays["scene_class"]).long()
        return ClassifiedImages(images, all_rows(images), labels, tuple(vocab.SCENE_CLASSES))

    def dense(self, split: str) -> DenseImages:
        data, images = self._open(split), self._images(split)
        maps = {name: torch.from_numpy(data.arrays[name]) for name in (*CLASS_MAPS, "depth", "normals")}
        names = {
            "semantic": tuple(vocab.SEMANTIC_CLASSES),
            "kind": tuple(vocab.COARSE_CLASSES),
            "part": tuple(vocab.PARTS),
            "saliency": ("background", "salient"),
        }
        indoor = torch.from_numpy(data.arrays["indoor"]).bool()
        return DenseImages(images, all_rows(images), maps, names, {"indoor": indoor, "outdoor": ~indoor})

    def captions(self, split: str) -> CaptionedImages:
        images = self._images(split)
        return CaptionedImages(images, all_rows(images), self._open(split).texts["captions"])

    def questions(self, split: str) -> QuestionImages:
        rows = self._open(split).texts["questions"]
        asked = [AskedQuestion(row, *item) for row, items in enumerate(rows) for item in items]
        return QuestionImages(self._images(split), asked)

    def keypoints(self, split: str) -> KeypointImages:
        objects = [
            KeypointObject(row, item["kind"], {name: (x, y) for name, x, y in item["points"]}, tuple(item["box"]))
            for row, items in enumerate(self._open(split).texts["objects"])
            for item in items
        ]
        return KeypointImages(self._images(split), objects, (self.node.size, self.node.size))

    def pairs(self, split: str) -> ImagePairs:
        if not self.node.pairs:
            self._missing("image pairs", split)
        data = self._open(PAIRS)
        first = ArrayImages(f"{self._key(PAIRS)}/first", data.arrays["rgb"])
        second = ArrayImages(f"{self._key(PAIRS)}/second", data.arrays["second"])
        points, targets, valid = (torch.from_numpy(data.arrays[name]) for name in ("points", "targets", "valid"))
        return ImagePairs(first, second, points, targets, valid.bool(), (self.node.size, self.node.size))

    def _images(self, split: str) -> ArrayImages:
        return ArrayImages(self._key(split), self._open(split).arrays["rgb"])

    def _open(self, split: str) -> Stored:
        if split not in self._splits:
            folder = cache_folder() / "scenes" / self._key(split)
            self._splits[split] = stored(folder, lambda: self._render(split))
        return self._splits[split]

    def _count(self, split: str) -> int:
        return {TRAIN: self.node.train, TEST: self.node.test, PAIRS: self.node.pairs}[split]

    def _key(self, split: str) -> str:
        """Split, and a digest of everything the pixels and labels hang on, the renderer's code included."""
        kept = {"settings": dataclasses.asdict(self.settings), "seed": self._seed(split), "count": self._count(split)}
        kept |= {"size": self.node.size, "stride": self.node.label_stride, "points": self.node.points}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode() + _renderer_code())
        return f"{split}-{digest.hexdigest()[:16]}"

    def _seed(self, split: str) -> int:
        return self.node.seed + (TRAIN, TEST, PAIRS).index(split)

    def _render(self, split: str) -> tuple[Mapping[str, np.ndarray], Any]:
        pack = PairPack(self.node.points, self._seed(split)) if split == PAIRS else ScenePack(self.node.label_stride)
        for scene in self._scenes(split):
            pack.add(scene)
        return pack.arrays(), pack.texts()

    def _scenes(self, split: str) -> Iterator[Scene]:
        """Rendered in chunks, so that memory holds few full-size label maps."""
        count, size = self._count(split), self.node.size
        whole = SceneSet(self._seed(split), count, size, size, self.settings, second_view=split == PAIRS)
        for start in range(0, count, RENDER_CHUNK):
            part = dataclasses.replace(whole, start=start, count=min(RENDER_CHUNK, count - start))
            yield from render_many(part, workers=self.node.workers)


def _settings(changed: Mapping[str, Any]) -> SceneSettings:
    """The default world with some fields changed; lists of YAML become tuples."""
    known = [field.name for field in dataclasses.fields(SceneSettings)]
    for name in changed:
        if name not in known:
            raise unknown("scene setting", name, known)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in changed.items()
    }
    return SceneSettings(**values)


def _renderer_code() -> bytes:
    """What the renderer and the packing compute: a change in either must not meet old pixels, one of words may."""
    folder = Path(imagery.scenes.__file__).parent
    sources = [path for path in sorted(folder.rglob("*.py")) if path.name not in ("__main__.py", "preview.py")]
    sources.append(Path(__file__).with_name("scene_packs.py"))
    return b"".join(hashlib.sha256(_without_words(path.read_text(encoding="utf-8"))).digest() for path in sources)


def _without_words(source: str) -> bytes:
    """A module's syntax tree, without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree).encode()
