"""Extracted features on disk: a batch is computed once for the same weights, images and size, whoever asks again.

A run that was interrupted goes on where it stopped, because every batch is a file of its own, complete or not there.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
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

    def part(
        self, images: str, what: str, batch: int, number: int, make: Callable[[], dict[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Batch `number` of a set of images, from disk, else from `make` and then written."""
        path = self._path(images, what, batch, number)
        if path.is_file():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                path.unlink(missing_ok=True)  # damaged: computed again
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part.")
        os.close(handle)
        try:
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return found

    def _path(self, images: str, what: str, batch: int, number: int) -> Path:
        """`images` is a source's key: content, size and fit; the batch size decides what a number means."""
        digest = hashlib.sha256("|".join((self._spec, images, what, str(batch))).encode()).hexdigest()[:32]
        return self._folder / digest / f"{number:06d}.safetensors"
