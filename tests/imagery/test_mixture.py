"""Several sources with weights: the counts are the weights', and split, resuming and threads change nothing."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from image_files import encode, flat, save_parquet, write_folder, write_tar

from common.errors import UserError
from imagery.augment import PLAIN
from imagery.mixture import BLOCK, Mixture
from imagery.sources import open_sources
from imagery.stream import ImageStream

WEIGHTS = (7.0, 2.0, 1.0)


@pytest.fixture
def mixture(tmp_path: Path, hub_cache: Path) -> Mixture:
    """A tar of values 0-9, a folder of 0-4 in 16 px, and a stream of values from 200 on."""
    write_tar(tmp_path / "a.tar", {f"{i}.png": encode(flat(i)) for i in range(10)})
    write_folder(tmp_path / "b", 5)
    save_parquet(tmp_path / "c", [encode(flat(200 + value)) for value in range(7)], shards=2)
    specs = (f"webdataset:{tmp_path}/a.tar", f"imagefolder:{tmp_path}/b", f"hf:{tmp_path}/c?streaming=true&window=3")
    made = open_sources(dict(zip(specs, WEIGHTS, strict=True)))
    assert isinstance(made, Mixture)
    return made


def stream(source: Mixture, batch_size: int, **options: int) -> ImageStream:
    return ImageStream(source, batch_size=batch_size, height=8, width=8, seed=5, augment=PLAIN, **options)


def take(images: ImageStream, count: int) -> list[str]:
    found = [key for _ in range(count) for key in next(images).keys]
    images.close()
    return found


def kind(key: str) -> str:
    return "a" if key.startswith("a.tar") else "c" if "[shard" in key else "b"


def test_each_source_comes_as_often_as_its_weight_says(mixture: Mixture) -> None:
    blocks = [mixture.plan(block, 5) for block in range(40)]
    counts = Counter(source for block in blocks for source, _ in block)
    for source, weight in enumerate(WEIGHTS):
        assert abs(counts[source] - 40 * BLOCK * weight / 10) <= 1
        inside = [place for block in blocks for which, place in block if which == source]
        assert inside == list(range(len(inside)))  # no image of a source is stepped over or repeated
    assert len({tuple(source for source, _ in block) for block in blocks}) == 40


def test_every_source_goes_through_its_epochs(mixture: Mixture) -> None:
    keys = take(stream(mixture, 10), 30)
    for name, count in (("a", 10), ("b", 5), ("c", 7)):
        own = [key for key in keys if kind(key) == name]
        for first in range(0, len(own) - count + 1, count):
            assert len(set(own[first : first + count])) == count


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_threads_and_resuming_change_nothing(mixture: Mixture, workers: int) -> None:
    whole = take(stream(mixture, 6), 60)  # past the end of a block
    shares = [take(stream(mixture, 3, rank=rank, world=2, workers=workers), 60) for rank in range(2)]
    joined = [key for step in range(60) for share in shares for key in share[3 * step : 3 * step + 3]]
    assert joined == whole
    for stop in (1, 7, 44):
        first = stream(mixture, 3, rank=1, world=2, workers=workers)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.state_dict()))
        first.close()
        second = stream(mixture, 6, workers=workers)  # of one process, from the state of a rank of two
        second.load_state_dict(state)
        assert take(second, 60 - stop) == whole[6 * stop :]


def test_a_single_source_stays_what_it_was(tmp_path: Path) -> None:
    spec = f"imagefolder:{write_folder(tmp_path / 'b', 5)}"
    source = open_sources(spec)
    assert not isinstance(source, Mixture)
    one = ImageStream(source, batch_size=4, height=8, width=8, seed=5, augment=PLAIN)
    assert next(one).positions.tolist() == [0, 1, 2, 3]


def test_other_weights_do_not_go_on(mixture: Mixture) -> None:
    state = stream(mixture, 6).state_dict()
    names = [f"s{index}" for index in range(3)]
    other = Mixture(dict(zip(names, mixture.sources, strict=True)), dict(zip(names, (1.0, 1.0, 1.0), strict=True)))
    with pytest.raises(UserError, match="made with other images: fingerprint"):
        stream(other, 6).load_state_dict(state)
    for weight in (0.0, -1.0, float("inf")):
        with pytest.raises(UserError, match="weight of s0 is a number above 0"):
            Mixture({"s0": mixture.sources[0]}, {"s0": weight})


def test_images_come_from_where_the_key_says(mixture: Mixture) -> None:
    images = stream(mixture, 32)
    batch = next(images)
    values = batch.images[:, 0, 0, 0]
    streamed = torch.tensor([kind(key) == "c" for key in batch.keys])
    assert bool(((values >= 200) == streamed).all())
    images.close()
