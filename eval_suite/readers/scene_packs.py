"""From rendered scenes to compact arrays: what the suite keeps of each one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from imagery.scenes import Keypoint, Scene

CLASS_MAPS = ("semantic", "kind", "part", "saliency")


class ScenePack:
    """Images at full size, dense labels at every `stride`-th pixel, and the words."""

    def __init__(self, stride: int) -> None:
        self._keep = slice(stride // 2, None, stride)
        self._rows: dict[str, list[np.ndarray]] = {}
        self._captions: list[list[str]] = []
        self._questions: list[list[tuple[str, str, str]]] = []
        self._objects: list[list[dict[str, Any]]] = []

    def add(self, scene: Scene) -> None:
        self._put("rgb", scene.rgb.transpose(2, 0, 1))
        for name in CLASS_MAPS:
            self._put(name, scene.label_map(name)[self._keep, self._keep])
        self._put("depth", scene.label_map("depth")[self._keep, self._keep].astype(np.float16))
        self._put("normals", scene.label_map("normals")[self._keep, self._keep].transpose(2, 0, 1).astype(np.float16))
        self._put("scene_class", np.int16(scene.scene_class))
        self._put("indoor", np.bool_(scene.attributes["indoor"]))
        self._captions.append(list(scene.captions))
        asked = [(question.kind, question.question, question.answer) for question in scene.questions]
        self._questions.append(asked + whole_scene_questions(scene))
        self._objects.append(objects_of(scene))

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {name: np.stack(rows) for name, rows in self._rows.items()}

    def texts(self) -> Any:
        return {"captions": self._captions, "questions": self._questions, "objects": self._objects}

    def _put(self, name: str, value: Any) -> None:
        self._rows.setdefault(name, []).append(np.array(value))  # a copy: a view would keep the full-size map


class PairPack:
    """Two views and `points` correspondences between them, half of them on objects where there are enough."""

    def __init__(self, points: int, seed: int) -> None:
        self._count = points
        self._rng = np.random.default_rng(seed)
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in ("rgb", "second", "points", "targets", "valid")}

    def add(self, scene: Scene) -> None:
        second = scene.second
        if second is None:
            raise ValueError("a pair needs the second view")
        visible = second.visible & (scene.label_map("depth") > 0)
        chosen = self._choose(visible & (scene.label_map("instance") > 0), visible)
        rows, columns = np.unravel_index(chosen, visible.shape)
        missing = self._count - len(chosen)
        points = np.stack([columns + 0.5, rows + 0.5], 1)
        targets = second.flow_xy[rows, columns]
        self._rows["rgb"].append(scene.rgb.transpose(2, 0, 1))
        self._rows["second"].append(second.rgb.transpose(2, 0, 1))
        self._rows["points"].append(np.pad(points, ((0, missing), (0, 0))).astype(np.float32))
        self._rows["targets"].append(np.pad(targets, ((0, missing), (0, 0))).astype(np.float32))
        self._rows["valid"].append(np.arange(self._count) < len(chosen))

    def arrays(self) -> Mapping[str, np.ndarray]:
        return {name: np.stack(rows) for name, rows in self._rows.items()}

    def texts(self) -> Any:
        return {}

    def _choose(self, objects: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Flat pixel numbers, at most `points` of them, without repetition."""
        near = self._rng.permutation(np.flatnonzero(objects))[: self._count // 2]
        rest = np.setdiff1d(np.flatnonzero(visible), near)
        return np.concatenate([near, self._rng.permutation(rest)[: self._count - len(near)]])


def whole_scene_questions(scene: Scene) -> list[tuple[str, str, str]]:
    """(kind, question, answer) that a look at the whole picture answers, beside those about its single objects."""
    facts = scene.attributes
    return [
        ("main_object", "what is the main object ?", str(facts["dominant_kind"])),
        ("main_colour", "what colour is the main object ?", str(facts["dominant_colour"])),
        ("ground_colour", "what colour is the ground ?", str(facts["ground_colour"])),
    ]


def objects_of(scene: Scene) -> list[dict[str, Any]]:
    """Objects with visible keypoints: kind, box of the visible pixels, and the points by name."""
    found: dict[int, list[Keypoint]] = {}
    for point in scene.keypoints:
        if point.visible:
            found.setdefault(int(point.instance), []).append(point)
    out = []
    for instance, points in sorted(found.items()):
        rows, columns = np.nonzero(scene.label_map("instance") == instance)
        if not len(rows):
            continue
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        named = [(point.name, float(point.x), float(point.y)) for point in points]
        out.append({"kind": points[0].kind, "box": [float(side) for side in box], "points": named})
    return out
