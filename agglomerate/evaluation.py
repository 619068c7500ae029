"""Probing a backbone, and the Δm table of what was probed."""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from agglomerate.backbones import load_backbone
from eval_suite.results import Metrics, validate_metrics, write_metrics
from eval_suite.suite import load_suite, run_suite
from eval_suite.table import Table
from eval_suite.table import build_table as _build_table
from eval_suite.table_rows import find_baseline, read_rows
from teachers.contracts import Backbone


def probe(
    backbone: str | dict[str, Any] | Backbone,
    suite: str | PathLike[str] = "suites/embedded.yaml",
    *,
    only: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Run a suite on a backbone; returns the mapping of metrics.json, and writes it to `out` where that is given.

    suite: a file of yours or a shipped one ("suites/embedded_debug.yaml"). only: groups, e.g. ["dense", "3d"]. The file
    also keeps what each test image contributed, by which rows of a table are compared image by image.
    """
    chosen = load_suite(fspath(suite)).only(only)
    asked = backbone if isinstance(backbone, Backbone) else load_backbone(backbone)
    found = run_suite(asked, chosen, samples=out is not None, device=device)
    if out is not None:
        write_metrics(Path(out), found)
    return {key: value for key, value in found.items() if key != "samples"}


def build_table(rows: Mapping[str, Any] | Sequence[str | PathLike[str]], baseline: str) -> Table:
    """The Δm table: `table.to_dict()`, or `eval_suite.table_formats.render(table, "md")`.

    rows: run folders and metrics files, or row name -> what `probe` returned (or a list of them, for several seeds).
    """
    if isinstance(rows, Mapping):
        lists = {name: found if isinstance(found, list) else [found] for name, found in rows.items()}
        metrics: dict[str, list[Metrics]] = {
            name: [validate_metrics(each, name) for each in found] for name, found in lists.items()
        }
    else:
        metrics = read_rows([fspath(row) for row in rows])
    return _build_table(metrics, find_baseline(metrics, baseline))
