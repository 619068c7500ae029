"""What a backbone's probes said of each test image, beside metrics.json: to look at, and to score again.

`metrics.predictions.npz` holds for every task that keeps them the predictions, the labels they were compared with, and
small pictures of the images. `rescore` computes the scores from them alone.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.atomic import write_bytes
from common.errors import UserError
from eval_suite.metrics.answer_rules import score_replies
from eval_suite.metrics.answers import mean_answer
from eval_suite.metrics.boundaries import Boundaries
from eval_suite.metrics.classification import mean_class_accuracy, top1
from eval_suite.metrics.correspondence import pck, recall_at, views_recall
from eval_suite.metrics.depth import Depth
from eval_suite.metrics.normals import Normals
from eval_suite.metrics.retrieval import Ranks, recalls
from eval_suite.metrics.saliency import Saliency
from eval_suite.metrics.score import Score
from eval_suite.metrics.segmentation import Segmentation
from eval_suite.readers.contracts import AskedQuestion, ImageSource
from eval_suite.results import PREDICTIONS, Metrics

THUMBNAIL = 64  #: pixels of the small pictures' sides
TOLERANCE = 2e-3  #: relative: depths are kept as 16-bit numbers


@dataclass
class Predictions:
    """Predictions by task: arrays, and the few plain values that scoring needs."""

    kinds: dict[str, str] = field(default_factory=dict)  #: group/task -> one of `SCORERS`
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)

    def keep(self, task: str, kind: str, arrays: Mapping[str, Tensor], **plain: Any) -> None:
        """Keep what a task predicted; see `SCORERS` for what each kind wants."""
        self.kinds[task] = kind
        self.arrays[task] = {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}
        self.plain[task] = plain

    def of(self, task: str) -> "Predictions":
        """Those of one task alone; none where it kept nothing."""
        if task not in self.kinds:
            return Predictions()
        return Predictions({task: self.kinds[task]}, {task: self.arrays[task]}, {task: self.plain[task]})

    def take(self, other: "Predictions") -> None:
        """Those of another one, too."""
        self.kinds |= other.kinds
        self.arrays |= other.arrays
        self.plain |= other.plain

    def write(self, metrics: Path) -> Path:
        """Into a file beside a metrics file."""
        path = predictions_path(metrics)
        index = [{"task": task, "kind": kind, "plain": self.plain[task]} for task, kind in self.kinds.items()]
        packed: dict[str, np.ndarray] = {"index": np.array(json.dumps(index))}
        for number, task in enumerate(self.kinds):
            packed |= {f"{number}/{name}": array for name, array in self.arrays[task].items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **packed)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())
        return path


def predictions_path(metrics: Path) -> Path:
    """Where the predictions behind a metrics file lie."""
    return metrics.with_name(metrics.stem + PREDICTIONS)


def read_predictions(metrics: Path) -> Predictions | None:
    """What `write` wrote; None where nothing was kept; UserError for a damaged file."""
    path = predictions_path(metrics)
    if not path.is_file():
        return None
    found = Predictions()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for number, entry in enumerate(json.loads(str(arrays["index"]))):
                task, start = entry["task"], f"{number}/"
                found.kinds[task], found.plain[task] = entry["kind"], entry["plain"]
                names = [name for name in arrays.files if name.startswith(start)]
                found.arrays[task] = {name.removeprefix(start): arrays[name] for name in names}
    except Exception as error:  # a damaged archive raises nearly anything
        raise UserError(f"{path} is damaged ({error}); probe again with --keep-predictions") from error
    return found


def thumbnails(images: ImageSource, rows: Tensor) -> Tensor:
    """Small pictures uint8 [N, 3, THUMBNAIL, THUMBNAIL] of some rows."""
    parts = [images.read(some).float() for some in rows.split(64)]
    small = [F.interpolate(part, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True) for part in parts]
    return torch.cat(small).round().clamp(0, 255).byte()


def rescore(metrics: Metrics, kept: Predictions) -> list[tuple[str, str, float, float]]:
    """(task, metric, value in metrics.json, value computed again) of every result whose predictions were kept."""
    lines = []
    for task, kind in kept.kinds.items():
        if kind not in SCORERS:
            raise UserError(f"predictions of {task} are of an unknown kind {kind}; they are of a newer version")
        arrays = {name: torch.from_numpy(array) for name, array in kept.arrays[task].items()}
        scores = SCORERS[kind](arrays, kept.plain[task])
        for result in metrics.results:
            if "/".join(result.key[:2]) == task and result.metric in scores:
                lines.append((task, result.metric, result.value, scores[result.metric].value))
    return lines


Arrays = Mapping[str, Tensor]


def _classes(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted and labels int [N]; plain: classes."""
    predicted, labels = arrays["predicted"], arrays["labels"]
    return {
        "top1": top1(predicted, labels),
        "mean_class_accuracy": mean_class_accuracy(predicted, labels, plain["classes"]),
    }


def _segmentation(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted and labels uint8 [N, h, w]; plain: classes."""
    metric = Segmentation(plain["classes"])
    metric.update(arrays["predicted"], arrays["labels"])
    return metric.scores()


def _depth(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted and labels float16 [N, h, w], metres; plain: farthest."""
    metric = Depth(pool="pixel", max_depth=plain["farthest"])
    metric.update(arrays["predicted"].float(), arrays["labels"].float())
    return metric.scores()


def _normals(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted and labels float16 [N, 3, h, w], of length 1 or 0."""
    metric = Normals(pool="pixel")
    metric.update(arrays["predicted"].float(), arrays["labels"].float())
    return metric.scores()


def _saliency(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted uint8 [N, h, w], in `levels` of a probability; labels."""
    metric = Saliency()
    metric.update(arrays["predicted"].double() / plain["levels"], arrays["labels"])
    return metric.scores()


def _boundaries(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted float16 [N, h, w] and labels [N, h, w] or [N, people, h, w]; plain: farthest, a share of the
    diagonal."""
    metric = Boundaries(farthest=plain["farthest"])
    metric.update(arrays["predicted"].float(), arrays["labels"])
    return metric.scores()


def _probe3d(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """predicted [N, K, h, w] on the head's own grid, labels float16 [N, ..., H, W]; plain: how they are
    enlarged, and of depth what is farthest."""
    labels = arrays["labels"].float()
    scores: dict[str, Score] = {}
    metrics: dict[str, Depth | Normals] = {"": Normals(pool="image")}
    if plain["farthest"] is not None:
        depths = {"": Depth(pool="image", max_depth=plain["farthest"])}
        metrics = {**depths, "si_": Depth(pool="image", max_depth=plain["farthest"], align="scale_shift")}
    for prefix, metric in metrics.items():
        for rows in torch.arange(len(labels)).split(16):
            coarse = arrays["predicted"][rows].float()
            said = F.interpolate(coarse, size=labels.shape[-2:], mode=plain["mode"], align_corners=True)
            metric.update(said[:, 0] if isinstance(metric, Depth) else said[:, :3], labels[rows])
        scores |= {prefix + name: score for name, score in metric.scores().items()}
    return scores


def _retrieval(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """owners [T]; ahead, ties and ours, image_of_* [T] and text_of_* [I]; plain: ranks (the first k that count)."""
    ways = [
        Ranks(*(arrays[f"{way}_{name}"].long() for name in ("ahead", "ties", "ours")))
        for way in ("image_of", "text_of")
    ]
    return recalls((ways[0], ways[1]), arrays["owners"].long(), plain["ranks"])


def _views(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """metres, places (pixels) and valid [P, K]; plain: centimetres, pixels."""
    return views_recall(arrays, plain["centimetres"], plain["pixels"])


def _several(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """TASK/predicted and TASK/labels for each task; plain: tasks, each with `kind`, and what that kind wants."""
    out: dict[str, Score] = {}
    for task, own in plain["tasks"].items():
        parts = {name: arrays[f"{task}/{name}"] for name in ("predicted", "labels")}
        out |= {
            own["names"][name]: score
            for name, score in SCORERS[own["kind"]](parts, own).items()
            if name in own["names"]
        }
    return out


def _recall(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """errors float32 [P, K] in pixels, valid bool [P, K]; plain: pixels."""
    found = recall_at(arrays["errors"], arrays["valid"], plain["pixels"])
    return {f"recall_{pixels:g}px": score for pixels, score in found.items()}


def _pck(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """errors, sides, pairs, kinds [M], ends [P, 2]; plain: alpha."""
    return {f"pck_{plain['alpha']:g}": pck(**arrays, alpha=plain["alpha"])}


def _fields(item: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a question as they were before JSON made lists of tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}


def _replies(arrays: Arrays, plain: Mapping[str, Any]) -> dict[str, Score]:
    """plain: rule, replies, and questions as AskedQuestion's fields; rule "words" compares word for word by kind."""
    asked = [AskedQuestion(**_fields(item)) for item in plain["questions"]]
    if plain["rule"] != "words":
        return score_replies(plain["rule"], plain["replies"], asked)
    scores = {}
    for kind in sorted({item.kind for item in asked}):
        own = [(item, reply) for item, reply in zip(asked, plain["replies"], strict=True) if item.kind == kind]
        right = torch.tensor([float(reply == item.answer) for item, reply in own])
        scores[kind] = mean_answer(right, torch.tensor([item.row for item, _ in own]))
    return scores


SCORERS: dict[str, Callable[[Arrays, Mapping[str, Any]], dict[str, Score]]] = {
    "classes": _classes,
    "segmentation": _segmentation,
    "depth": _depth,
    "normals": _normals,
    "saliency": _saliency,
    "boundaries": _boundaries,
    "several": _several,
    "probe3d": _probe3d,
    "retrieval": _retrieval,
    "views": _views,
    "recall": _recall,
    "pck": _pck,
    "replies": _replies,
}
