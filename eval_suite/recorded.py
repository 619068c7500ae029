"""Results that ship with the package: the tiny teachers on the embedded suite, so nobody has to measure them again.

A record is used for exactly the weights and the suite that it was measured with; any other backbone or suite is
measured. `python -m eval_suite record` writes them; to be done after any change of a probe, too: a slow test measures
them anew.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from eval_suite.results import validate_metrics, write_text
from eval_suite.suite import Suite, run_suite
from teachers.contracts import Backbone

RECORDS = Path(__file__).parent / "data" / "recorded"


def digest_of(suite: Suite) -> str:
    """sha256 over every field of a suite that is not at its default."""
    return "sha256:" + hashlib.sha256(suite.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def recorded(backbone: Backbone, suite: Suite, folder: Path = RECORDS) -> dict[str, Any] | None:
    """The metrics of these weights on this suite, if they ship with the package."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        metrics = validate_metrics(record["metrics"], str(path))
        if record["suite_digest"] == digest_of(suite) and metrics.backbone.digest == backbone.spec.digest:
            return metrics.to_dict()
    return None


def recall_or_run(backbone: Backbone, suite: Suite, *, progress: bool = True) -> dict[str, Any]:
    """What `run_suite` would give, without running it where the answer ships with the package."""
    return recorded(backbone, suite) or run_suite(backbone, suite, progress=progress)


def record(backbone: Backbone, suite: Suite, *, progress: bool = True, folder: Path = RECORDS) -> Path:
    """Measure a backbone and keep the answer; returns the record's path."""
    metrics = run_suite(backbone, suite, progress=progress)
    path = folder / f"{suite.name}-{backbone.spec.name.replace(':', '-')}.json"
    text = json.dumps({"suite_digest": digest_of(suite), "metrics": metrics}, indent=1, ensure_ascii=False)
    write_text(path, text + "\n")
    return path
