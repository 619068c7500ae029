"""Everything a recipe's teachers need, downloaded before a cluster job into one folder that works offline later.

Each teacher is loaded once, for real, with the libraries' caches below the folder: so nothing is forgotten (tokenizers,
the shards of a large checkpoint, code of a repository), what came is whole, and its digest can be written down.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants

from common.errors import UserError
from common.json_files import write_json
from teachers.contracts import BackboneSpec, capability
from teachers.known import gating_of
from teachers.registry import load_backbone, parse_spec

RECORD = "fetched.json"


def wanted(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted place in a recipe -> backbone node: every `backbone` and `teacher` field, and a student's own weights."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        here = f"{path}{key}"
        if key in ("backbone", "teacher") and (isinstance(value, str) or "spec" in value):
            found[here] = value
        elif isinstance(value, Mapping):
            if value.get("weights") == "pretrained" and "model" in value:
                found[here] = f"timm:{value['model']}"
            found |= wanted(value, f"{here}.")
    return found


def local_paths(data: Mapping[str, Any]) -> list[str]:
    """Adapter folders that a recipe names; they are the user's own, so they are only looked for."""
    named: list[str] = []
    for key, value in data.items():
        if key in ("adapters", "denoise"):
            named += [value] if isinstance(value, str) else list((value or {}).values())
        elif isinstance(value, Mapping):
            named += local_paths(value)
    return [name for name in dict.fromkeys(named) if name and not name.startswith("builtin:")]


def fetch(data: Mapping[str, Any], folder: Path) -> str:
    """Fetch all that `data`, a recipe as plain data, needs into `folder`; returns what was done, in lines.

    Raises UserError with one line for each backbone that could not be fetched; the others are there by then.
    """
    nodes = wanted(data)
    if not nodes:
        raise UserError("this recipe names no backbone: there is nothing to fetch")
    folder.mkdir(parents=True, exist_ok=True)
    done: dict[str, BackboneSpec] = {}
    failed: list[str] = []
    for place, node in nodes.items():
        try:
            with caches_in(folder):
                done[place] = _load_once(node)
        except UserError as error:
            failed.append(f"{place}: {_with_gating(str(error), node)}")
    record = {place: {"node": nodes[place], "spec": spec.to_dict()} for place, spec in done.items()}
    write_json(folder / RECORD, record)
    if failed:
        raise UserError(f"{len(failed)} of {len(nodes)} could not be fetched\n" + "\n".join(failed))
    return "\n".join([*(_line(place, spec) for place, spec in done.items()), *_notes(data, folder)])


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """The hub's and torch's caches below `folder`, where HF_HOME and TORCH_HOME will find them, for a while."""
    constants = huggingface_hub.constants
    before, torch_home = constants.HF_HUB_CACHE, os.environ.get("TORCH_HOME")
    constants.HF_HUB_CACHE = str(folder.resolve() / "hub")
    os.environ["TORCH_HOME"] = str(folder.resolve() / "torch")
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = before
        if torch_home is None:
            del os.environ["TORCH_HOME"]
        else:
            os.environ["TORCH_HOME"] = torch_home


def _load_once(node: str | Mapping[str, Any]) -> BackboneSpec:
    """Load a backbone and let it read a word, if it reads: its tokenizer is a download too."""
    backbone = load_backbone(node)
    encode = capability(backbone, "encode_text")
    if encode is not None:
        encode(["a"])
    return backbone.spec


def _with_gating(message: str, node: str | Mapping[str, Any]) -> str:
    """The message, and what its publisher asks for where the table knows and the message does not say it."""
    prefix, rest, _ = parse_spec(node)
    gating = gating_of(f"{prefix}:{rest}")
    return message if not gating or "accept" in message else f"{message}; it is {gating}"


def _line(place: str, spec: BackboneSpec) -> str:
    return f"{place:<28} {spec.name}  {spec.source}  {spec.licence}  {spec.digest}"


def _notes(data: Mapping[str, Any], folder: Path) -> list[str]:
    lines = []
    for path in local_paths(data):
        there = Path(path).expanduser().is_dir()
        lines.append(f"adapter {path}: {'here, take it along' if there else 'not there yet: train it first'}")
    where = folder.resolve()
    lines.append(f"recorded in {where / RECORD}; a node with `digest: sha256:...` refuses other weights")
    lines.append(f"offline: export HF_HOME={where} TORCH_HOME={where / 'torch'} HF_HUB_OFFLINE=1")
    return lines
