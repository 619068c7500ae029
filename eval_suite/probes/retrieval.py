"""Finding the image of a caption and the caption of an image."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from common.recipes import Count, distinct
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.retrieval import Ranks, both_ways, recalls
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import TEST, LabelledData
from eval_suite.results import Result
from eval_suite.text import text_path

FIRST = 5  #: of what a query finds, how many are kept to look at


class RetrievalProbe(ProbeNode):
    """CLIP-style recall at k in percent, both directions, without training: is anything right among the first k?"""

    reads_of: ClassVar[Literal["features", "vectors"]] = "vectors"

    probe: Literal["retrieval"]
    group: str = "retrieval"
    adaptor: str = "clip"  #: whose image-text space: a teacher of the student, or the backbone's own
    #: the k of recall at k
    ranks: Annotated[tuple[Count, ...], AfterValidator(distinct)] = Field(default=(1, 5), min_length=1)

    def needs(self) -> list[Need]:
        return [Need("captions", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        path = text_path(backbone, self.adaptor)
        captioned = data.captions(TEST)
        images = path.images(backbone.vectors(captioned.images).pick(captioned.rows))
        owners = torch.tensor([image for image, texts in enumerate(captioned.captions) for _ in texts])
        similarity = images @ path.texts([text for texts in captioned.captions for text in texts]).T
        ranks = both_ways(similarity, owners)
        self.keep(
            backbone,
            "retrieval",
            captioned.images,
            captioned.rows,
            lambda: kept_ranks(similarity, owners, ranks),
            ranks=list(self.ranks),
            captions=captioned.captions,
        )
        return [self.result(name, score, seed) for name, score in recalls(ranks, owners, self.ranks).items()]


def kept_ranks(similarity: Tensor, owners: Tensor, ranks: tuple[Ranks, Ranks]) -> dict[str, Tensor]:
    """What is kept of similarities [I, T]: the owners, the ranks both ways, and the first few found by each query."""
    out = {"owners": owners.int()}
    for way, found, scores in zip(("image_of", "text_of"), ranks, (similarity.T, similarity), strict=True):
        out |= {f"{way}_{name}": getattr(found, name).int() for name in ("ahead", "ties", "ours")}
        out[f"{way}_first"] = scores.topk(min(FIRST, scores.shape[1]), dim=1).indices.int()
    return out
