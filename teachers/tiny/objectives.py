"""What each teacher learns: a module with its training heads, crops -> named losses, already weighted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.tiny import targets
from teachers.tiny.crops import Crops
from teachers.tiny.heads import (
    DenseHeads,
    affinity_loss,
    contrastive_loss,
    histogram_loss,
    masked_binary,
    masked_l1,
)
from teachers.tiny.model import TinyNetwork


@dataclass(frozen=True)
class LabelCounts:
    """How many classes the scenes have at each granularity."""

    semantic: int
    coarse: int
    part: int


class ClipObjective(nn.Module):
    """Contrastive with captions over the whole scenes of a batch; what is where (classes, parts, colours) over all.

    A contrastive loss alone on a few thousand scenes leaves the tokens nearly empty; the dense part fills them.
    """

    def __init__(self, network: TinyNetwork, counts: LabelCounts, captions: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.counts, self.captions = counts, captions
        outputs = {"semantic": (counts.semantic, 2), "part": (counts.part, 2), "colour": (3, 4), "edge": (1, 4)}
        self.dense = DenseHeads(network.architecture.dim, outputs)
        self.log_scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))

    def forward(self, network: TinyNetwork, crops: Crops, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses by name; `rng` picks a paraphrase per scene."""
        features = network(crops.images)
        out = self.dense(features.spatial)
        losses = {
            "semantic": histogram_loss(out["semantic"], targets.histogram(crops.semantic, self.counts.semantic, 2)),
            "part": 0.5 * histogram_loss(out["part"], targets.histogram(crops.part, self.counts.part, 2)),
            "colour": 2 * F.l1_loss(out["colour"], targets.colours(crops.images, crops.grid, 4)),
            "edge": 0.5 * F.binary_cross_entropy_with_logits(out["edge"], targets.edges(targets.segments(crops), 4)),
        }
        whole = crops.whole.nonzero().flatten()
        if len(whole) > 1 and features.summary is not None and network.text is not None:
            rows = [self.captions[row] for row in crops.rows[whole.numpy()]]
            texts = network.text.encode([row[int(rng.integers(len(row)))] for row in rows])
            scale = self.log_scale.clamp(max=np.log(100.0))
            losses["contrastive"] = contrastive_loss(features.summary[whole], texts, scale)
        return losses


class DinoObjective(nn.Module):
    """Per token semantics at three granularities, geometry, objects, edges, colours; scene facts from the summary."""

    def __init__(self, network: TinyNetwork, counts: LabelCounts) -> None:
        super().__init__()
        self.counts = counts
        outputs = {
            "semantic": (counts.semantic, 2),
            "coarse": (counts.coarse, 2),
            "part": (counts.part, 2),
            "depth": (1, 2),
            "normals": (3, 2),
            "object": (4, 1),
            "edge": (1, 4),
            "colour": (3, 4),
        }
        dim = network.architecture.dim
        self.dense = DenseHeads(dim, outputs)
        self.area = nn.Linear(dim, counts.coarse)
        self.largest = nn.Linear(dim, counts.coarse)
        self.facts = nn.Linear(dim, 5)

    def forward(self, network: TinyNetwork, crops: Crops, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses by name; needs no randomness of its own."""
        features = network(crops.images)
        if features.summary is None:
            raise ValueError("this objective needs a summary")
        return self._dense_losses(self.dense(features.spatial), crops) | self._image_losses(features.summary, crops)

    def _dense_losses(self, out: dict[str, Tensor], crops: Crops) -> dict[str, Tensor]:
        counts = self.counts
        return {
            "semantic": histogram_loss(out["semantic"], targets.histogram(crops.semantic, counts.semantic, 2)),
            "coarse": 0.5 * histogram_loss(out["coarse"], targets.histogram(crops.coarse, counts.coarse, 2)),
            "part": 0.5 * histogram_loss(out["part"], targets.histogram(crops.part, counts.part, 2)),
            "depth": masked_l1(out["depth"], targets.log_depth(crops, 2)),
            "normals": 2 * masked_l1(out["normals"], targets.normals(crops, 2)),
            "object": 0.5 * masked_l1(out["object"], targets.object_geometry(crops)),
            "edge": 0.5 * F.binary_cross_entropy_with_logits(out["edge"], targets.edges(targets.segments(crops), 4)),
            "colour": 2 * F.l1_loss(out["colour"], targets.colours(crops.images, crops.grid, 4)),
        }

    def _image_losses(self, summary: Tensor, crops: Crops) -> dict[str, Tensor]:
        area = F.one_hot(crops.coarse.flatten(1), self.counts.coarse).float().mean(1)
        facts = self.facts(summary)
        largest = targets.largest_kind(crops)
        return {
            "area": 0.5 * histogram_loss(self.area(summary)[..., None, None], area[..., None, None]),
            "largest": 0.3 * F.cross_entropy(self.largest(summary), largest)
            if bool((largest >= 0).any())
            else area.sum() * 0,
            "indoor": 0.3 * F.binary_cross_entropy_with_logits(facts[:, 0], crops.indoor),
            "light": 0.3 * F.l1_loss(facts[:, 1:4], crops.light),
            "count": 0.3 * F.l1_loss(facts[:, 4], targets.object_count(crops)),
        }


class SamObjective(nn.Module):
    """Class-agnostic: edges, masks around each token, which tokens belong together, object geometry, depth edges."""

    EMBEDDING = 16

    def __init__(self, network: TinyNetwork) -> None:
        super().__init__()
        outputs = {
            "edge": (1, 4),
            "depth_edge": (1, 4),
            "foreground": (1, 4),
            "mask": (144, 1),
            "object": (4, 1),
            "embedding": (self.EMBEDDING, 1),
            "colour": (3, 4),
        }
        self.dense = DenseHeads(network.architecture.dim, outputs)
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, network: TinyNetwork, crops: Crops, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses by name; needs no randomness of its own."""
        out = self.dense(network(crops.images).spatial)
        segments = targets.segments(crops)
        binary = F.binary_cross_entropy_with_logits
        foreground = F.avg_pool2d((crops.instance > 0).float().unsqueeze(1), 2)
        same = affinity_loss(out["embedding"], targets.at_centres(segments), self.log_sharpness.exp())
        return {
            "edge": 2 * binary(out["edge"], targets.edges(segments, 4)),
            "depth_edge": binary(out["depth_edge"], targets.depth_edges(crops, 4)),
            "foreground": binary(out["foreground"], foreground),
            "mask": 2 * masked_binary(out["mask"], *targets.window_masks(segments)),
            "object": 0.5 * masked_l1(out["object"], targets.object_geometry(crops)),
            "affinity": same,
            "colour": F.l1_loss(out["colour"], targets.colours(crops.images, crops.grid, 4)),
        }


Objective = ClipObjective | DinoObjective | SamObjective


def build_objective(
    name: str, network: TinyNetwork, counts: LabelCounts, captions: Callable[[], Sequence[Sequence[str]]], seed: int
) -> Objective:
    """The objective of teacher `name`, its heads initialised from `seed`; `captions` is called for clip only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "clip":
            return ClipObjective(network, counts, captions())
        return DinoObjective(network, counts) if name == "dino" else SamObjective(network)
