"""How a result was made: digests that say whether two results can be compared, and the settings that explain them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.digests import digest_file, digest_value, short
from common.recipes import Node
from eval_suite.made_by import Digest, MadeBy, TaskDetails

#: raised by hand in every commit after which a probe, a metric or a reader gives other numbers
PROBES_REVISION = 4
READ_WHOLE = 2 << 30  #: bytes of a set's image files up to which their content is digested, not only name and size
LABELS_AT_A_TIME = 64


def program() -> str:
    """The version of this program, as far as numbers hang on it."""
    try:
        return f"{version('agglomerate')}, probes {PROBES_REVISION}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return f"source, probes {PROBES_REVISION}"


def contents_of(data: Any, kind: str, split: str, labels: Sequence[str]) -> dict[str, Digest]:
    """Digests of the images and of the labels that a probe reads, by what to call them.

    `kind` is the method of the data that is asked, as in `Need`. Functions (masks that are decoded when asked for, the
    geometry of pairs) are not called: boxes, areas and points beside them stand for them.
    """
    return digests_of(getattr(data, kind)(split), f"{split} {kind}", labels)


def digests_of(found: Any, title: str, labels: Sequence[str]) -> dict[str, Digest]:
    """`contents_of` for what the data answered already (ClassifiedImages, DenseImages, ...)."""
    out: dict[str, Digest] = {}
    rest = hashlib.sha256()
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if _is_source(value):
            out[f"{title}: {field.name}"] = short(digest_value(images_digest(value)))
        elif field.name == "maps":
            for name in labels or sorted(value):
                out[f"{title}: {name}"] = short(maps_digest(found.labels(name), len(found.rows)))
        else:
            rest.update(field.name.encode())
            _feed(rest, value)
    return out | {f"{title}: labels": rest.hexdigest()[:16]}


def _is_source(value: Any) -> bool:
    return hasattr(value, "read") and hasattr(value, "key")


def _feed(digest: Any, value: Any) -> None:
    """Plain values, tensors by their bytes, sequences, mappings and dataclasses of them."""
    if isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(value.numpy() if isinstance(value, Tensor) else value)
        digest.update(str((array.dtype, array.shape)).encode())
        digest.update(array.data)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(repr(key).encode())
            _feed(digest, item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _feed(digest, getattr(value, field.name))
    elif isinstance(value, str) or not isinstance(value, Sequence):
        digest.update(b"function" if callable(value) else repr(value).encode("utf-8", "surrogatepass"))
    else:
        digest.update(str(len(value)).encode())
        for item in value:
            _feed(digest, item)


def images_digest(images: Any) -> str:
    """Of a source of images: files by name, size and, up to `READ_WHOLE` bytes in all, content; arrays by content;
    others by their key."""
    if not hasattr(images, "files"):
        return maps_digest(images.array, len(images)) if hasattr(images, "array") else str(images.key)
    sizes = [path.stat().st_size for path in images.files]
    whole = sum(sizes) <= READ_WHOLE
    named = [
        (path.name, size, digest_file(path) if whole else "") for path, size in zip(images.files, sizes, strict=True)
    ]
    return digest_value([named, repr(images.fit), repr(images.crops)])


def maps_digest(maps: Any, count: int) -> str:
    """Of label maps `maps[rows]`, read once as the probes see them."""
    digest = hashlib.sha256()
    for rows in torch.arange(count).split(LABELS_AT_A_TIME):
        _feed(digest, maps[rows])
    return digest.hexdigest()


def details_of(probe: Any, reader: Node, contents: Mapping[str, Digest]) -> TaskDetails:
    """What a task of a suite hangs on beside the backbone."""
    options = probe.model_dump(mode="json", exclude={"name", "group", "data"}) | probe.shared_options()
    return TaskDetails(
        options=options, reader=reader.model_dump(mode="json", exclude={"root"}), contents=dict(contents)
    )


def made_by(details: TaskDetails, backbone: Digest, dtype: str) -> MadeBy:
    """The digests of a task on one backbone, whose products are computed in `dtype`."""
    return MadeBy(
        protocol=short(digest_value(details.options)),
        data=short(digest_value(details.contents)),
        backbone=short(backbone),
        program=program(),
        dtype=dtype,
    )
