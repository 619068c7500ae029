"""Results that ship with the package: the tiny teachers on the embedded suite, so nobody has to measure them again.

A record is used for exactly the weights and the suite that it was measured with; any other backbone or suite is
measured. `python -m eval_suite record` writes them; to be done after any change of a probe, too: a slow test measures
them anew.
"""

import hashlib
from pathlib import Path
from typing import Any

from common.digests import digest_value, short
from eval_suite.predictions import Predictions
from eval_suite.provenance import details_of
from eval_suite.results import RECORDS, Metrics, read_metrics, samples_of, write_metrics
from eval_suite.suite import Suite, run_suite
from teachers.contracts import Backbone, identity_of


def recorded(backbone: Backbone, suite: Suite, folder: Path = RECORDS) -> dict[str, Any] | None:
    """What `run_suite` with samples gave for these weights on this suite, if it ships with the package."""
    for path in sorted(folder.glob(f"{_prefix(suite)}-*.json")):
        metrics = read_metrics(path)
        if _is_of(metrics, backbone, suite):
            return metrics.to_dict() | {"samples": samples_of(metrics)}
    return None


def _is_of(metrics: Metrics, backbone: Backbone, suite: Suite) -> bool:
    """Whether all results are of this very network, and every probe has the options it was measured with."""
    network = short(digest_value(identity_of(backbone)))
    if any(result.made_by is None or result.made_by.backbone != network for result in metrics.results):
        return False
    details = {
        f"{probe.group}/{name}": details_of(probe, suite.data[probe.data], {}) for name, probe in suite.probes.items()
    }
    return metrics.tasks.keys() <= details.keys() and all(
        (found.options, found.reader) == (details[task].options, details[task].reader)
        for task, found in metrics.tasks.items()
    )


def recall_or_run(
    backbone: Backbone, suite: Suite, *, progress: bool = True, finished: Path | None = None
) -> dict[str, Any]:
    """What `run_suite` with samples would give, without running it where the answer ships with the package.

    `finished`: the metrics file that will be written; probes that were finished for it before are not run again.
    """
    found = recorded(backbone, suite)
    return found or run_suite(
        backbone, suite, progress=progress, samples=True, predictions=Predictions(), finished=finished
    )


def record(backbone: Backbone, suite: Suite, *, progress: bool = True, folder: Path = RECORDS) -> Path:
    """Measure a backbone and keep the answer; returns the record's path."""
    metrics = run_suite(backbone, suite, progress=progress, samples=True)
    path = folder / f"{_prefix(suite)}-{backbone.spec.name.replace(':', '-')}.json"
    write_metrics(path, metrics)
    return path


def _prefix(suite: Suite) -> str:
    """The suite's name and a digest over every field of it that is not at its default."""
    digest = hashlib.sha256(suite.model_dump_json(exclude_defaults=True).encode()).hexdigest()
    return f"{suite.name}-{digest[:12]}"
