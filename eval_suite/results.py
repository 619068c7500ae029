"""metrics.json: what a probe run found out about one backbone. Typed, validated, written in one piece."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeFloat, PrivateAttr

from common.errors import UserError
from common.json_files import write_json
from common.recipes import Node, validate
from eval_suite.made_by import MadeBy, TaskDetails
from eval_suite.sample_scores import (
    Owner,
    Samples,
    SetSamples,
    by_unit,
    check_belongs,
    read_samples,
    samples_path,
    write_samples,
)

if TYPE_CHECKING:
    from eval_suite.metrics.score import Score  # imports torch, for which a table should not wait

#: groups of the paper, in its order; a suite may add more
RECORDS = Path(__file__).parent / "data" / "recorded"  #: results that ship, see `eval_suite.recorded`
GROUPS = ("classification", "dense", "3d", "retrieval", "pascal_context", "nyudv2", "vlm")
SCHEMA = 1

PREDICTIONS = ".predictions.npz"  #: what the file of kept predictions adds to the name of a metrics file
#: fields that results of older files do not have
LATER_FIELDS = ("protocol", "units", "unit", "floor", "by_class", "made_by")

Name = Annotated[str, Field(min_length=1)]
Key = tuple[str, str, str]  #: group, task, metric


class ClassValue(Node):
    """What a mean over classes is the mean of."""

    value: FiniteFloat
    stderr: NonNegativeFloat | None = None


class Result(Node):
    """One number of one task. `seed`, `n` (items scored) and `stderr` are None where they are not known."""

    group: Name
    task: Name
    metric: Name
    value: FiniteFloat
    higher_is_better: bool
    seed: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stderr: NonNegativeFloat | None = None
    protocol: str | None = None  #: the published protocol it follows, where one is followed to the letter
    units: Annotated[int, Field(ge=1)] | None = None  #: independent draws among the items; the error is taken over them
    unit: str | None = None  #: what they are: image, scene, sequence, object, ...
    floor: FiniteFloat | None = None  #: the value of an answer that knows nothing of the image
    by_class: dict[str, ClassValue] | None = None  #: of a mean over classes, those that occur
    made_by: MadeBy | None = None  #: None in files of older versions and for published numbers
    _samples: Samples | None = PrivateAttr(default=None)  #: kept in a file beside metrics.json
    _test_set: str | None = PrivateAttr(default=None)  #: what the units of the samples are numbers of
    _class_samples: dict[str, Samples] = PrivateAttr(default_factory=dict)  #: of `by_class`, until units are known

    @property
    def samples(self) -> SetSamples | None:
        """What each unit of the test set contributed, if it is known; not part of metrics.json."""
        if self._samples is None or self._test_set is None:
            return None
        return SetSamples(self._test_set, self.value, self._samples)

    def scored_on(
        self, test_set: str, unit: str = "image", units: NDArray[np.int64] | None = None, made_by: MadeBy | None = None
    ) -> "Result":
        """The same result, told which test set its samples number, what its units are and how it was made.

        units [N]: the unit of each item that the samples number, where several items are one draw.
        """
        samples, stderr, key = self._samples, self.stderr, test_set
        if units is not None and samples is not None:
            samples, stderr = by_unit(samples, self.value, units)
            key = f"{test_set} by {unit}"
        count = None if samples is None else len(samples.units)
        told: dict[str, Any] = {"unit": unit, "units": count, "stderr": stderr, "made_by": made_by}
        if units is not None and self.by_class is not None:
            told["by_class"] = {
                name: ClassValue(value=one.value, stderr=by_unit(self._class_samples[name], one.value, units)[1])
                if name in self._class_samples
                else one
                for name, one in self.by_class.items()
            }
        out = self.model_copy(update=told)
        out._samples, out._test_set = samples, key
        return out

    @property
    def owner(self) -> Owner:
        """Its name in the file of samples."""
        return *self.key, self.seed

    @property
    def key(self) -> Key:
        return self.group, self.task, self.metric

    @classmethod
    def of(
        cls,
        score: "Score",
        *,
        group: str,
        task: str,
        metric: str,
        higher_is_better: bool = True,
        seed: int | None = None,
        protocol: str | None = None,
        classes: Sequence[str] = (),
    ) -> "Result":
        """A metric's score under a name; `classes` are the names of what its `by_class` is of."""
        each = {name: one for name, one in zip(named_apart(classes), score.by_class, strict=False) if one is not None}
        result = cls(
            group=group,
            task=task,
            metric=metric,
            value=score.value,
            higher_is_better=higher_is_better,
            seed=seed,
            n=score.n,
            stderr=score.stderr,
            protocol=protocol,
            units=score.units,
            floor=score.floor,
            by_class={name: ClassValue(value=one.value, stderr=one.stderr) for name, one in each.items()} or None,
        )
        result._samples = score.samples
        result._class_samples = {name: one.samples for name, one in each.items() if one.samples is not None}
        return result

    def to_dict(self) -> dict[str, Any]:
        """As it stands in metrics.json; the later fields only where they say something."""
        unknown = {name for name in LATER_FIELDS if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unknown)


def named_apart(names: Sequence[str]) -> list[str]:
    """Names of which each occurs once: a second "wall" is "wall (7)", after its number."""
    seen: dict[str, int] = {}
    return [
        name if seen.setdefault(name, number) == number else f"{name} ({number})" for number, name in enumerate(names)
    ]


class BackboneName(Node):
    """Which weights were probed."""

    name: Name
    digest: Name


class Metrics(Node):
    """The whole file: every result of one backbone on one suite."""

    schema_version: Literal[1] = Field(alias="schema")
    backbone: BackboneName
    suite: Name
    results: tuple[Result, ...]
    absent: dict[str, str] = Field(default_factory=dict)  #: group/task -> why the backbone could not be asked
    tasks: dict[str, TaskDetails] = Field(default_factory=dict)  #: group/task -> what its digests stand for

    _file: Path | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """By what the file says; where it lies makes no difference."""
        return isinstance(other, Metrics) and self.to_dict() == other.to_dict()

    @property
    def file(self) -> Path | None:
        """Where it was read from; predictions lie beside it, if they were kept."""
        return self._file

    def to_dict(self) -> dict[str, Any]:
        """The mapping that metrics.json holds; `absent` and `tasks` only where there is something in them."""
        empty = {name for name in ("absent", "tasks") if not getattr(self, name)}
        out = self.model_dump(mode="json", by_alias=True, exclude=empty)
        return out | {"results": [result.to_dict() for result in self.results]}


def validate_metrics(data: Any, source: str) -> Metrics:
    """Plain data -> Metrics; UserError names the field at fault, a repeated result, or a direction that changes."""
    metrics = validate(Metrics, data, source)
    for (key, seed), count in Counter((result.key, result.seed) for result in metrics.results).items():
        if count > 1:
            raise UserError(f"{source}: {'/'.join(key)} (seed {seed}) occurs {count} times; give each its own seed")
    directions: dict[Key, bool] = {}
    for result in metrics.results:
        if directions.setdefault(result.key, result.higher_is_better) != result.higher_is_better:
            raise UserError(f"{source}: {'/'.join(result.key)} is called both better and worse when higher")
    return metrics


def read_metrics(path: str | Path) -> Metrics:
    """A metrics.json, or that of a run folder."""
    path = Path(path)
    file = path / "metrics.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; probe the run first") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    metrics = validate_metrics(data, str(file))
    path = samples_path(file)
    found = read_samples(path)
    check_belongs(path, found, [(result.owner, result.value) for result in metrics.results])
    for result in metrics.results:
        if entry := found.get(result.owner):
            result._samples, result._test_set = entry.samples, entry.test_set
    metrics._file = file
    return metrics


def write_metrics(path: str | Path, metrics: Metrics | Mapping[str, Any]) -> None:
    """Write metrics.json, checked; a reader sees the old file or the new one, never half of one.

    Samples (the key "samples" of a mapping, or those of the results) go into a file of their own beside it, and so do
    the `predictions.Predictions` of a mapping's key "predictions".
    """
    path = Path(path)
    kept = None
    if isinstance(metrics, Metrics):
        checked, samples = metrics, samples_of(metrics)
    else:
        plain = dict(metrics)
        samples, kept = plain.pop("samples", {}), plain.pop("predictions", None)
        checked = validate_metrics(plain, str(path))
    for beside in (samples_path(path), path.with_name(path.stem + PREDICTIONS)):
        beside.unlink(missing_ok=True)  # never beside metrics they do not belong to
    write_json(path, checked.to_dict())
    write_samples(samples_path(path), samples)
    if kept is not None:
        kept.write(path)


def samples_of(metrics: Metrics) -> dict[Owner, SetSamples]:
    """The samples of the results that have them."""
    return {result.owner: result.samples for result in metrics.results if result.samples is not None}
