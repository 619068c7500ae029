"""Tar shards: found by pattern, read by index, and damage is survived, named and measured."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, flat, write_tar

from common.errors import UserError
from imagery.decode import BadImage
from imagery.patterns import expand_braces
from imagery.sources import open_source


def shard(path: Path, values: range) -> Path:
    members: dict[str, bytes] = {}
    for value in values:
        members[f"{value:04d}.png"] = encode(flat(value))
        members[f"{value:04d}.json"] = b"{}"
    return write_tar(path, members)


def test_images_of_several_shards_by_index(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"s-{number:03d}.tar", range(number * 4, number * 4 + 4))
    for pattern in ("s-{000..002}.tar", "s-*.tar", "", "s-00{0,1,2}.tar"):
        source = open_source(f"webdataset:{tmp_path}/{pattern}")
        assert [int(source.load(index)[0, 0, 0]) for index in range(len(source))] == list(range(12))
    assert source.key(5) == "s-001.tar:0005.png"
    assert source.problems == [] and source.lost_share == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    source.load(3)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}  # nothing extracted


def test_braces() -> None:
    assert expand_braces("a{08..10}-{x,y}") == ["a08-x", "a08-y", "a09-x", "a09-y", "a10-x", "a10-y"]
    assert expand_braces("plain") == ["plain"]
    # Neither a list nor a range.
    for literal in ("cat ${HOME}/a.tar", "awk '{print}'", "xargs -I{} cat {}"):
        assert expand_braces(literal) == [literal]
    for pattern in ("{0..99999999}", "{5..3}", "{0..999}{0..999}{0..999}"):
        with pytest.raises(UserError):
            expand_braces(pattern)


def test_empty_shards_are_fine(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(2))
    write_tar(tmp_path / "b.tar", {})
    shard(tmp_path / "d.tar", range(2, 4))
    source = open_source(f"webdataset:{tmp_path}")
    assert [int(source.load(index)[0, 0, 0]) for index in range(len(source))] == [0, 1, 2, 3]
    assert source.problems == []


def test_a_corrupt_member_is_a_bad_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": encode(flat(1)), "1.png": b"not an image", "2.png": encode(flat(3))})
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert len(source) == 3
    with pytest.raises(BadImage):
        source.load(1)
    np.testing.assert_array_equal(source.load(2), flat(3))


def test_a_truncated_shard_gives_what_is_whole(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{i}.png": encode(noise(i)) for i in range(4)}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: int(0.6 * len(whole))])
    source = open_source(f"webdataset:{tmp_path}")
    assert 1 <= len(source) < 4
    for index in range(len(source)):
        np.testing.assert_array_equal(source.load(index), noise(index))
    assert "a.tar: damaged at byte" in source.problems[0] and 0 < source.lost_share < 0.6


def test_a_damaged_header_costs_the_rest_of_its_shard_only(tmp_path: Path) -> None:
    data = bytearray(shard(tmp_path / "a.tar", range(6)).read_bytes())
    third = data.index(b"0003.png")
    data[third : third + 300] = os.urandom(300)
    (tmp_path / "a.tar").write_bytes(data)
    shard(tmp_path / "b.tar", range(10, 12))
    source = open_source(f"webdataset:{tmp_path}")
    assert [int(source.load(index)[0, 0, 0]) for index in range(len(source))] == [0, 1, 2, 10, 11]
    assert len(source.problems) == 1 and 0.1 < source.lost_share < 0.9


def test_a_shard_that_is_no_tar_is_a_problem(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(2))
    (tmp_path / "b.tar").write_bytes(b"<html>404 not found</html>" * 400)
    source = open_source(f"webdataset:{tmp_path}")
    assert len(source) == 2 and "b.tar: damaged at byte 0" in source.problems[0]
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"no images in the 1 shards .* b\.tar"):
        open_source(f"webdataset:{tmp_path}")


def test_hostile_members_do_nothing(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode(flat(7)))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"link{kind!r}.png")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        data = encode(flat(5))
        info = tarfile.TarInfo("../../escape.png")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert len(source) == 1 and source.load(0)[0, 0, 0] == 5
    assert not (tmp_path.parent.parent / "escape.png").exists()


def test_what_cannot_be_read_by_index_is_said(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", range(2))
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(tmp_path / "a.tar", "a.png")
    for pattern, words in (
        (f"{tmp_path}/z.tar", "gunzip"),
        (f"{tmp_path}/a.tar{{0..3}}", "no shard at"),
        ("ftp://host/{000..100}.tar", "not read; known: s3://"),
        (f"{tmp_path}/a.tar?pik=jpg", 'no option "pik"'),
        (f"{tmp_path}/a.tar?cache=/tmp", "go together"),
    ):
        with pytest.raises(UserError, match=words):
            open_source(f"webdataset:{pattern}")


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
