"""All that can be wrong with training data, at once: nothing crashes, nothing is silently repeated, all is counted."""

import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, flat, write_tar
from PIL import Image

from imagery.augment import PLAIN
from imagery.sources import open_source
from imagery.stream import ImageStream

GOOD, BAD, STEPS = 17, 4, 7  # 21 images that are found: an epoch is seven steps of three, over all ranks


def bomb() -> bytes:
    """A PNG of some dozen bytes that says it is 60 000 x 60 000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def shards(folder: Path) -> str:
    """A shard of strange images, an empty one, one of nothing, and one torn in the middle of a member."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    jpeg = encode(picture, "JPEG")
    frames = [Image.fromarray(flat(value)) for value in (10, 20, 30)]
    strange = {
        "0-corrupt.png": b"\x89PNG\r\n\x1a\n" + b"\x07" * 60,
        "1-cut.jpg": jpeg[: len(jpeg) // 2],
        "2-bomb.png": bomb(),
        "3-text.jpg": b"<html>404</html>",
        "4-cmyk.jpg": encode(picture.convert("CMYK"), "JPEG"),
        "5-wide.png": encode(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 200)),
        "6-animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "7-palette.png": encode(picture.convert("P")),
        "8-clear.png": encode(picture.convert("RGBA")),
    }
    folder.mkdir()
    write_tar(folder / "a.tar", strange | {f"{i:02d}.png": encode(flat(i)) for i in range(12)})
    write_tar(folder / "b.tar", {})
    (folder / "c.tar").write_bytes(b"")
    whole = write_tar(folder / "d.tar", {"torn.png": encode(flat(99, 64, 64)) + bytes(4000)}).read_bytes()
    (folder / "d.tar").write_bytes(whole[:2000])
    return f"webdataset:{folder}"


def stream(folder: str, rank: int, world: int, workers: int) -> ImageStream:
    settings = {"height": 8, "width": 8, "seed": 3, "augment": PLAIN, "max_bad_share": 0.9}
    return ImageStream(open_source(folder), batch_size=3 // world, rank=rank, world=world, workers=workers, **settings)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (3, 2)])
def test_an_epoch_of_strange_images(world: int, workers: int, tmp_path: Path) -> None:
    folder = shards(tmp_path / "set")
    readers = [stream(folder, rank, world, workers) for rank in range(world)]
    keys = [key for _ in range(STEPS) for reader in readers for key in next(reader).keys]
    reports = [reader.report() for reader in readers]
    for reader in readers:
        reader.close()
    bad = {key: reason for report in reports for key, reason in report["bad_reasons"].items()}
    assert {key.split(":")[1] for key in bad} == {"0-corrupt.png", "1-cut.jpg", "2-bomb.png", "3-text.jpg"}
    assert "pixels" in next(reason for key, reason in bad.items() if "bomb" in key)
    seen = Counter(keys)
    assert len(seen) == GOOD and not set(seen) & set(bad)  # every image that can be read is shown
    repeated, counted = sum(seen.values()) - GOOD, sum(report["bad"] for report in reports)
    assert repeated == BAD  # and only in the place of a bad one is an image shown again
    assert counted >= BAD and sum(report["read"] for report in reports) == len(keys) + counted
    empty, torn = reports[0]["problems"]
    assert (
        "c.tar: damaged at byte 0 (is empty)" in empty and "d.tar: damaged at byte 0 (is cut in the middle of" in torn
    )
    assert all(report["problems"] == [empty, torn] for report in reports)


def test_two_ranks_of_two_workers_are_one_process_and_resume(tmp_path: Path) -> None:
    folder = shards(tmp_path / "set")

    def both(readers: list[ImageStream], count: int) -> list[torch.Tensor]:
        return [torch.cat([next(reader).images for reader in readers]) for _ in range(count)]

    def reader(batch_size: int, rank: int, world: int) -> ImageStream:
        settings = {"height": 8, "width": 8, "seed": 3, "augment": PLAIN, "max_bad_share": 0.9}
        return ImageStream(open_source(folder), batch_size=batch_size, rank=rank, world=world, workers=2, **settings)

    alone = reader(4, 0, 1)
    whole = both([alone], 12)
    pair = [reader(2, rank, 2) for rank in range(2)]
    first = both(pair, 5)
    states = [json.loads(json.dumps(each.state_dict())) for each in pair]
    again = [reader(2, rank, 2) for rank in range(2)]
    for each, state in zip(again, states, strict=True):
        each.load_state_dict(state)
    found = first + both(again, 7)
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))
    assert sum(each.report()["bad"] for each in again) == alone.report()["bad"]  # counted on, not anew
    for each in (alone, *pair, *again):
        each.close()
