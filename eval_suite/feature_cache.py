"""Extracted features on disk: a batch is computed once for the same weights, images and size, whoever asks again.

A run that was interrupted goes on where it stopped, because every batch is a file of its own, complete or not there.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teachers.contracts import BackboneSpec


class FeatureCache:
    """Batches of one backbone under a folder; the backbone is known by all of its spec, weights digest included."""

    def __init__(self, folder: Path, spec: BackboneSpec) -> None:
        self._folder = folder
        self._spec = json.dumps(spec.to_dict(), sort_keys=True, default=str)

    def part(self, images: str, what: str, batch: int, number: int) -> "CachePart":
        """Where batch `number` of a set of images is or will be. `images` is a source's key: content, size and fit."""
        digest = hashlib.sha256("|".join((self._spec, images, what, str(batch))).encode()).hexdigest()[:32]
        return CachePart(self._folder / digest / f"{number:06d}.safetensors")


@dataclass(frozen=True)
class CachePart:
    """One batch on disk, complete or not there."""

    path: Path

    def exists(self) -> bool:
        return self.path.is_file()

    def get(self, make: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """The batch from disk, else from `make` and then written."""
        if self.exists():
            try:
                return load_file(self.path)
            except (SafetensorError, OSError):
                self.path.unlink(missing_ok=True)  # damaged: computed again
        found = make()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".part.")
        os.close(handle)
        try:
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary)
            os.replace(temporary, self.path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return found
