"""Hugging Face data sets: every local form, by index and streamed, with our own decoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from image_files import encode, flat, image_set, save_parquet

from common.errors import UserError
from imagery.contracts import SequentialSource
from imagery.decode import BadImage, decode_image
from imagery.hub_values import decode_value
from imagery.sources import open_source

pytestmark = pytest.mark.usefixtures("hub_cache")


def write_form(form: str, folder: Path, count: int = 12) -> str:
    """Write `count` flat images, number i of value i, in one of the local forms -> what to name after `hf:`."""
    files = [encode(flat(value)) for value in range(count)]
    if form == "saved":
        image_set(files).save_to_disk(str(folder / "set"))
    elif form == "saved dict":
        DatasetDict({"train": image_set(files), "test": image_set(files[:2])}).save_to_disk(str(folder / "set"))
    elif form == "parquet file":
        image_set(files).to_parquet(str(folder / "set.parquet"))
        return f"{folder}/set.parquet"
    elif form == "parquet folder":
        save_parquet(folder / "set", files, shards=3)
    else:
        (folder / "set").mkdir()
        for value, data in enumerate(files):
            (folder / "set" / f"{value:03d}.png").write_bytes(data)
    return f"{folder}/set"


FORMS = ["saved", "saved dict", "parquet file", "parquet folder", "image files"]


@pytest.mark.parametrize("form", FORMS)
def test_by_index(form: str, tmp_path: Path) -> None:
    source = open_source(f"hf:{write_form(form, tmp_path)}")
    assert [int(source.load(index)[0, 0, 0]) for index in range(len(source))] == list(range(12))
    assert source.load(3).shape == (8, 8, 3) and source.key(3).startswith("set") and "[3]" in source.key(3)


@pytest.mark.parametrize("form", FORMS)
def test_streamed_in_order_and_shuffled_and_resumed_anywhere(form: str, tmp_path: Path) -> None:
    source = open_source(f"hf:{write_form(form, tmp_path)}?streaming=true&window=4")
    assert isinstance(source, SequentialSource)

    def values(count: int, epoch: int = 0, *, shuffle: bool = False, state: dict | None = None) -> list[int]:
        items = source.open_epoch(epoch, 1, shuffle=shuffle, state=state).read(count)
        return [int(decode_image(item.read())[0, 0, 0]) for item in items]

    assert values(100) == list(range(12))
    orders = [values(100, epoch, shuffle=True) for epoch in range(6)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert (len(set(map(tuple, orders))) > 1) == (source._rows.num_shards > 1)  # shards come in another order
    for stop in range(13):
        reader = source.open_epoch(3, 1, shuffle=True, state=None)
        reader.read(stop)
        state = json.loads(json.dumps(reader.state()))
        assert values(100, 3, shuffle=True, state=state) == orders[3][stop:]


def test_reading_a_state_does_not_move_the_reader(tmp_path: Path) -> None:
    source = open_source(f"hf:{write_form('parquet folder', tmp_path)}?streaming=true")
    reader = source.open_epoch(0, 1, shuffle=False, state=None)
    seen = []
    for _ in range(12):
        assert reader.state() == reader.state()
        seen += [int(decode_image(item.read())[0, 0, 0]) for item in reader.read(1)]
    assert seen == list(range(12)) and reader.read(5) == []


def test_splits_and_columns(tmp_path: Path) -> None:
    name = write_form("saved dict", tmp_path)
    assert len(open_source(f"hf:{name}?split=test")) == 2
    assert len(open_source(f"hf:{name}?split=train&column=picture")) == 12
    for streaming in ("", "&streaming=true"):
        with pytest.raises(UserError, match='no split "val"; it has: train, test'):
            open_source(f"hf:{name}?split=val{streaming}")
        with pytest.raises(UserError, match='no column "image"; it has: picture, label'):
            open_source(f"hf:{name}?column=image{streaming}")


def test_which_column_must_be_said_when_it_is_not_clear(tmp_path: Path) -> None:
    Dataset.from_dict({"jpg": [encode(flat(5))] * 3, "n": [1, 2, 3]}).save_to_disk(str(tmp_path / "set"))
    for streaming in ("", "&streaming=true"):
        with pytest.raises(UserError, match=r"say which column .*: jpg, n"):
            open_source(f"hf:{tmp_path}/set?split=train{streaming}")
    np.testing.assert_array_equal(open_source(f"hf:{tmp_path}/set?column=jpg").load(2), flat(5))
    with pytest.raises(BadImage, match="holds no image but int"):
        open_source(f"hf:{tmp_path}/set?column=n").load(0)


def test_a_damaged_shard_stops_in_words(tmp_path: Path) -> None:
    shards = save_parquet(tmp_path / "set", [encode(flat(value)) for value in range(8)], 8) / "data"

    def damage(number: int) -> None:
        path = shards / f"train-{number:05d}-of-00008.parquet"
        path.write_bytes(path.read_bytes()[:100])

    damage(7)
    with pytest.raises(UserError, match="cannot open the data set"):
        open_source(f"hf:{tmp_path}/set")
    reader = open_source(f"hf:{tmp_path}/set?streaming=true").open_epoch(0, 1, shuffle=False, state=None)
    assert len(reader.read(7)) == 7
    with pytest.raises(UserError, match="reading stopped"):
        reader.read(1)
    damage(4)  # one of those whose first image is part of the identity: it is found at the start
    with pytest.raises(UserError, match="reading stopped"):
        open_source(f"hf:{tmp_path}/set?streaming=true")


@pytest.mark.parametrize("streaming", ["", "&streaming=true"])
def test_a_missing_data_set_is_a_user_error(streaming: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in (f"{tmp_path}/nothing", f"{tmp_path}/empty", f"{tmp_path}/nothing.parquet"):
        with pytest.raises(UserError, match=str(tmp_path)):
            open_source(f"hf:{name}?split=train{streaming}")
    image_set([]).to_parquet(str(tmp_path / "none.parquet"))
    with pytest.raises(UserError, match=r"no images|no data"):
        open_source(f"hf:{tmp_path}/none.parquet?split=train{streaming}")


def test_a_data_set_is_never_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    with pytest.raises(UserError):
        open_source(f"hf:{tmp_path}/evil")
    assert not trace.exists()


def test_the_fingerprint_follows_the_images(tmp_path: Path) -> None:
    names = []
    for number, count in enumerate((5, 5, 6)):
        (tmp_path / str(number)).mkdir()
        names.append(write_form("saved", tmp_path / str(number), count))
    for streaming in ("", "?streaming=true"):
        prints = [open_source(f"hf:{name}{streaming}").fingerprint for name in names]
        assert prints[0] == prints[1] != prints[2]


def test_paths_in_rows_are_not_followed_everywhere() -> None:
    for value in (
        {"bytes": None, "path": None},
        {"bytes": None, "path": "/dev/zero"},
        {"bytes": None, "path": "ssh://host/file.png"},
        {"bytes": None, "path": "zip://a.png::ftp://host/file.zip"},
        None,
        "text",
    ):
        with pytest.raises(BadImage):
            decode_value(value)
