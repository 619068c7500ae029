"""What `render_scene` hands out. Maps are [H, W]; pixel coordinates have x right, y down, pixel centres at +0.5."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Keypoint:
    """A named point on an object; `x, y` may lie outside the picture, then `visible` is False."""

    name: str
    instance: int
    kind: str
    x: float
    y: float
    visible: bool


@dataclass(frozen=True)
class Question:
    """`kind` is one of vocab.QUESTION_KINDS; the answer is one word, decidable from the picture."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class ObjectFacts:
    """What can be said of one object in the picture.

    `pixels` are its visible pixels, `seen_share` how much of it is neither hidden nor cut off by the frame, `x, y` the
    middle of the visible part as shares of width and height, `distance` that of its nearest visible point in metres.
    `clear` says that it is large and whole enough to be asked about.
    """

    instance: int
    kind: str
    colour: str
    material: str
    glyph: str
    pixels: int
    seen_share: float
    x: float
    y: float
    distance: float
    clear: bool
    glyph_readable: bool


@dataclass(frozen=True)
class SecondView:
    """The same world from another place.

    `flow_xy` [H, W, 2] is where each pixel of the first view lies in this one (x, y; -1 where the first view sees sky);
    `visible` [H, W] says that this view sees the same point, unhidden.
    """

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray
    flow_xy: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is true of it. Without labels only `rgb`, `intrinsics` and `pose` are filled."""

    rgb: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray
    semantic: np.ndarray | None = None
    kind: np.ndarray | None = None
    instance: np.ndarray | None = None
    part: np.ndarray | None = None
    material: np.ndarray | None = None
    saliency: np.ndarray | None = None
    boundary: np.ndarray | None = None
    depth: np.ndarray | None = None
    normals: np.ndarray | None = None
    scene_class: int = -1
    keypoints: list[Keypoint] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    objects: list[ObjectFacts] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    second: SecondView | None = None

    def label_map(self, name: str) -> np.ndarray:
        """The label map of that name, [H, W, ...]; ValueError where the scene was drawn without labels."""
        found: np.ndarray | None = getattr(self, name)
        if found is None:
            raise ValueError(f"the scene was drawn without labels, so it has no {name}")
        return found
