"""What every probe is: a recipe node that knows how to run."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.recipes import Node
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.score import Score
from eval_suite.predictions import thumbnails
from eval_suite.readers.contracts import ImageSource, LabelledData
from eval_suite.results import Result


@dataclass(frozen=True)
class Need:
    """What a probe asks of its data: a kind of label in a split, and which label maps."""

    kind: Literal[
        "classes", "dense", "instances", "captions", "pairs", "keypoints", "questions", "conversations", "ranked"
    ]
    split: str
    labels: tuple[str, ...] = ()


class ProbeNode(Node):
    """A task of a suite. Fields are its protocol; `run` gives one result per metric.

    A field `probe` of its own says which kind it is: a Literal in this package, `probe: str` in a class of a user's.

    AbsentError from `run` means that the backbone lacks what the task needs; the suite records the reason.
    """

    #: whether all processes run it together and split its work; else the first one runs it on features all extracted
    spread: ClassVar[bool] = False
    #: what of the backbone it reads; a probe with a field `layers: four` reads "layers"
    reads_of: ClassVar[Literal["features", "vectors"]] = "features"

    name: str = Field(description="task name in the results")  #: task name in the results; the key in `probes`
    group: str  #: column of the table that its numbers are averaged in
    data: str  #: which of the suite's data sets

    @abstractmethod
    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        """Results of this task; deterministic in the backbone's features, the data and the seed."""

    @abstractmethod
    def needs(self) -> list[Need]:
        """What `run` will ask of the data, so that it can be looked at beforehand."""

    def wants(self) -> dict[str, list[Need]]:
        """Data set of the suite -> what is asked of it; most probes read one."""
        return {self.data: self.needs()}

    def run_on(self, backbone: ProbedBackbone, data: Mapping[str, LabelledData], seed: int) -> list[Result]:
        """`run`, given all the data sets that `wants` names."""
        return self.run(backbone, data[self.data], seed)

    def reads(self, data: LabelledData) -> list[ImageSource]:
        """The sets of images whose features `run` will ask for, so that all processes can extract them together."""
        fields = {"pairs": ("first", "second"), "ranked": ("queries", "gallery")}
        found = {(need.kind, need.split): getattr(data, need.kind)(need.split) for need in self.needs()}
        return [getattr(part, name) for (kind, _), part in found.items() for name in fields.get(kind, ("images",))]

    def tested(self, data: LabelledData) -> Any:
        """The labelled images that its results are scored on."""
        last = self.needs()[-1]
        return getattr(data, last.kind)(last.split)

    def tested_images(self, data: LabelledData) -> ImageSource:
        """Their images; of pairs the first ones, of ranked images the queries."""
        field = {"pairs": "first", "ranked": "queries"}.get(self.needs()[-1].kind, "images")
        return getattr(self.tested(data), field)

    def rows_of_samples(self, data: LabelledData) -> Tensor:
        """Image rows of what the samples of its results number: int64 [N]."""
        if self.needs()[-1].kind in ("classes", "dense", "captions"):
            return self.tested(data).rows
        return torch.arange(len(self.tested_images(data)))

    def test_set(self, data: LabelledData, seed: int) -> str:
        """What its units are numbers of: equal keys, equal test images in equal order, whatever the backbone."""
        kind = "pairs" if self.needs()[-1].kind == "pairs" else "images"
        return f"{self.tested_images(data).key}:{kind}"

    def keep(
        self,
        backbone: ProbedBackbone,
        kind: str,
        images: ImageSource,
        rows: Tensor,
        arrays: Callable[[], Any],
        **plain: Any,
    ) -> None:
        """Keep predictions where they are asked for (`predictions.SCORERS` says what each kind wants); `rows` are the
        images shown beside them."""
        if backbone.predictions is not None:
            pictures = {"pictures": thumbnails(images, rows)} if len(rows) else {}
            backbone.predictions.keep(f"{self.group}/{self.name}", kind, {**arrays(), **pictures}, **plain)

    def shared_options(self) -> dict[str, Any]:
        """Options that decide its results and stand elsewhere in the suite, e.g. a model that several probes share."""
        return {}

    def result(
        self,
        metric: str,
        score: Score,
        seed: int,
        *,
        higher_is_better: bool = True,
        protocol: str | None = None,
        classes: Sequence[str] = (),
    ) -> Result:
        """A score under this task's name and group; `protocol` names a published one that was followed.

        `classes`: the names of the classes that the score is a mean over.
        """
        return Result.of(
            score,
            group=self.group,
            task=self.name,
            metric=metric,
            higher_is_better=higher_is_better,
            seed=seed,
            protocol=protocol,
            classes=classes,
        )
