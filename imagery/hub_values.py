"""What a row of a Hugging Face data set holds, and how an image comes out of it.

The library's own image decoder is switched off: pixels come from `decode_image` like everywhere else, so that an
untrusted image meets the same limits and a bad one is the same `BadImage`.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from imagery.decode import BadImage, decode_image, read_file

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_SCHEMES = frozenset(("hf", "https", "zip", "tar", "gzip"))


def image_column(
    name: str, dataset: "Dataset | IterableDataset", column: str | None, row: dict[str, Any] | None = None
) -> str:
    """The column asked for, or the only one that holds images. UserError lists what there is."""
    from datasets import Image

    columns = dataset.column_names or list(row or {})
    if column is not None:
        if column not in columns:
            raise UserError(f'{name} has no column "{column}"; it has: {", ".join(columns)}')
        return column
    features = dataset.features or {}
    found = [candidate for candidate in columns if isinstance(features.get(candidate), Image)]
    if len(found) != 1:
        raise UserError(f"{name}: say which column holds the images (column=NAME); it has: {', '.join(columns)}")
    return found[0]


def undecoded(dataset: "Dataset | IterableDataset", column: str) -> "Dataset | IterableDataset":
    """Only the images, as the bytes or the path they are stored as."""
    from datasets import Image

    chosen = dataset.select_columns([column])
    is_image = isinstance((dataset.features or {}).get(column), Image)
    return chosen.cast_column(column, Image(decode=False)) if is_image else chosen


def stored_lengths(dataset: "Dataset", column: str) -> np.ndarray | None:
    """int64 [N], the bytes of every stored image, read without the images; None where the table has no such order."""
    import pyarrow
    import pyarrow.compute as compute

    if dataset._indices is not None:  # rows were chosen or shuffled: the table's order is not theirs
        return None
    values = dataset.data.column(column)
    if pyarrow.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        values = compute.struct_field(values, "bytes")
    try:
        lengths = compute.binary_length(values)
    except (TypeError, NotImplementedError, ValueError):  # a column of something else: its rows will say so
        return None
    return np.asarray(lengths.fill_null(-1).to_numpy(), np.int64)


def decode_value(value: Any) -> np.ndarray:
    """A stored image {"bytes": ..., "path": ...}, or plain bytes -> uint8 RGB [H, W, 3]; BadImage for all else."""
    return decode_image(content_of(value))


def content_of(value: Any) -> bytes:
    """The encoded file of a stored image; BadImage where there is none."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        raise BadImage(f"the column holds no image but {type(value).__name__}")
    if value["bytes"] is not None:
        return value["bytes"]
    if not value["path"]:
        raise BadImage("neither bytes nor a path")
    try:
        return _read(value["path"])
    except Exception as error:  # a file system of the library's choosing: hf://, zip://, https://, ...
        raise BadImage(f"{value['path']}: {error}") from error


def _read(path: str) -> bytes:
    """A path in a row comes from whoever made the data set: only plain files and the schemes the library writes."""
    if "://" not in path:
        return read_file(Path(path))
    schemes = {part.partition("://")[0] for part in path.split("::")}
    if not schemes <= _SCHEMES:
        raise BadImage(f"a path of kind {'::'.join(sorted(schemes))} is not read")
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


def digest_value(value: Any) -> bytes:
    """Of a stored image; a bad one counts as empty."""
    try:
        return hashlib.sha256(content_of(value)).digest()
    except BadImage:
        return hashlib.sha256(b"").digest()
