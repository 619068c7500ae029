"""Photographs to crops: the way of full decodes against `imagery.crop`, in one run, by threads.

    python benchmarks/decoding.py                          photographs made up here
    python benchmarks/decoding.py --images FOLDER          JPEGs, or other pictures, which become JPEGs of quality 88

"full" is a full decode by Pillow, through numpy, and one resize by Pillow: what every image went through before.
Milliseconds are of the processor, which other programs on the machine disturb less than the clock; images a second and
core are 1000 / that. The wall's images a second are shown beside them for every number of threads.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import table

from imagery.augment import Augment
from imagery.decode import decode_image, is_image_name

Way = Callable[[bytes, int], np.ndarray]


def photographs(folder: Path | None, side: int, count: int) -> list[bytes]:
    """JPEGs whose longer side is `side`."""
    files = sorted(path for path in folder.rglob("*") if is_image_name(path.name))[:count] if folder else []
    pictures = [Image.fromarray(decode_image(path)) for path in files] or [made_up(seed) for seed in range(count)]
    found = []
    for seed, picture in enumerate(pictures):
        scale = side / max(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
        noise = np.random.default_rng(seed).normal(0, 3, (picture.height, picture.width, 1))  # as a camera's
        file = io.BytesIO()
        Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def made_up(seed: int) -> Image.Image:
    """Structure at every scale, 3:2."""
    chance, whole = np.random.default_rng(seed), np.zeros((1024, 1536, 3))
    for cell, weight in ((4, 0.1), (16, 0.2), (64, 0.3), (256, 0.4)):
        cells = chance.integers(0, 256, (1024 // cell, 1536 // cell, 3), dtype=np.uint8)
        whole += weight * np.asarray(Image.fromarray(cells).resize((1536, 1024), Image.Resampling.BICUBIC), float)
    return Image.fromarray(whole.astype(np.uint8))


def ways(augment: Augment, size: int) -> dict[str, Way]:
    """Name -> (file, position) -> uint8 [3, size, size]."""

    def full(data: bytes, position: int) -> np.ndarray:
        pixels = augment.apply(decode_image(data), size, size, seed=1, position=position)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def crop(data: bytes, position: int) -> np.ndarray:
        pixels = augment.apply(data, size, size, seed=1, position=position)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    return {"full": full, "crop": crop}


def measure(made: dict[str, Way], files: Sequence[bytes], threads: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Name -> (processor's milliseconds an image, the wall's images a second); the best of rounds that take turns."""
    found: dict[str, tuple[float, float]] = {}
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(rounds + 1):  # the first warms up
            for name, way in made.items():
                wall, cpu = time.perf_counter(), time.process_time()
                list(pool.map(way, files, range(len(files))))
                each = 1000 * (time.process_time() - cpu) / len(files)
                rate = len(files) / (time.perf_counter() - wall)
                if turn:
                    best = found.get(name, (each, rate))
                    found[name] = min(best[0], each), max(best[1], rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs; made up without it")
    parser.add_argument("--side", type=int, default=2048, help="longer side of the photographs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 512, 256], help="of the crops")
    parser.add_argument("--zoom", type=float, default=1.1, help="most zoom of the augmentation")
    parser.add_argument("--count", type=int, default=12, help="photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = photographs(options.images, options.side, options.count)
    augment = Augment(zoom=(1.0, options.zoom))
    rows: list[list[object]] = []
    for size in options.sizes:
        made = ways(augment, size)
        pairs = [(made["full"](data, place), made["crop"](data, place)) for place, data in enumerate(files)]
        apart = float(np.mean([np.abs(one.astype(int) - other).mean() for one, other in pairs]))
        for threads in options.threads:
            found = measure(made, files, threads, options.rounds)
            full, crop = found["full"], found["crop"]
            rows.append(
                [size, threads, full[0], crop[0], 1000 / crop[0], f"{full[0] / crop[0]:.2f}x", full[1], crop[1], apart]
            )
    mean = sum(map(len, files)) // len(files) // 1024
    print(f"{len(files)} JPEGs, {options.side} px, {mean} KiB each, zoom 1 to {options.zoom}\n")
    header = [
        "crop",
        "threads",
        "full ms",
        "crop ms",
        "crop/s a core",
        "faster",
        "full/s wall",
        "crop/s wall",
        "levels apart",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
