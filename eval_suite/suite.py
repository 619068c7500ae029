"""A suite: which data, which probes, one seed. Read from YAML, run on any backbone, answered as metrics.json."""

import time
from collections.abc import Sequence
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
from eval_suite.readers.scenes import ScenesNode
from eval_suite.results import BackboneName, Metrics, Result
from eval_suite.text import AbsentError
from teachers.config import Node, load_recipe
from teachers.contracts import Backbone

ReaderRecipe = ScenesNode
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


def run_suite(backbone: Backbone, suite: Suite, *, progress: bool = True) -> dict[str, Any]:
    """Every probe of the suite on one backbone -> the mapping of metrics.json.

    Beside the results: `absent`, group/task -> why the backbone could not be asked, and `seconds` per task. Features
    are extracted once for each set of images; global random state is neither used nor changed.
    """
    probed = ProbedBackbone(backbone, batch_size=suite.batch_size, progress=progress)
    data = {name: node.open(name) for name, node in suite.data.items()}
    results: list[Result] = []
    absent: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name, probe in tqdm(suite.probes.items(), desc=f"probes {backbone.spec.name}", disable=not progress):
        started = time.perf_counter()
        try:
            results += probe.run(probed, data[probe.data], suite.seed)
        except AbsentError as error:
            absent[f"{probe.group}/{name}"] = str(error)
        seconds[name] = round(time.perf_counter() - started, 2)
    metrics = Metrics(BackboneName(backbone.spec.name, backbone.spec.digest), suite.name, tuple(results))
    return metrics.to_dict() | {"absent": absent, "seconds": seconds}
