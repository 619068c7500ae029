"""Safetensors files, written whole; sharing of memory and devices are no concern of the file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from common.atomic import replacing_file


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Replace a safetensors file, whole or not at all. Raises OSError or SafetensorError when the disk will not."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing_file(path) as temporary:
        save_file(plain, temporary, None if metadata is None else dict(metadata))
