"""Expensive results on disk: known by everything that decides them, checked when they are read, made again if damaged.

A key is plain data (a mapping that JSON has a form for); what differs in one field is another result. A result is named
tensors in one safetensors file that carries the digest of its key and a checksum of its numbers. A disk that is full
ends the keeping, not the program that can do without.
"""

import io
import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.atomic import WRITING, remove, replacing_file
from common.digests import PREFIX, digest_value

SUFFIX = ".safetensors"
OVERHEAD = 400  #: bytes a file has beside its numbers, about; for forecasts
STALE_SECONDS = 3600  #: after which what a killed process left half-written is removed


class Store:
    """Results below `folder` that share `identity`; each is known by a key of its own beside it."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        self.folder = folder / _digits(digest_value(self.identity))
        self._writes = True

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where a result lies; two letters a folder, for a folder of a million files is slow."""
        name = _digits(self._digest(key))
        return self.folder / name[:2] / f"{name}{SUFFIX}"

    def read(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The result, mapped into memory; None where there is none, or none that is whole."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError):
            return None
        whole = said.get("key") == self._digest(key) and said.get("crc") == checksum(tensors)
        return tensors if whole else None

    def write(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep a result; where the disk will not, say so once and keep nothing more."""
        if not self._writes:
            return
        plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        try:
            with replacing_file(self.path(key), flush=False) as temporary:  # what a crash tears is made again
                save_file(plain, temporary, {"key": self._digest(key), "crc": checksum(plain)})
        except (OSError, SafetensorError) as error:
            self._writes = False
            print(f"results are no longer kept in {self.folder}: {error}", file=sys.stderr)

    def get(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The result as kept, else what `make` gives, which is then kept. Of several processes one makes it."""
        found = self.read(key)
        if found is not None:
            return found
        lock = self.path(key).with_suffix(".lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock)
            held.acquire()
        except OSError:  # a disk that is full or read-only
            return make()
        try:
            found = self.read(key)
            if found is None:
                found = dict(make())
                self.write(key, found)
        finally:
            remove(lock)  # before it is given free: who waits for it looks for the result first
            held.release()
        return found

    def size(self) -> int:
        """Bytes that the files have; what a killed process left half-written is removed."""
        whole = 0
        for path in self.folder.rglob("*"):
            if path.name.startswith(WRITING):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    remove(path)
            elif path.suffix == SUFFIX:
                whole += path.stat().st_size
        return whole

    def _digest(self, key: Mapping[str, Any]) -> str:
        return digest_value([self.identity, dict(key)])


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and numbers."""
    found = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return str(found)


def packed(value: Any) -> Tensor:
    """Plain data as a tensor of bytes; TypeError for what JSON has no form for."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> Any:
    """The inverse of `packed`."""
    return json.loads(tensor.numpy().tobytes())


def packed_state(state: Mapping[str, Any]) -> Tensor:
    """Tensors, numbers and texts in any nesting (an optimiser's state) as a tensor of bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def unpacked_state(tensor: Tensor) -> dict[str, Any]:
    """The inverse of `packed_state`, on the CPU."""
    found: dict[str, Any] = torch.load(io.BytesIO(tensor.numpy().tobytes()), map_location="cpu", weights_only=True)
    return found


def _digits(digest: str) -> str:
    return digest.removeprefix(PREFIX)[:32]
