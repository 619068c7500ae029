"""Teachers' views on disk, so that a teacher looks once at what is shown more than once.

A view is kept under the teacher (its weights' digest and everything else that decides its answer) and the very pixels
it was shown, so a crop that differs in one bit is another image and a wrong view cannot be given back. Views of fp32
teachers come back bit for bit. One file of common/store.py an image and view.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.store import Store
from teachers.contracts import Backbone, Features
from teachers.frozen import FrozenBackbone


class ViewCache:
    """The views of one teacher below `folder`. identity: everything that decides what it answers, JSON-able."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.hits = self.misses = 0
        self._stores: dict[str, Store] = {}

    def recall(self, view: str, images: Tensor, make: Callable[[], Features]) -> Features:
        """The view of images [B, 3, H, W]: as kept where all of them are, else what `make` gives, which is then kept.

        A batch with one unknown image is made whole: fewer images at once may change the last bit.
        """
        store, keys = self._store(view), [{"image": image_digest(image)} for image in images]
        kept = [store.read(key) for key in keys]
        known = [Features(each.get("summary"), each["spatial"]) for each in kept if each is not None]
        if len(known) == len(keys):
            self.hits += len(keys)
            return stacked(known, images.device)
        made = make()
        self.misses += len(keys)
        for index, key in enumerate(keys):
            if kept[index] is None:
                store.write(key, one_of(made, index))
        return made

    def size_of(self, view: str) -> int:
        """Bytes that the files of a view have; what a killed process left half-written is removed."""
        return self._store(view).size()

    def _store(self, view: str) -> Store:
        return self._stores.setdefault(view, Store(self.folder, self.identity | {"view": view}))


class CachedBackbone(FrozenBackbone):
    """A frozen teacher with a cache of its views; called directly it looks as always."""

    def __init__(
        self, backbone: Backbone, dtype: torch.dtype | None, chunk: int, folder: Path, node: Any, *, compiled: bool
    ) -> None:
        super().__init__(backbone, dtype, chunk, compiled=compiled)
        decides = {"digest": backbone.spec.digest, "node": node, "dtype": str(dtype), "chunk": chunk}
        decides |= {"compiled": True} if compiled else {}
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


def one_of(features: Features, index: int) -> dict[str, Tensor]:
    """Of one image, by name."""
    return {name: value[index] for name, value in features._asdict().items() if value is not None}


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
