"""Weights from files and hubs: read safely, and every way it can fail said in one line.

Nothing here or in the libraries executes code from a checkpoint: safetensors, or `torch.load(weights_only=True)`.
"""

import logging
import pickle
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub.constants
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from common.errors import UserError

PREFERRED = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
HUB_ERRORS = {
    "GatedRepoError": "is gated: accept its terms at https://huggingface.co/{name}, then `hf auth login`",
    "RepositoryNotFoundError": "does not exist on the hub, or is private: check the name, or `hf auth login`",
    "RevisionNotFoundError": "has no such revision on the hub",
    "RemoteEntryNotFoundError": "has no such file on the hub: is it a model of this library?",
    "EntryNotFoundError": "has no such file on the hub: is it a model of this library?",
}
OFFLINE = (
    "is not on this machine and the hub cannot be reached: fetch it where there is a network and copy the cache "
    "(HF_HOME), or name a local folder or file"
)
OFFLINE_ERRORS = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "ConnectionError",
    "ConnectionRefusedError",
    "ProxyError",
    "URLError",
    "gaierror",
    "TimeoutError",
    "MaxRetryError",
)


def find_checkpoint(path: str | Path) -> Path:
    """The weight file that `path` means: itself, or the one in that folder; UserError when none or several fit."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no weights at {path}: there is no such file or folder")
    for name in PREFERRED:
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{path} should hold one weight file ({', '.join(SUFFIXES)}), found: {names}; name the file")
    return found[0]


def check_checkpoint(path: str | Path) -> Path:
    """`find_checkpoint`, opened safely to see that it is whole; UserError when it is damaged or needs code to load."""
    file = find_checkpoint(path)
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} is no weight file I can read; known endings: {', '.join(SUFFIXES)}")
    with loading(str(file)):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        else:
            torch.load(file, map_location="cpu", weights_only=True)
    return file


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a weight file or folder, read safely; or what it wraps as "state_dict" or "model"."""
    file = check_checkpoint(path)
    with loading(str(file)):
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return state


@contextmanager
def loading(what: str, fetch: bool = False) -> Iterator[None]:
    """Turn what goes wrong inside while loading `what` (a hub name or a path) into one UserError.

    With `fetch` the hub may be asked; where it cannot be reached, only its cache on this machine is, at once.
    """
    try:
        with _offline() if fetch and not hub_in_reach() else nullcontext():
            yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise UserError(explain(what, error)) from error


@cache
def hub_in_reach() -> bool:
    """False where the hub's host does not even resolve and no proxy is set: then its retries only cost minutes."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def in_cache(repository: str) -> bool:
    """Whether weights of a hub repository are in the hub's cache on this machine."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return any(file.suffix in SUFFIXES and file.exists() for file in folder.glob("*/*"))


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's own offline mode, for a while, and no log lines about it: the error says it once."""
    constants = huggingface_hub.constants
    before, level = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(level)


def explain(what: str, error: BaseException) -> str:
    """One or two lines for an error that a library raised while loading `what`; its causes are looked at too."""
    chain = list(_causes(error))
    for cause in chain:
        name, text = type(cause).__name__, str(cause)
        if name in HUB_ERRORS:
            return f"{what} {HUB_ERRORS[name].format(name=what)}"
        if name in OFFLINE_ERRORS or "couldn't connect to" in text:
            return f"{what} {OFFLINE}"
        if isinstance(cause, pickle.UnpicklingError) or "weights_only" in text:
            return f"{what} is a pickle that needs code to load, which is refused; save its state dict, as safetensors"
        damaged = (
            isinstance(cause, SafetensorError | EOFError) or "PytorchStreamReader" in text or "zip archive" in text
        )
        if damaged:
            return f"{what} is damaged or cut short ({_line(cause)}); fetch it again"
        if "loading state_dict" in text:
            return f"{what} does not fit the model: {mismatch(text)}"
    return f"cannot load {what}: {_line(chain[0])}"


def mismatch(text: str) -> str:
    """The missing, unexpected and misshapen entries of torch's load_state_dict error, each list cut to three."""
    parts = []
    for title, pattern in (
        ("missing", r"Missing key\(s\)[^:]*: (.*)"),
        ("unexpected", r"Unexpected key\(s\)[^:]*: (.*)"),
    ):
        found = re.search(pattern, text)
        if found:
            keys = re.findall(r'"([^"]+)"', found.group(1))
            parts.append(f"{title} {shorten(keys)}")
    shapes = re.findall(r"size mismatch for ([^:]+): .*?(\[[^]]*\]).*?(\[[^]]*\])", text)
    if shapes:
        parts.append(f"other shapes {shorten([f'{key} {have} for {need}' for key, have, need in shapes])}")
    return "; ".join(parts) or " ".join(text.split())[:200]


def shorten(names: list[str], most: int = 3) -> str:
    """ "a, b, c and 7 more" """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
