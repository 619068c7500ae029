"""A suite: which data, which probes, one seed. Read from YAML, run on any backbone, answered as metrics.json."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from torch import Tensor

from common.digests import digest_value
from common.errors import unknown
from common.plugins import validate_plugin
from common.progress import ProgressBar
from common.recipes import Count, Name, Node, Seed, load_recipe
from eval_suite import processes
from eval_suite.features import ProbedBackbone
from eval_suite.finished import FinishedTasks
from eval_suite.made_by import TaskDetails
from eval_suite.predictions import Predictions
from eval_suite.probes.base import ProbeNode
from eval_suite.probes.classification import KnnProbe, ZeroShotProbe
from eval_suite.probes.correspondence import KeypointProbe, TwoViewProbe
from eval_suite.probes.dense import SegmentationProbe
from eval_suite.probes.detection import DetectionProbe
from eval_suite.probes.geometry import DepthProbe, NormalsProbe
from eval_suite.probes.instance_retrieval import InstanceRetrievalProbe
from eval_suite.probes.linear_classification import LinearClassificationProbe
from eval_suite.probes.linear_protocols import LinearSegmentationProbe
from eval_suite.probes.llava import LlavaProbe
from eval_suite.probes.multitask import MultitaskProbe
from eval_suite.probes.probe3d_dense import Probe3dDepthProbe, Probe3dNormalsProbe
from eval_suite.probes.probe3d_views import Probe3dViewsProbe
from eval_suite.probes.retrieval import RetrievalProbe
from eval_suite.probes.sam_instances import SamInstancesProbe
from eval_suite.probes.vlm import VlmProbe
from eval_suite.provenance import details_of, made_by
from eval_suite.readers.contracts import LabelledData
from eval_suite.readers.nodes import FileReaderNode, expanded
from eval_suite.readers.remembered import Remembered
from eval_suite.readers.table import ReaderRecipe
from eval_suite.results import BackboneName, Metrics, Result, samples_of
from eval_suite.text import AbsentError
from eval_suite.units import units_of
from eval_suite.vlm.recipe import VlmRecipe
from teachers.contracts import Backbone, identity_of
from teachers.frozen import dtype_of

OwnProbe = Annotated[
    KnnProbe
    | ZeroShotProbe
    | LinearClassificationProbe
    | SegmentationProbe
    | LinearSegmentationProbe
    | DepthProbe
    | NormalsProbe
    | TwoViewProbe
    | Probe3dViewsProbe
    | Probe3dDepthProbe
    | Probe3dNormalsProbe
    | SamInstancesProbe
    | DetectionProbe
    | KeypointProbe
    | RetrievalProbe
    | InstanceRetrievalProbe
    | MultitaskProbe
    | VlmProbe
    | LlavaProbe,
    Field(discriminator="probe"),
]
PROBES = "eval_suite.probes"  #: the entry point group of probes that other packages add


def plugin_probe(value: Any, validate: ValidatorFunctionWrapHandler) -> ProbeNode:
    """A probe of ours by its name, or a user's: `probe: class:PACKAGE.MODULE.NAME`, or a registered name."""
    return validate_plugin(ProbeNode, "probe", PROBES, value, validate)  # type: ignore[type-abstract]  # never made


ProbeRecipe = Annotated[SerializeAsAny[OwnProbe], WrapValidator(plugin_probe)]


class Suite(Node):
    """A suite file."""

    name: Name  #: of the suite, kept with every result
    seed: Seed = 0  #: of every probe that draws anything
    batch_size: Count = 50  #: images in a forward pass of the backbone
    data: dict[Name, ReaderRecipe] = Field(min_length=1)  #: name -> data set that probes refer to
    probes: dict[Name, ProbeRecipe] = Field(min_length=1)  #: task name -> protocol
    vlm: VlmRecipe | None = None  #: the vision-language model that the `llava` probes share

    @model_validator(mode="before")
    @classmethod
    def _name_probes(cls, data: Any) -> Any:
        """A probe's name is its key; one that is null is left out: another file's, or the command line's, wish."""
        probes = data.get("probes") if isinstance(data, dict) else None
        if not isinstance(probes, dict):
            return data
        kept = {key: node for key, node in probes.items() if node is not None}
        named = {key: {**node, "name": key} if isinstance(node, dict) else node for key, node in kept.items()}
        return {**data, "probes": named}

    @model_validator(mode="after")
    def _share_vlm(self) -> "Suite":
        llava = {name: probe for name, probe in self.probes.items() if isinstance(probe, LlavaProbe)}
        if llava and self.vlm is None:
            raise ValueError(f"probe {next(iter(llava))} is a llava; say which model in the suite's vlm node")
        if self.vlm is not None and not llava:
            raise ValueError("the vlm node is used by no probe; add {probe: llava, data: ...} or take it out")
        for probe in llava.values():
            probe.shares(self.vlm)
        return self

    @model_validator(mode="after")
    def _data_exists(self) -> "Suite":
        for name, probe in self.probes.items():
            for wanted in probe.wants():
                if wanted not in self.data:
                    raise ValueError(f'probe {name} wants data "{wanted}"; the suite has: {", ".join(self.data)}')
        return self

    def only(self, groups: Sequence[str]) -> "Suite":
        """The suite with the probes of these groups and the data they read; all of it for none."""
        if not groups:
            return self
        known = {probe.group for probe in self.probes.values()}
        for group in groups:
            if group not in known:
                raise unknown("group of probes", group, known)
        probes = {name: probe for name, probe in self.probes.items() if probe.group in groups}
        read = {name for probe in probes.values() for name in probe.wants()}
        data = {name: node for name, node in self.data.items() if name in read}
        return self.model_copy(update={"probes": probes, "data": data})


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
    details: TaskDetails | None = None


def run_probes(
    backbone: Backbone,
    suite: Suite,
    *,
    progress: bool,
    cache: Path | None = None,
    device: str = "cpu",
    finished: FinishedTasks | None = None,
    predictions: Predictions | None = None,
) -> Iterator[Outcome]:
    """The suite's probes one after the other; features are extracted once for each set of images."""
    made_of, dtype = digest_value(identity_of(backbone)), dtype_of(backbone)
    probed = ProbedBackbone(
        backbone, batch_size=suite.batch_size, device=device, progress=progress, cache=cache, predictions=predictions
    )
    data = {name: Remembered(node.open(name)) for name, node in suite.data.items()}
    bar = ProgressBar(len(suite.probes), f"probes {backbone.spec.name}", "probe", shown=progress)
    for name, probe in bar.over(suite.probes.items()):
        processes.all_say(None, patient=True)  # the first one may come from hours of a probe that it ran alone
        bar.note(now=name)
        started = time.perf_counter()
        known = _known(suite, probe, data, (made_of, dtype), finished, predictions)
        if known is not None:
            yield Outcome(probe.group, name, known, None, 0.0, task_details(suite, probe, data))
            continue
        if not takes_part(probe, probed, data[probe.data]):
            continue
        try:
            found = probe.run_on(probed, data, suite.seed)
        except AbsentError as error:
            yield Outcome(probe.group, name, (), str(error), time.perf_counter() - started)
            continue
        if processes.rank() == 0:
            details = task_details(suite, probe, data)
            made, test_set = made_by(details, made_of, dtype), probe.test_set(data[probe.data], suite.seed)
            units, called = units_of_task(suite, probe, data)
            numbers = None if units is None else units.numpy()
            results = tuple(result.scored_on(test_set, called, numbers, made) for result in found)
            if finished is not None:
                finished.keep(f"{probe.group}/{name}", made, suite.seed, results, predictions)
            yield Outcome(probe.group, name, results, None, time.perf_counter() - started, details)


def _known(
    suite: Suite,
    probe: ProbeNode,
    data: Mapping[str, Remembered],
    made_of: tuple[str, str],
    finished: FinishedTasks | None,
    predictions: Predictions | None,
) -> tuple[Result, ...] | None:
    """What an earlier start of the same run found for this task; all processes are told alike."""
    if finished is None:
        return None
    found = None
    if processes.rank() == 0 and finished.folder.is_dir():
        made = made_by(task_details(suite, probe, data), *made_of)
        found = finished.get(f"{probe.group}/{probe.name}", made, suite.seed, predictions)
    there = processes.all_say(found is not None, patient=True)[0]  # it reads all the data to know
    return (found or ()) if there else None


def task_details(suite: Suite, probe: ProbeNode, data: Mapping[str, Remembered]) -> TaskDetails:
    """Options, reader and contents of everything a probe reads."""
    contents = {
        f"{name} {what}": digest
        for name, needs in probe.wants().items()
        for need in needs
        for what, digest in data[name].contents(need.kind, need.split, need.labels).items()
    }
    contents["unit"] = units_of_task(suite, probe, data)[1]
    return details_of(probe, suite.data[probe.data], contents)


def units_of_task(suite: Suite, probe: ProbeNode, data: Mapping[str, Remembered]) -> tuple[Tensor | None, str]:
    """The unit of everything that the samples of a task's results number (None: each its own), and what units are."""
    node = suite.data[probe.data]
    root = Path(expanded(node.root)) if isinstance(node, FileReaderNode) else None
    rule = node.unit_rule if isinstance(node, FileReaderNode) else None
    units = units_of(probe.tested_images(data[probe.data]), rule, root)
    if units is None:
        kind = probe.needs()[-1].kind
        return None, {"pairs": "pair", "ranked": "query"}.get(kind, "image")
    return units.of[probe.rows_of_samples(data[probe.data])], units.name


def takes_part(probe: ProbeNode, probed: ProbedBackbone, data: LabelledData) -> bool:
    """Whether this process runs a probe: all of them where it splits its own work, else the first one, once all have
    extracted the features that it reads."""
    if not probe.spread and processes.world() > 1:
        for images in probe.reads(data):
            probed.extract_together(images, "layers" if getattr(probe, "layers", "last") == "four" else probe.reads_of)
    return probe.spread or processes.rank() == 0


def run_suite(
    backbone: Backbone,
    suite: Suite,
    *,
    progress: bool = True,
    samples: bool = False,
    cache: Path | None = None,
    device: str = "cpu",
    finished: Path | None = None,
    predictions: Predictions | None = None,
) -> dict[str, Any]:
    """Every probe of the suite on one backbone -> the mapping of metrics.json, checked.

    With `samples` it has one more key, "samples": what each test image contributed to each result, which
    `write_metrics` puts into a file of its own, so that two runs can be compared image by image. `cache` is a folder
    where features stay for the next time.
    `finished` is the metrics file that will be written: beside it finished tasks are kept until the run is whole, and
    an interrupted one goes on from there. `predictions` takes what the probes predict.

    `absent` in it says, by group/task, what the backbone could not be asked and why. Global random state is neither
    used nor changed. With several processes (`processes.joined_processes`) the first one has all results.
    """
    kept = None if finished is None else FinishedTasks.beside(finished)
    probes = run_probes(
        backbone,
        suite,
        progress=progress,
        cache=cache,
        device=device,
        finished=kept,
        predictions=predictions,
    )
    outcomes = list(probes)
    metrics = Metrics(
        schema=1,
        backbone=BackboneName(name=backbone.spec.name, digest=backbone.spec.digest),
        suite=suite.name,
        results=tuple(result for outcome in outcomes for result in outcome.results),
        absent={f"{outcome.group}/{outcome.task}": outcome.absent for outcome in outcomes if outcome.absent},
        tasks={f"{outcome.group}/{outcome.task}": outcome.details for outcome in outcomes if outcome.details},
    )
    beside = {} if predictions is None else {"predictions": predictions}
    return metrics.to_dict() | ({"samples": samples_of(metrics)} if samples else {}) | beside
