"""What each teacher learns: a module with its training heads, crops -> named losses, already weighted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.tiny.model import TinyNetwork
from tools.tiny_teachers import targets
from tools.tiny_teachers.crops import Crops
from tools.tiny_teachers.heads import (
    DenseHeads,
    affinity_loss,
    contrastive_loss,
    histogram_loss,
    masked_binary,
    masked_l1,
)


@dataclass(frozen=True)
class LabelCounts:
    """How many classes the scenes have at each granularity, and what the coarse ones are called."""

    semantic: int
    part: int
    coarse_names: tuple[str, ...]

    @property
    def coarse(self) -> int:
        return len(self.coarse_names)


class ClipObjective(nn.Module):
    """Contrastive with captions over the whole scenes of a batch; words and labels of what is where over all of it.

    A contrastive loss alone on a few thousand scenes learns colours and places but no kinds of object, and leaves the
    tokens nearly empty: matching each token with the word for what it shows, and the dense part, mend both.
    """

    def __init__(self, network: TinyNetwork, counts: LabelCounts, captions: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.counts, self.captions = counts, captions
        outputs = {
            "semantic": (counts.semantic, 2),
            "part": (counts.part, 2),
            "normals": (3, 2),
            "object": (4, 1),
            "edge": (1, 4),
            "colour": (3, 4),
        }
        self.dense = DenseHeads(network.architecture.dim, outputs)
        self.tags = nn.Linear(network.summary_dim, 2 * counts.coarse)
        self.log_scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))

    def forward(self, network: TinyNetwork, crops: Crops, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses by name; `rng` picks a paraphrase per scene."""
        features = network(crops.images)
        if features.summary is None or network.text is None or network.projection is None:
            raise ValueError("this objective needs a summary and a text tower")
        out = self.dense(features.spatial)
        losses = {
            "semantic": histogram_loss(out["semantic"], targets.histogram(crops.semantic, self.counts.semantic, 2)),
            "part": 0.5 * histogram_loss(out["part"], targets.histogram(crops.part, self.counts.part, 2)),
            "normals": 2 * masked_l1(out["normals"], targets.normals(crops, 2)),
            "object": 0.5 * masked_l1(out["object"], targets.object_geometry(crops)),
            "edge": 0.5 * F.binary_cross_entropy_with_logits(out["edge"], targets.edges(targets.segments(crops), 4)),
            "colour": 2 * F.l1_loss(out["colour"], targets.colours(crops.images, crops.grid, 4)),
        }
        scale = self.log_scale.clamp(max=np.log(100.0))
        words = network.text.encode([f"a {name}" for name in self.counts.coarse_names])
        tokens = network.projection(features.spatial.flatten(2).transpose(1, 2))
        losses["words"] = 0.5 * naming_loss(tokens, words, targets.at_centres(crops.coarse), crops, scale)
        losses |= tag_losses(self.tags(features.summary), crops, self.counts.coarse)
        whole = crops.whole.nonzero().flatten()
        rows = [self.captions[row] for row in crops.rows[whole.numpy()]]
        texts = network.text.encode([row[int(rng.integers(len(row)))] for row in rows])
        losses["contrastive"] = contrastive_loss(features.summary[whole], texts, scale)
        return losses


def naming_loss(tokens: Tensor, words: Tensor, labels: Tensor, crops: Crops, log_scale: Tensor) -> Tensor:
    """Tokens [B, g*g, E] against the embedded class names [K, E]: cross-entropy to `labels` [B, g, g].

    Tokens on objects and on the background weigh equally in sum, though there are far fewer of the first.
    """
    logits = log_scale.exp() * F.normalize(tokens, dim=-1) @ F.normalize(words, dim=-1).T
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    on_object = (targets.at_centres(crops.instance) > 0).flatten().float()
    shares = [(loss * weight).sum() / weight.sum().clamp_min(1) for weight in (on_object, 1 - on_object)]
    return 0.5 * (shares[0] + shares[1])


def tag_losses(tags: Tensor, crops: Crops, coarse: int) -> dict[str, Tensor]:
    """From logits [B, 2 * coarse]: which share of the crop each class covers, and the kind of the largest object."""
    area = F.one_hot(crops.coarse.flatten(1), coarse).float().mean(1)
    largest = targets.largest_kind(crops)
    kind = F.cross_entropy(tags[:, coarse:], largest, reduction="sum") / (largest >= 0).sum().clamp_min(1)
    return {"area": 0.5 * histogram_loss(tags[:, :coarse, None, None], area[..., None, None]), "largest": 0.3 * kind}


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
        self.tags = nn.Linear(network.summary_dim, 2 * counts.coarse)
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
        facts = self.facts(summary)
        return tag_losses(self.tags(summary), crops, self.counts.coarse) | {
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
