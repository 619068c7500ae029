"""Which images a source holds is told by content: data may move, and may not be replaced."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, flat, image_set, save_parquet, write_tar

from common.errors import UserError
from imagery.augment import PLAIN
from imagery.sources import open_source, open_sources
from imagery.stream import ImageStream

pytestmark = pytest.mark.usefixtures("hub_cache")


def bitmaps(first: int, count: int = 9) -> dict[str, bytes]:
    """Of equal size whatever they show."""
    return {f"{i}.bmp": encode(flat((first + i) % 256), "BMP") for i in range(count)}


def folder(place: Path, files: dict[str, bytes]) -> str:
    place.mkdir(parents=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    return f"imagefolder:{place}"


def shards(place: Path, files: dict[str, bytes]) -> str:
    place.mkdir(parents=True)
    write_tar(place / "a.tar", dict(list(files.items())[:4]))
    write_tar(place / "b.tar", dict(list(files.items())[4:]))
    return f"webdataset:{place}"


def saved(place: Path, files: dict[str, bytes]) -> str:
    image_set(list(files.values())).save_to_disk(str(place))
    return f"hf:{place}"


def streamed(place: Path, files: dict[str, bytes]) -> str:
    return f"hf:{save_parquet(place, list(files.values()), 3)}?streaming=true"


FORMS = [folder, shards, saved, streamed]


def stream(spec: str | dict[str, float]) -> ImageStream:
    return ImageStream(open_sources(spec), batch_size=2, height=8, width=8, seed=1, augment=PLAIN)


@pytest.mark.parametrize("form", FORMS)
def test_moved_data_go_on_and_replaced_data_do_not(
    form: Callable[[Path, dict[str, bytes]], str], tmp_path: Path
) -> None:
    spec = form(tmp_path / "here", bitmaps(10))
    before = stream(spec)
    next(before)
    moved, replaced = form(tmp_path / "there" / "x", bitmaps(10)), form(tmp_path / "other", bitmaps(100))
    after = stream(moved)
    after.load_state_dict(before.state_dict())
    assert torch.equal(next(after).images, next(before).images)
    with pytest.raises(UserError, match="made with other images"):
        stream(replaced).load_state_dict(before.state_dict())
    mixture = stream({spec: 0.5, "scenes:seed=1,count=4,size=8": 0.5}).state_dict()
    stream({moved: 0.5, "scenes:seed=1,count=4,size=8": 0.5}).load_state_dict(mixture)
    with pytest.raises(UserError, match="made with other images"):
        stream({replaced: 0.5, "scenes:seed=1,count=4,size=8": 0.5}).load_state_dict(mixture)


@pytest.mark.parametrize("form", FORMS[:3])
def test_one_image_of_another_size_or_name_is_noticed(
    form: Callable[[Path, dict[str, bytes]], str], tmp_path: Path
) -> None:
    files = bitmaps(10, 300)  # more than are sampled
    before = open_source(form(tmp_path / "a", files)).fingerprint
    files["257.bmp"] = encode(flat(1, 8, 9), "BMP")
    assert open_source(form(tmp_path / "b", files)).fingerprint != before
    if form is not saved:  # rows have no names
        files = {("new.bmp" if name == "257.bmp" else name): data for name, data in bitmaps(10, 300).items()}
        assert open_source(form(tmp_path / "c", files)).fingerprint != before


def test_a_checkpoint_of_before_is_told_apart_in_words(tmp_path: Path) -> None:
    images = stream(folder(tmp_path / "a", bitmaps(1)))
    state = images.state_dict() | {"fingerprint": "0" * 64}
    with pytest.raises(
        UserError, match=r"knew images by name alone, .* finish the run with that version, or start a new"
    ):
        images.load_state_dict(state)


def test_large_images_are_sampled_not_read(tmp_path: Path) -> None:
    big = encode(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8), "BMP")
    source = open_source(folder(tmp_path / "a", {f"{i}.bmp": big for i in range(3)}))
    changed = bytearray(big)
    changed[60:] = bytes(len(big) - 60)
    for i in range(3):
        (tmp_path / "a" / f"{i}.bmp").write_bytes(changed)
    assert open_source(f"imagefolder:{tmp_path / 'a'}").fingerprint != source.fingerprint
