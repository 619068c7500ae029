"""A suite: which data, which probes, one seed. Read from YAML, run on any backbone, answered as metrics.json."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator
from tqdm import tqdm

from eval_suite.features import ProbedBackbone
from eval_suite.probes.classification import KnnProbe, ZeroShotProbe
from eval_suite.probes.correspondence import KeypointProbe, TwoViewProbe
from eval_suite.probes.dense import SegmentationProbe
from eval_suite.probes.geometry import DepthProbe, NormalsProbe
from eval_suite.probes.multitask import MultitaskProbe
from eval_suite.probes.retrieval import RetrievalProbe
from eval_suite.probes.vlm import VlmProbe
from eval_suite.readers.table import ReaderRecipe
from eval_suite.results import BackboneName, Metrics, Result
from eval_suite.text import AbsentError
from teachers.config import Node, load_recipe
from teachers.contracts import Backbone

ProbeRecipe = Annotated[
    KnnProbe
    | ZeroShotProbe
    | SegmentationProbe
    | DepthProbe
    | NormalsProbe
    | TwoViewProbe
    | KeypointProbe
    | RetrievalProbe
    | MultitaskProbe
    | VlmProbe,
    Field(discriminator="probe"),
]


class Suite(Node):
    """A suite file."""

    name: str
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=50, gt=0)  #: images in a forward pass of the backbone
    data: dict[str, ReaderRecipe] = Field(min_length=1)
    probes: dict[str, ProbeRecipe] = Field(min_length=1)  #: task name -> protocol

    @model_validator(mode="before")
    @classmethod
    def _name_probes(cls, data: Any) -> Any:
        """A probe's name is its key."""
        probes = data.get("probes") if isinstance(data, dict) else None
        if not isinstance(probes, dict):
            return data
        named = {key: {**node, "name": key} if isinstance(node, dict) else node for key, node in probes.items()}
        return {**data, "probes": named}

    @model_validator(mode="after")
    def _data_exists(self) -> "Suite":
        for name, probe in self.probes.items():
            if probe.data not in self.data:
                raise ValueError(f'probe {name} wants data "{probe.data}"; the suite has: {", ".join(self.data)}')
        return self


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read and check a suite file; UserError names the field that is wrong."""
    return load_recipe(Suite, path, overrides)


@dataclass(frozen=True)
class Outcome:
    """What one probe gave: results, or why the backbone could not be asked; feature extraction is in the seconds."""

    group: str
    task: str
    results: tuple[Result, ...]
    absent: str | None
    seconds: float


def run_probes(backbone: Backbone, suite: Suite, *, progress: bool) -> Iterator[Outcome]:
    """The suite's probes one after the other; features are extracted once for each set of images."""
    probed = ProbedBackbone(backbone, batch_size=suite.batch_size, progress=progress)
    data = {name: node.open(name) for name, node in suite.data.items()}
    bar = tqdm(suite.probes.items(), desc=f"probes {backbone.spec.name}", disable=not progress)
    for name, probe in bar:
        bar.set_postfix_str(name)
        started = time.perf_counter()
        results: tuple[Result, ...] = ()
        absent = None
        try:
            results = tuple(probe.run(probed, data[probe.data], suite.seed))
        except AbsentError as error:
            absent = str(error)
        yield Outcome(probe.group, name, results, absent, time.perf_counter() - started)


def run_suite(backbone: Backbone, suite: Suite, *, progress: bool = True) -> dict[str, Any]:
    """Every probe of the suite on one backbone -> the mapping of metrics.json and its samples, checked.

    `absent` in it says, by group/task, what the backbone could not be asked and why. Global random state is neither
    used nor changed.
    """
    outcomes = list(run_probes(backbone, suite, progress=progress))
    results = tuple(result for outcome in outcomes for result in outcome.results)
    metrics = Metrics(
        schema=1,
        backbone=BackboneName(name=backbone.spec.name, digest=backbone.spec.digest),
        suite=suite.name,
        results=results,
        samples={result.label: _rounded(result.influence) for result in results if result.influence is not None},
        absent={f"{outcome.group}/{outcome.task}": outcome.absent for outcome in outcomes if outcome.absent},
    )
    return metrics.to_dict()


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    """To five significant digits: they are for errors, and a thousand images a metric take space."""
    return tuple(float(f"{value:.5g}") for value in values)
