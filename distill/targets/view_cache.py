"""Teachers' views on disk, so that a teacher looks once at what is shown more than once.

A view is kept under the teacher (its weights' digest and everything else that decides its answer) and the very pixels
it was shown, so a crop that differs in one bit is another image and a wrong view cannot be given back. Views of fp32
teachers come back bit for bit. One safetensors file an image and view, written under another name and then renamed; a
file that is torn or damaged is made again.
"""

import hashlib
import json
import os
import secrets
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from teachers.contracts import Backbone, Features
from teachers.frozen import FrozenBackbone

SUFFIX = ".safetensors"
WRITING = ".writing-"
#: What a file has beside its numbers, about; for the forecast.
OVERHEAD = 512
STALE_SECONDS = 3600


class ViewCache:
    """The views of one teacher below `folder`. identity: everything that decides what it answers, JSON-able."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.identity = json.dumps(identity, sort_keys=True)
        self.folder = folder / hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        self.hits = self.misses = 0
        self._writes = True

    def recall(self, view: str, images: Tensor, make: Callable[[], Features]) -> Features:
        """The view of images [B, 3, H, W]: as kept where all of them are, else what `make` gives, which is then kept.

        A batch with one unknown image is made whole: fewer images at once may change the last bit.
        """
        names = [image_digest(image) for image in images]
        kept = [self._read(view, name) for name in names]
        known = [each for each in kept if each is not None]
        if len(known) == len(names):
            self.hits += len(names)
            return stacked(known, images.device)
        made = make()
        self.misses += len(names)
        for index, name in enumerate(names):
            if kept[index] is None:
                self._write(view, name, one_of(made, index))
        return made

    def size_of(self, view: str) -> int:
        """Bytes that the files of a view have; what a killed process left half-written is removed."""
        whole = 0
        for path in (self.folder / view).rglob("*"):
            if path.name.startswith(WRITING):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink(missing_ok=True)
            elif path.suffix == SUFFIX:
                whole += path.stat().st_size
        return whole

    def path(self, view: str, name: str) -> Path:
        """Where the view of an image lies; two letters a folder, for a folder of a million files is slow."""
        return self.folder / view / name[:2] / f"{name}{SUFFIX}"

    def _read(self, view: str, name: str) -> Features | None:
        path = self.path(view, name)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            if said["key"] != self._key(view, name) or said["crc"] != checksum(tensors):
                return None
            return Features(tensors.get("summary"), tensors["spatial"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None

    def _write(self, view: str, name: str, made: Features) -> None:
        if not self._writes:
            return
        path = self.path(view, name)
        temporary = path.parent / f"{WRITING}{os.getpid()}-{secrets.token_hex(4)}"
        tensors = {key: value for key, value in made._asdict().items() if value is not None}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, {"key": self._key(view, name), "crc": checksum(tensors)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:  # a full disk must not end a training that can do without
            self._writes = False
            print(f"teacher views are no longer kept in {self.folder}: {error}", file=sys.stderr)
            temporary.unlink(missing_ok=True)

    def _key(self, view: str, name: str) -> str:
        return f"{self.identity} {view} {name}"


class CachedBackbone(FrozenBackbone):
    """A frozen teacher with a cache of its views; called directly it looks as always."""

    def __init__(self, backbone: Backbone, dtype: torch.dtype | None, chunk: int, folder: Path, node: Any) -> None:
        super().__init__(backbone, dtype, chunk)
        decides = {"digest": backbone.spec.digest, "node": node, "dtype": str(dtype), "chunk": chunk}
        self.cache = ViewCache(folder, decides | {"torch": torch.__version__})


def through_cache(teacher: Backbone, view: str, images: Tensor, make: Callable[[], Features]) -> Features:
    """What `make` gives, or what the teacher's cache has of it."""
    if not isinstance(teacher, CachedBackbone):
        return make()
    return teacher.cache.recall(f"{view} {images.device.type}", images, make)


def image_digest(image: Tensor) -> str:
    """Of the pixels [3, H, W] as they are, and their shape."""
    digest = hashlib.blake2b(str((tuple(image.shape), image.dtype)).encode(), digest_size=20)
    digest.update(image.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names and numbers."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].numpy().tobytes(), zlib.crc32(name.encode(), found))
    return str(found)


def one_of(features: Features, index: int) -> Features:
    """Of one image, on the CPU."""
    summary = None if features.summary is None else features.summary[index].detach().cpu().clone()
    return Features(summary, features.spatial[index].detach().cpu().clone(memory_format=torch.contiguous_format))


def stacked(features: list[Features], device: torch.device) -> Features:
    """A batch of single images' features."""
    summaries = [each.summary for each in features if each.summary is not None]
    return Features(
        torch.stack(summaries).to(device) if summaries else None,
        torch.stack([each.spatial for each in features]).to(device),
    )


def small_name(size: tuple[int, int]) -> str:
    """Name of a teacher's view of a whole image at `size` pixels."""
    return f"small {size[0]}x{size[1]}"


def tiles_name(n: int) -> str:
    """Name of a teacher's view of n x n tiles."""
    return f"tiles {n}x{n}"
