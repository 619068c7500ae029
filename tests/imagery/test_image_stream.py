"""The stream's promises: order, split, resume and replacement are exact, and do not depend on threads."""

import io
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encode, flat, save_parquet, write_folder, write_tar
from PIL import Image

from common.errors import UserError
from imagery.augment import PLAIN, Augment
from imagery.contracts import SequentialSource, Source
from imagery.crop import decode_crop
from imagery.sources import open_source
from imagery.stream import Batch, ImageStream, to_float

AUGMENT = Augment(zoom=(1, 2), aspect=(0.75, 4 / 3), hflip=0.5)


def noise_folder(root: Path, count: int = 10) -> Path:
    root.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 28, 3), dtype=np.uint8)
        (root / f"{i}.png").write_bytes(encode(pixels))
    return root


@pytest.fixture(params=["folder", "tar", "hub", "hub stream"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source | SequentialSource:
    """The same ten images, two of them damaged, in each kind of place."""
    folder = noise_folder(tmp_path / "images")
    for i in (2, 5):
        path = folder / f"{i}.png"
        path.write_bytes(path.read_bytes()[:200])
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    if request.param == "folder":
        return open_source(f"imagefolder:{folder}")
    if request.param == "tar":
        write_tar(tmp_path / "a.tar", dict(list(files.items())[:4]))
        write_tar(tmp_path / "b.tar", dict(list(files.items())[4:]))
        return open_source(f"webdataset:{tmp_path}/{{a,b}}.tar")
    request.getfixturevalue("hub_cache")
    save_parquet(tmp_path / "set", list(files.values()), shards=2)
    return open_source(f"hf:{tmp_path}/set" + ("?streaming=true&window=4" if request.param == "hub stream" else ""))


def stream(source: Source | SequentialSource, batch_size: int = 4, **options: object) -> ImageStream:
    settings = {"height": 8, "width": 12, "seed": 1, "augment": AUGMENT, "max_bad_share": 0.6} | options
    return ImageStream(source, batch_size=batch_size, **settings)


def take(images: ImageStream, count: int) -> list[Batch]:
    batches = [next(images) for _ in range(count)]
    images.close()
    return batches


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.positions, b.positions) and torch.equal(a.images, b.images)


def test_a_batch_is_what_is_promised(source: Source | SequentialSource) -> None:
    batch = next(stream(source))
    assert batch.images.shape == (4, 3, 8, 12) and batch.images.dtype == torch.uint8
    assert batch.positions.tolist() == [0, 1, 2, 3] and batch.positions.dtype == torch.int64
    values = to_float(batch.images)
    assert values.dtype == torch.float32 and 0 <= values.min() < 0.2 and 0.8 < values.max() <= 1


def test_two_and_three_ranks_are_one_process(source: Source | SequentialSource) -> None:
    whole = take(stream(source, 6), 5)
    for world in (2, 3):
        ranks = [take(stream(source, 6 // world, rank=rank, world=world), 5) for rank in range(world)]
        joined = [
            Batch(
                torch.cat([part.images for part in parts]),
                torch.cat([part.positions for part in parts]),
                [key for part in parts for key in part.keys],
            )
            for parts in zip(*ranks, strict=True)
        ]
        assert_same(whole, joined)


def test_a_rank_decodes_its_own_images_only(source: Source | SequentialSource, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counted(data: bytes, *options: Any) -> np.ndarray:
        decoded.append(data)
        return decode_crop(data, *options)

    monkeypatch.setattr("imagery.augment.decode_crop", counted)
    images = stream(source, 2, rank=1, world=4)
    take(images, 6)
    assert len(decoded) == images.report()["read"] == 12 + images.report()["bad"]


def test_threads_change_nothing(source: Source | SequentialSource) -> None:
    slow, fast = stream(source), stream(source, workers=3)
    assert_same(take(slow, 8), take(fast, 8))
    assert slow.report() == fast.report()


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_threads_of_ours_start_none_of_torch(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    (tmp_path / "0.jpg").write_bytes(encode(pixels, "JPEG"))
    before, torch_threads = threading.active_count(), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        images = stream(open_source(f"imagefolder:{tmp_path}"), workers=1, height=200, width=300)
        torch.ones(1_000_000).add_(1)  # this thread may have a team
        threads = len(os.listdir("/proc/self/task"))
        next(images)
        assert len(os.listdir("/proc/self/task")) <= threads + 1 and torch.get_num_threads() == 4
        images.close()
    finally:
        torch.set_num_threads(torch_threads)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 8])
def test_resume_is_equality(source: Source | SequentialSource, workers: int, stop: int) -> None:
    whole_stream = stream(source)
    whole = take(whole_stream, 12)
    first = stream(source, workers=workers)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))  # taken while later batches are being made
    first.close()
    second = stream(source, workers=workers)
    take(second, 2)  # what it did before must not matter
    second.load_state_dict(state)
    assert_same(whole[stop:], take(second, 12 - stop))
    assert second.report() == whole_stream.report()


def test_resume_on_another_number_of_ranks(source: Source | SequentialSource) -> None:
    whole = take(stream(source, 4), 6)
    first = stream(source, 2, rank=0, world=2)
    take(first, 3)
    for rank in (0, 1):
        second = stream(source, 2, rank=rank, world=2)
        second.load_state_dict(first.state_dict())
        for expected, got in zip(whole[3:], take(second, 3), strict=True):
            assert torch.equal(expected.images[rank * 2 : rank * 2 + 2], got.images)
    alone = stream(source, 4)
    alone.load_state_dict(first.state_dict())
    assert_same(whole[3:], take(alone, 3))


def test_the_state_is_that_of_the_batches_given_out(tmp_path: Path) -> None:
    images = stream(open_source(f"imagefolder:{noise_folder(tmp_path / 'a')}"), workers=2)
    assert images.state_dict()["position"] == 0
    for step, _ in zip(range(1, 4), images, strict=False):
        assert images.state_dict()["position"] == 4 * step  # though later ones are already being made
    images.close()


def test_another_loop_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    images = stream(open_source(f"imagefolder:{noise_folder(tmp_path / 'a')}"))
    for batch in images:
        assert batch.positions[0] == 0
        break
    for batch in images:
        assert batch.positions[0] == 4
        break


def test_an_epoch_shows_every_image_once(tmp_path: Path) -> None:
    source = open_source(f"imagefolder:{write_folder(tmp_path / 'a', 12)}")
    batches = take(stream(source, augment=PLAIN), 6)
    epochs = [[int(value) for batch in batches[i : i + 3] for value in batch.images[:, 0, 0, 0]] for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1] and epochs[0] != list(range(12))
    ordered = take(stream(source, augment=PLAIN, shuffle=False), 4)
    assert [key for batch in ordered for key in batch.keys] == [source.key(i % 12) for i in range(16)]


def test_a_stream_in_sequence_shuffles_every_window_anew(tmp_path: Path, hub_cache: Path) -> None:
    save_parquet(tmp_path / "set", [encode(flat(value)) for value in range(32)], shards=1)
    source = open_source(f"hf:{tmp_path}/set?streaming=true&window=8")
    windows = [batch.images[:, 0, 0, 0].numpy() % 8 for batch in take(stream(source, 8, augment=PLAIN), 8)]
    assert all(sorted(window) == list(range(8)) for window in windows)
    assert len({tuple(window) for window in windows}) == 8  # over two epochs: 8! orders, so no two alike by chance
    ordered = take(stream(source, 8, augment=PLAIN, shuffle=False), 4)
    assert [int(value) for batch in ordered for value in batch.images[:, 0, 0, 0]] == list(range(32))


def test_bad_images_are_replaced_counted_and_named(source: Source | SequentialSource) -> None:
    images = stream(source, 5)
    batches = take(images, 4)  # two epochs of ten: each of the two bad ones comes up at least twice
    report = images.report()
    bad_keys = set(report["bad_keys"])
    assert len(bad_keys) == 2 and all(report["bad_reasons"].values())
    assert report["bad"] >= 4 and report["read"] == 20 + report["bad"]
    assert not bad_keys & {key for batch in batches for key in batch.keys}


def test_too_many_bad_images_are_an_error_that_names_some(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 20)
    for name in ("000.png", "002.png", "004.png"):
        (folder / name).write_bytes(b"broken")
    source = open_source(f"imagefolder:{folder}")
    with pytest.raises(UserError, match=r"bad, more than 5% \(max_bad_share\), e\.g\. 00[024]\.png \(Unid"):
        take(stream(source, max_bad_share=0.05), 60)
    assert len(take(stream(source, max_bad_share=0.3), 60)) == 60


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_bad_images_ends(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    images = stream(open_source(f"imagefolder:{tmp_path}"), workers=workers)
    for _ in range(2):  # asking again does not step over the failure
        with pytest.raises(
            UserError, match=r"no image could be read in 32 tries, among them 1 different one, e\.g\. .*a\.png"
        ):
            next(images)
    assert images.state_dict()["position"] == 0
    images.close()


def test_too_much_damage_to_shards_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{i}.png": encode(flat(i)) for i in range(4)})
    (tmp_path / "b.tar").write_bytes(os.urandom(10_000))
    source = open_source(f"webdataset:{tmp_path}")
    with pytest.raises(UserError, match=r"unreadable, e\.g\. b\.tar: damaged at byte 0"):
        stream(source, max_bad_share=0.05)
    images = stream(source, max_bad_share=0.9)
    take(images, 1)
    assert images.report()["problems"] == source.problems


def test_other_images_than_those_of_the_checkpoint_are_refused(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "a")
    state = stream(open_source(f"imagefolder:{folder}")).state_dict()
    (folder / "more.png").write_bytes(encode(flat(0)))
    with pytest.raises(UserError, match="made with other images: fingerprint"):
        stream(open_source(f"imagefolder:{folder}")).load_state_dict(state)
    with pytest.raises(UserError, match="seed was 1 and is 2"):
        stream(open_source(f"imagefolder:{folder}"), seed=2).load_state_dict(state)


def test_a_real_jpeg_among_others(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    images = stream(open_source(f"imagefolder:{tmp_path}"))
    assert set(next(images).keys) == {"a.jpg"} and images.report()["bad_keys"] == ["half.jpg"]


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"height": 0}, {"workers": -1}])
def test_impossible_settings(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(UserError, match="positive"):
        stream(open_source(f"imagefolder:{noise_folder(tmp_path / 'a', 1)}"), **settings)
