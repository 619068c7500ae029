"""Finding pictures of the same building: no training, the summary vector ranks a gallery."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from eval_suite.features import ProbedBackbone
from eval_suite.metrics.instance_retrieval import mean_average_precision
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import TEST, ImageSource, LabelledData
from eval_suite.results import Result
from eval_suite.text import AbsentError


class InstanceRetrievalProbe(ProbeNode):
    """Revisited Oxford and Paris: mAP in percent by difficulty, cosine similarity of unit summaries.

    Not one of the paper's groups, so it has a group of its own.
    """

    reads_of: ClassVar[Literal["features", "vectors"]] = "vectors"

    probe: Literal["instance_retrieval"]
    group: str = "instance_retrieval"
    #: of the benchmark, one mAP each
    difficulties: tuple[Literal["easy", "medium", "hard"], ...] = Field(default=("medium", "hard"), min_length=1)

    def needs(self) -> list[Need]:
        return [Need("ranked", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        ranked = data.ranked(TEST)
        similarity = self._vectors(backbone, ranked.queries) @ self._vectors(backbone, ranked.gallery).T
        scores = {
            level: mean_average_precision(similarity, ranked.positive[level], ranked.junk[level])
            for level in self.difficulties
        }
        return [self.result(f"map_{level}", score, seed) for level, score in scores.items()]

    def _vectors(self, backbone: ProbedBackbone, images: ImageSource) -> Tensor:
        summary = backbone.vectors(images).summary
        if summary is None:
            raise AbsentError(f"{backbone.spec.name} has no summary vector")
        return F.normalize(summary, dim=1)
