"""Pickles of published data sets, read without running anything: plain containers and numpy arrays, nothing else."""

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def read_pickle(path: Path) -> Any:
    """Lists, dicts, texts, numbers and arrays of a pickle file (gzipped or not); UserError for anything else."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(
            f"{path} is no pickle of plain data ({error}); nothing in it was run. Fetch it again"
        ) from error


def array_of(data: dict[str, Any], key: str, path: Path) -> np.ndarray:
    """A named array of a pickled dict; UserError where it is missing."""
    if not isinstance(data, dict) or key not in data:
        raise UserError(f'{path} has no "{key}"')
    return np.asarray(data[key])
