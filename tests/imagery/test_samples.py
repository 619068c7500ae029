"""Several pictures in a sample: masks never teach, and where nothing decides the user is asked."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, flat, write_tar
from PIL import Image

from common.errors import UserError
from imagery.sources import open_source, open_sources, summary


def make(kind: str, folder: Path, names: Iterable[str]) -> str:
    """A shard or a folder of these files -> its spec."""
    data = encode(flat(1))
    if kind == "webdataset":
        return f"webdataset:{write_tar(folder / 'a.tar', dict.fromkeys(names, data))}"
    for name in names:
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).write_bytes(data)
    return f"imagefolder:{folder / 'set'}"


def keys(spec: str) -> list[str]:
    source = open_source(spec)
    return [source.key(index).rpartition(":")[2] for index in range(len(source))]


@pytest.mark.parametrize("kind", ["webdataset", "imagefolder"])
def test_companions_are_left_out_of_the_whole_source_and_counted(kind: str, tmp_path: Path) -> None:
    # The photograph of sample 2 is missing: its mask is a mask all the same.
    spec = make(kind, tmp_path, ["0.jpg", "0.seg.png", "1.JPG", "1.seg.png", "2.seg.png"])
    assert keys(spec) == ["0.jpg", "1.JPG"]
    line = "3 left out: .seg.png pictures stand beside the images of samples (first: 0.seg.png)"
    assert open_source(spec).left_out.lines() == [line]
    assert any(line in said for said in summary(open_source(spec)))
    assert keys(f"{spec}?pick=seg.png") == ["0.seg.png", "1.seg.png", "2.seg.png"]
    assert len(keys(f"{spec}?pick=*")) == 5
    with pytest.raises(UserError, match=r"picks nothing; the pictures' extensions are: jpg, seg\.png"):
        open_source(f"{spec}?pick=jpeg")


@pytest.mark.parametrize("kind", ["webdataset", "imagefolder"])
def test_what_nothing_decides_is_asked(kind: str, tmp_path: Path) -> None:
    spec = make(kind, tmp_path, ["0.jpg", "0.png", "1.jpg"])
    with pytest.raises(UserError, match=r"several pictures \(0\.jpg and 0\.png\); say .*pick=jpg, or \?pick=\*"):
        open_source(spec)
    assert keys(f"{spec}?pick=jpg") == ["0.jpg", "1.jpg"]
    assert keys(f"{spec}?pick=jpg,png") == ["0.jpg", "0.png", "1.jpg"]


def test_pictures_of_other_samples_and_folders_are_no_companions(tmp_path: Path) -> None:
    assert keys(make("webdataset", tmp_path, ["a/0.jpg", "b/0.png", "c.seg.png"])) == [
        "a/0.jpg",
        "b/0.png",
        "c.seg.png",
    ]
    spec = make("imagefolder", tmp_path, ["Shot at 10.15.png", "Shot at 10.16.png"])  # names with dots
    assert len(keys(spec)) == 2
    with pytest.raises(UserError, match="several pictures"):
        open_source(make("webdataset", tmp_path, ["0.left.jpg", "0.right.jpg"]))


def test_pick_works_with_globs_and_mixtures(tmp_path: Path) -> None:
    make("webdataset", tmp_path, ["0.jpg", "0.png"])
    mixed = open_sources({f"webdataset:{tmp_path}/?.tar?pick=jpg": 1.0, "scenes:seed=1,count=4,size=8": 1.0})
    assert len(mixed.sources[0]) == 1 and len(summary(mixed)) == 3


def test_every_format_that_pillow_reads_is_read_and_others_are_counted(tmp_path: Path) -> None:
    picture = Image.fromarray(flat(90, 16, 16))
    for name, kind in (
        ("a.jfif", "JPEG"),
        ("b.jpe", "JPEG"),
        ("c.mpo", "MPO"),
        ("d.avif", "AVIF"),
        ("e.jp2", "JPEG2000"),
    ):
        picture.save(tmp_path / name, kind)
    for name in ("f.heic", "g.jxl", "notes.txt", ".hidden.png", "README"):
        (tmp_path / name).write_bytes(b"x")
    source = open_source(f"imagefolder:{tmp_path}")
    assert [source.key(index) for index in range(len(source))] == ["a.jfif", "b.jpe", "c.mpo", "d.avif", "e.jp2"]
    for index in range(len(source)):
        np.testing.assert_allclose(source.load(index), 90, atol=3)
    said = " ".join(source.left_out.lines())
    for words in (".heic pictures", ".jxl pictures", "convert them", ".txt files", "hidden files", "no ending"):
        assert words in said


def test_links_in_folders(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for folder in (root / "sub", elsewhere):
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(encode(flat(3)))
    (root / "file.png").symlink_to(elsewhere / "0.png")  # as a view of a store of blobs
    (root / "dead.png").symlink_to(tmp_path / "nothing.png")
    (root / "again").symlink_to(root / "sub")
    (root / "round").symlink_to(root)
    (root / "out").symlink_to(elsewhere)
    source = open_source(f"imagefolder:{root}")
    assert [source.key(index) for index in range(len(source))] == ["file.png", "sub/0.png"]
    said = " ".join(source.left_out.lines())
    assert "1 left out: links that lead nowhere" in said and "1 left out: links to folders elsewhere" in said
