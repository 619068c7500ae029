"""Finished probes of a run that is not: what a killed `eval_suite run` finds when it is started again."""

import sys
from dataclasses import dataclass
from pathlib import Path

from common.atomic import remove, replacing_folder
from common.checksums import Damaged, check_folder, seal
from common.digests import digest_value, short
from eval_suite.made_by import MadeBy
from eval_suite.predictions import Predictions, read_predictions
from eval_suite.results import BackboneName, Metrics, Result, read_metrics, samples_of, write_metrics

SUFFIX, METRICS = ".unfinished", "metrics.json"


@dataclass(frozen=True)
class FinishedTasks:
    """A folder with one for each finished task, found by all that its results hang on: metrics, samples, predictions.

    Their checksums lie beside them: a damaged task is probed again, and told.
    """

    folder: Path

    @classmethod
    def beside(cls, metrics: Path) -> "FinishedTasks":
        """Where the tasks of a metrics file are kept until it is written."""
        return cls(metrics.with_name(metrics.name + SUFFIX))

    def get(self, task: str, made: MadeBy, seed: int, predictions: Predictions | None) -> tuple[Result, ...] | None:
        """The results of a task that was finished with the same backbone, data, options, program and seed.

        With `predictions` only if those were kept, too; they are added to it.
        """
        folder = self._path(task, made, seed)
        path = folder / METRICS
        if not folder.is_dir():
            return None
        try:
            check_folder(folder)
        except Damaged as damage:
            print(f"{folder} is damaged ({damage}); probing {task} again", file=sys.stderr)
            return None
        kept = read_predictions(path)
        if predictions is not None:
            if kept is None:
                return None
            predictions.take(kept)
        return read_metrics(path).results

    def keep(
        self, task: str, made: MadeBy, seed: int, results: tuple[Result, ...], predictions: Predictions | None
    ) -> None:
        """Write a task's results down, with their samples and predictions."""
        backbone = BackboneName(name="unfinished", digest=made.backbone)
        whole = Metrics(schema=1, backbone=backbone, suite="unfinished", results=results)
        parts = {"samples": samples_of(whole), "predictions": predictions and predictions.of(task)}
        with replacing_folder(self._path(task, made, seed)) as folder:
            write_metrics(folder / METRICS, whole.to_dict() | parts)
            seal(folder)

    def clear(self) -> None:
        """Remove the folder: the whole is written."""
        remove(self.folder)

    def _path(self, task: str, made: MadeBy, seed: int) -> Path:
        digest = digest_value([task, made.model_dump(), seed])
        return self.folder / f"{task.replace('/', '-')}-{short(digest, 12)}"
