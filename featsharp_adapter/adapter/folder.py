"""Adapter folders: adapter.safetensors, adapter.json and README.md, on disk, in the package, and on the Hub."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError, unknown

WEIGHTS, DESCRIPTION, CARD = "adapter.safetensors", "adapter.json", "README.md"
SHIPPED = Path(__file__).parents[1] / "shipped"
BUILTIN = "builtin:"
TRAINED = "adapter"  #: where a training puts its adapter, below its own folder


def write_folder(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], card: str) -> Path:
    """Write all files beside `folder`, then put them in its place; an interruption leaves the old folder as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staging = Path(scratch) / "new"
        staging.mkdir()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, staging / WEIGHTS)
        (staging / WEIGHTS).chmod(0o644)  # safetensors keeps what it writes to the owner
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        (staging / CARD).write_text(card, encoding="utf-8")
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(staging, folder)
    return folder


def find_folder(name: str) -> Path:
    """The folder behind a path, `builtin:NAME`, or a Hub repository ORGANISATION/NAME (downloaded once and cached).

    The folder of a training (`out` of its recipe) stands for the adapter in it.
    """
    if name.startswith(BUILTIN):
        return _find_shipped(name.removeprefix(BUILTIN))
    if Path(name).exists():
        trained = Path(name) / TRAINED
        return trained if trained.is_dir() and not (Path(name) / DESCRIPTION).exists() else Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"no adapter at {name}: there is no such folder")
    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, DESCRIPTION, CARD]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"no adapter at {name}: no such folder, and not found on the Hub ({reason})") from error


def read_description(folder: Path) -> dict[str, Any]:
    """The mapping in `adapter.json`; UserError when there is none."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} is no adapter: cannot read {DESCRIPTION} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(description, dict):
        raise UserError(f"{path} is damaged: it holds no mapping")
    return description


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder; UserError when they are missing or cut short."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def upload_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload to the Hub; UserError when it refuses."""
    hub = HfApi()
    try:
        address = str(hub.create_repo(repository, private=private, exist_ok=True))
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"cannot upload to {repository}: {error}") from error
    return address


def _find_shipped(name: str) -> Path:
    known = [path.name for path in SHIPPED.iterdir() if path.is_dir()] if SHIPPED.is_dir() else []
    if name not in known:
        raise unknown("built-in adapter", name, known)
    return SHIPPED / name
