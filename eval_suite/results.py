"""metrics.json: what a probe run found out about one backbone. Typed, validated, written in one piece.

Beside it lies metrics.samples.json: what every test image adds to the error of every result. Two rows that saw the same
images are compared image by image with it; without it they are compared as if they had seen different ones.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, NonNegativeFloat

from eval_suite.metrics.score import Score
from teachers.config import Node, validate
from teachers.errors import UserError

#: groups of the paper, in its order; a suite may add more
GROUPS = ("classification", "dense", "3d", "retrieval", "pascal_context", "nyudv2", "vlm")
SCHEMA = 1

Name = Annotated[str, Field(min_length=1)]
Key = tuple[str, str, str]  #: group, task, metric


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
    influence: tuple[float, ...] | None = Field(
        default=None, exclude=True, repr=False
    )  #: on its way to Metrics.samples

    @property
    def key(self) -> Key:
        return self.group, self.task, self.metric

    @property
    def label(self) -> str:
        """The result's name in `Metrics.samples`."""
        return "/".join(self.key) + ("" if self.seed is None else f"@{self.seed}")

    @classmethod
    def of(
        cls, score: Score, *, group: str, task: str, metric: str, higher_is_better: bool = True, seed: int | None = None
    ) -> "Result":
        """A metric's score under a name."""
        return cls(
            group=group,
            task=task,
            metric=metric,
            value=score.value,
            higher_is_better=higher_is_better,
            seed=seed,
            n=score.n,
            stderr=score.stderr,
            influence=score.influence,
        )


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
    #: Result.label -> what each test image adds to its error (metrics.score.Score.influence); kept in a file of its own
    samples: dict[str, tuple[FiniteFloat, ...]] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `absent` and `samples` only where something is."""
        empty = {name for name in ("absent", "samples") if not getattr(self, name)}
        return self.model_dump(mode="json", by_alias=True, exclude=empty)


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
    text, data = _read_json(file)
    metrics = validate_metrics(data, str(file))
    samples = samples_file(file)
    if not samples.is_file():
        return metrics
    _, beside = _read_json(samples)
    if not isinstance(beside, dict) or beside.get("of") != _digest(text):
        return metrics  # of other numbers than these: a file somebody edited, or a write that was cut off
    return validate_metrics({**data, "samples": beside["samples"]}, str(samples))


def write_metrics(path: str | Path, metrics: Metrics | Mapping[str, Any]) -> None:
    """Write metrics.json and its samples, checked; a reader sees old files or new ones, never half of one."""
    checked = metrics if isinstance(metrics, Metrics) else validate_metrics(dict(metrics), str(path))
    data = checked.to_dict()
    samples = data.pop("samples", None)
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    beside = samples_file(path)
    if samples:
        write_text(beside, json.dumps({"of": _digest(text), "samples": samples}, allow_nan=False) + "\n")
    else:
        beside.unlink(missing_ok=True)
    write_text(path, text)


def samples_file(path: str | Path) -> Path:
    """Where the samples of a metrics.json are kept."""
    return Path(path).with_suffix(".samples.json")


def _read_json(file: Path) -> tuple[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        return text, json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; probe the run first") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error


def _digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one piece, through a temporary one beside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a report is for sharing
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
