"""Finding the image of a caption and the caption of an image."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field

from common.recipes import Count, distinct
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.retrieval import recall_at_k
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import TEST, LabelledData
from eval_suite.results import Result
from eval_suite.text import text_path


class RetrievalProbe(ProbeNode):
    """CLIP-style recall at k in percent, both directions, without training: is anything right among the first k?"""

    reads_of: ClassVar[Literal["features", "vectors"]] = "vectors"

    probe: Literal["retrieval"]
    group: str = "retrieval"
    adaptor: str = "clip"
    ranks: Annotated[tuple[Count, ...], AfterValidator(distinct)] = Field(default=(1, 5), min_length=1)

    def needs(self) -> list[Need]:
        return [Need("captions", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        path = text_path(backbone, self.adaptor)
        captioned = data.captions(TEST)
        images = path.images(backbone.vectors(captioned.images).pick(captioned.rows))
        owners = torch.tensor([image for image, texts in enumerate(captioned.captions) for _ in texts])
        similarity = images @ path.texts([text for texts in captioned.captions for text in texts]).T
        results = []
        for rank in self.ranks:
            found = recall_at_k(similarity, owners, rank)
            results.append(self.result(f"text_to_image_recall{rank}", found.text_to_image, seed))
            results.append(self.result(f"image_to_text_recall{rank}", found.image_to_text, seed))
        return results
