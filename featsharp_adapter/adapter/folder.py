"""Adapter folders: adapter.safetensors, adapter.json and README.md, on disk, in the package, and on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.atomic import recover, replacing_folder, write_text
from common.checksums import CHECKSUM, check_weights, entry_of
from common.errors import UserError, unknown
from common.json_files import read_json_object, write_json
from common.tensor_files import write_tensors

WEIGHTS, DESCRIPTION, CARD = "adapter.safetensors", "adapter.json", "README.md"
SHIPPED = Path(__file__).parents[1] / "shipped"
BUILTIN = "builtin:"
TRAINED = "adapter"  #: where a training puts its adapter, below its own folder


def write_folder(folder: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], card: str) -> Path:
    """Replace `folder`; an interruption leaves the old one as it was."""
    with replacing_folder(folder) as new:
        write_tensors(new / WEIGHTS, tensors)
        write_json(new / DESCRIPTION, dict(description) | {CHECKSUM: entry_of(new / WEIGHTS)})
        write_text(new / CARD, card)
    return folder


def find_folder(name: str) -> Path:
    """The folder behind a path, `builtin:NAME`, or a Hub repository ORGANISATION/NAME (downloaded once and cached).

    The folder of a training (`out` of its recipe) stands for the adapter in it.
    """
    if name.startswith(BUILTIN):
        return _find_shipped(name.removeprefix(BUILTIN))
    if recover(name).exists():
        trained = recover(Path(name) / TRAINED)
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
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} is no adapter: cannot read {DESCRIPTION}, there is none")
    return read_json_object(folder / DESCRIPTION)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder; UserError when they are missing, cut short, or not as they were written."""
    check_weights(folder / WEIGHTS, read_description(folder))
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
