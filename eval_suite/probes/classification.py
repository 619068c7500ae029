"""Is what an image shows readable from its summary? Nearest neighbours, and prompts through a text tower."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from eval_suite.features import FeatureTable, ProbedBackbone
from eval_suite.metrics.classification import cosine_logits, knn_predict, top1
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.prompts import prompt_list
from eval_suite.readers.contracts import TEST, TRAIN, ClassifiedImages, LabelledData
from eval_suite.results import Result
from eval_suite.text import AbsentError, text_path


class KnnProbe(ProbeNode):
    """RADIO's nearest neighbours: unit summaries, k = 20, votes exp(similarity / 0.07); top-1 in percent."""

    reads_of: ClassVar[Literal["features", "vectors"]] = "vectors"

    probe: Literal["knn"]
    group: str = "classification"
    k: int = Field(default=20, gt=0)  #: neighbours that vote (RADIO: 20)
    temperature: float = Field(default=0.07, ge=1e-3, le=1e3)  #: lower ones leave what floats hold
    vector: Literal["summary", "summary_or_mean"] = "summary"  #: the latter: a spatial mean where there is no summary

    def needs(self) -> list[Need]:
        return [Need("classes", TRAIN), Need("classes", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        known, asked = data.classes(TRAIN), data.classes(TEST)
        bank = self._vectors(backbone, backbone.vectors(known.images).pick(known.rows))
        queries = self._vectors(backbone, backbone.vectors(asked.images).pick(asked.rows))
        predicted = knn_predict(
            bank, known.labels, queries, classes=len(known.names), k=self.k, temperature=self.temperature
        )
        keep_classes(self, backbone, asked, predicted)
        return [self.result("top1", top1(predicted, asked.labels), seed)]

    def _vectors(self, backbone: ProbedBackbone, table: FeatureTable) -> Tensor:
        if table.summary is not None:
            return table.summary
        if self.vector == "summary":
            raise AbsentError(f"{backbone.spec.name} has no summary vector")
        return table.spatial.mean((2, 3))


class ZeroShotProbe(ProbeNode):
    """Class names in prompt templates against image vectors in the space of a text tower; top-1 in percent."""

    reads_of: ClassVar[Literal["features", "vectors"]] = "vectors"

    probe: Literal["zero_shot"]
    group: str = "classification"
    adaptor: str = "clip"  #: whose image-text space: a teacher of the student, or the backbone's own
    templates: (
        Annotated[tuple[str, ...], Field(min_length=1)] | Literal["openai", "simple", "base"]
    )  #: or a list's name

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...] | str) -> tuple[str, ...] | str:
        for template in () if isinstance(templates, str) else templates:
            if template.count("{}") != 1:
                raise ValueError(f'a template holds "{{}}" once, for the class name; got "{template}"')
        return templates

    def needs(self) -> list[Need]:
        return [Need("classes", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        path = text_path(backbone, self.adaptor)
        asked = data.classes(TEST)
        templates = prompt_list(self.templates) if isinstance(self.templates, str) else self.templates
        prototypes = path.classes(asked.names, templates)
        vectors = path.images(backbone.vectors(asked.images).pick(asked.rows))
        predicted = cosine_logits(vectors, prototypes).argmax(1)
        score = top1(predicted, asked.labels)
        keep_classes(self, backbone, asked, predicted)
        named = f"zero-shot-{self.templates}" if isinstance(self.templates, str) else None
        return [self.result("top1", score, seed, protocol=named)]


def keep_classes(probe: ProbeNode, backbone: ProbedBackbone, asked: ClassifiedImages, predicted: Tensor) -> None:
    """Keep the predicted classes, int64 [N], of the images that were asked about."""
    probe.keep(
        backbone,
        "classes",
        asked.images,
        asked.rows,
        lambda: {"predicted": predicted, "labels": asked.labels},
        classes=len(asked.names),
        names=asked.names,
    )
