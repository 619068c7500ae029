"""Probing many backbones once each: an answer on disk is used again as long as weights and suite are the same."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.digests import digest_value
from common.json_files import write_json
from teachers.contracts import Backbone, identity_of

METRICS, RECEIPT = "metrics.json", "probed.json"


@dataclass(frozen=True)
class ProbeOnce:
    """`probe` and `save` come from the eval suite, which this room does not import; entry scripts pass them in."""

    probe: Callable[[Backbone], Mapping[str, Any]]
    save: Callable[[Path, Mapping[str, Any]], None]
    suite_digest: str

    def run(self, row: str, backbone: Backbone, folder: Path) -> Path:
        """Probe a backbone as the table's `row`, or find it done; returns the path of its metrics.json."""
        metrics, receipt = folder / METRICS, folder / RECEIPT
        due = {"row": row, "backbone": digest_value(identity_of(backbone)), "suite": self.suite_digest}
        if metrics.is_file() and receipt.is_file() and json.loads(receipt.read_text(encoding="utf-8")) == due:
            return metrics
        found = dict(self.probe(backbone))
        found["backbone"] = {"name": row, "digest": backbone.spec.digest}
        receipt.unlink(missing_ok=True)  # never a receipt beside metrics it does not belong to
        self.save(metrics, found)
        write_json(receipt, due)
        return metrics
