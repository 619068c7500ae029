"""Small real image files, tar shards and data sets for the tests of the streams."""

import io
import tarfile
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3] of one grey value: the image says which one it is."""
    return np.full((height, width, 3), value, dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(root: Path, count: int) -> Path:
    """`count` flat PNGs, number i of grey value i, half of them in a subfolder."""
    (root / "sub").mkdir(parents=True)
    for i in range(count):
        (root / ("sub" if i % 2 else ".") / f"{i:03d}.png").write_bytes(encode(flat(i)))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def image_set(files: list[bytes]) -> Dataset:
    """A Hugging Face data set with the columns `picture` and `label`."""
    features = Features({"picture": ImageFeature(), "label": Value("int64")})
    rows = {"picture": [{"bytes": data, "path": None} for data in files], "label": list(range(len(files)))}
    return Dataset.from_dict(rows, features=features)


def save_parquet(folder: Path, files: list[bytes], shards: int) -> Path:
    """A data set as the Hub stores it: parquet shards, here of small row groups."""
    (folder / "data").mkdir(parents=True)
    whole = image_set(files)
    for shard in range(shards):
        path = folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
        whole.shard(shards, shard, contiguous=True).to_parquet(str(path), batch_size=3)
    return folder
