"""Linear probe of classification: logistic regression on frozen summaries."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from eval_suite.features import FeatureTable, ProbedBackbone
from eval_suite.metrics.classification import mean_class_accuracy, top1
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.readers.contracts import TEST, TRAIN, LabelledData
from eval_suite.results import Result
from eval_suite.text import AbsentError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


class LinearClassificationProbe(ProbeNode):
    """L2 logistic regression (L-BFGS) on summaries as they are; its strength is chosen on a fifth of the training
    images, drawn with the seed, then all of them are fitted: t-ReX's and UNIC's rule for small sets, over a grid.

    Convex, so the result hangs on nothing else. Top-1 and mean class accuracy in percent.
    """

    reads_of: ClassVar[Literal["features", "vectors"]] = "vectors"

    probe: Literal["linear_classification"]
    group: str = "classification"
    strengths: tuple[float, ...] = Field(default=(1e-5, 1e-3, 1e-1, 1e1, 1e3, 1e5), min_length=1)  #: sklearn's C
    iterations: int = Field(default=2000, gt=0)  #: of L-BFGS, at most
    #: summary_or_mean: a spatial mean where there is no summary
    vector: Literal["summary", "summary_or_mean"] = "summary"
    #: which numbers are reported
    metrics: tuple[Literal["top1", "mean_class_accuracy"], ...] = Field(default=("top1",), min_length=1)

    def needs(self) -> list[Need]:
        return [Need("classes", TRAIN), Need("classes", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        known, asked = data.classes(TRAIN), data.classes(TEST)
        features = self._vectors(backbone, backbone.vectors(known.images).pick(known.rows))
        queries = self._vectors(backbone, backbone.vectors(asked.images).pick(asked.rows))
        predicted = torch.from_numpy(self._fit(features, known.labels.numpy(), seed).predict(queries))
        scores = {
            "top1": top1(predicted, asked.labels),
            "mean_class_accuracy": mean_class_accuracy(predicted, asked.labels, len(known.names)),
        }
        return [self.result(name, scores[name], seed, protocol="logistic-regression") for name in self.metrics]

    def _fit(self, features: np.ndarray, labels: np.ndarray, seed: int) -> "LogisticRegression":
        order = np.random.default_rng(seed).permutation(len(features))
        held, rest = order[: len(order) // 5], order[len(order) // 5 :]
        best = self.strengths[len(self.strengths) // 2]
        if len(held) and len(np.unique(labels[rest])) > 1:
            tried = [self._regression(strength).fit(features[rest], labels[rest]) for strength in self.strengths]
            best = self.strengths[int(np.argmax([model.score(features[held], labels[held]) for model in tried]))]
        return self._regression(best).fit(features, labels)

    def _regression(self, strength: float) -> "LogisticRegression":
        from sklearn.linear_model import LogisticRegression  # takes seconds to import; most suites do without

        return LogisticRegression(C=strength, max_iter=self.iterations)

    def _vectors(self, backbone: ProbedBackbone, table: FeatureTable) -> np.ndarray:
        if table.summary is not None:
            return table.summary.numpy()
        if self.vector == "summary":
            raise AbsentError(f"{backbone.spec.name} has no summary vector")
        return table.spatial.mean((2, 3)).numpy()
