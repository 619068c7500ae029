"""One part of a checkpoint: only its tensors are read, and of a sharded one only the files that hold some are fetched.

A vision-language model is mostly language model: of LLaVA 7B's 14 GB the image tower is 0.6.
"""

import json
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor

from common.errors import UserError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_part(name: str, prefix: str) -> dict[str, Tensor]:
    """Tensors of a folder or hub repository whose name holds `prefix` (e.g. "vision_tower."), what follows it as name.

    Raises UserError when there are no safetensors or none with that name; the hub's own errors come through.
    """
    state: dict[str, Tensor] = {}
    for file in shards(name, prefix):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no dict)
                if _inner(key, prefix):
                    state[_inner(key, prefix)] = opened.get_tensor(key)
    if not state:
        raise UserError(f"{name} holds no weights under {prefix.rstrip('.')}")
    return state


def shards(name: str, prefix: str) -> list[Path]:
    """The safetensors files that hold the part; a hub repository's are fetched, or found in the hub's cache."""
    index = _file(name, INDEX)
    if index is None:
        whole = _file(name, WHOLE)
        if whole is None:
            raise UserError(f"{name} has no {WHOLE}; only safetensors are read in part")
        return [whole]
    found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = sorted({file for key, file in found.items() if _inner(key, prefix)})
    paths = [_file(name, file) for file in files]
    missing = [file for file, path in zip(files, paths, strict=True) if path is None]
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}, which its {INDEX} names; fetch it again")
    return [path for path in paths if path is not None]


def _inner(key: str, prefix: str) -> str:
    """What follows `prefix` in a name, "" where it is not there; `model.` or the like may stand before it."""
    before, found, inner = key.partition(prefix)
    return inner if found and (not before or before.endswith(".")) else ""


def _file(name: str, file: str) -> Path | None:
    """A file of a folder or hub repository; None where there is none, or none in the cache of an offline machine."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(name, file))
    except LocalEntryNotFoundError:
        if file == INDEX:
            return None
        raise
    except EntryNotFoundError:
        return None
