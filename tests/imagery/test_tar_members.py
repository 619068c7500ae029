"""Tar headers of every kind: read as Python's tarfile reads them, in bounded memory, with an end that is seen."""

import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, flat, write_tar

from common.errors import UserError
from imagery.sources import open_source
from imagery.tar_members import Damage, Member, members


def walk(data: bytes) -> list[Member]:
    return list(members(lambda offset, size: data[offset : offset + size]))


def archive_of(entries: list[tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info in entries:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return file.getvalue()


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    return info


def values(spec: str) -> list[int]:
    source = open_source(spec)
    return [int(source.load(index)[0, 0, 0]) for index in range(len(source))]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_is_read_as_tarfile_reads_it(form: int) -> None:
    # USTAR has a prefix for long paths, GNU an extra member, pax a header of records; the last name is not ASCII.
    names = ["a.jpg", f"{'d' * 90}/{'e' * 60}.jpg", "bücher/ü.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names.append("x/" * 200 + "y.jpg")
    data = archive_of([entry(name, 700 * number) for number, name in enumerate(names)], form)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive]
    assert [(member.name, member.offset, member.size) for member in walk(data)] == expected
    assert [member.kind for member in walk(data)] == ["file"] * len(names)


def test_kinds_of_members() -> None:
    kinds = [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    found = walk(archive_of([entry("n", 0, kind, "t") for kind in kinds]))
    assert [member.kind for member in found] == ["file", "hard link", "symbolic link", "folder", "other", "other"]
    assert found[1].target == "t"
    sparse = entry("s.jpg", 10)
    sparse.pax_headers = {"GNU.sparse.major": "1"}
    assert walk(archive_of([sparse], tarfile.PAX_FORMAT))[0].kind == "sparse"


def test_archives_behind_one_another_are_all_read(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{i}.part", {f"{i}.png": encode(flat(i))}).read_bytes() for i in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    assert values(f"webdataset:{tmp_path}/all.tar") == [0, 1, 2]
    assert open_source(f"webdataset:{tmp_path}/all.tar").problems == []


def test_a_member_that_comes_twice_is_two_images(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{i}.part", {"0.png": encode(flat(i))}).read_bytes() for i in range(2)]
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    assert values(f"webdataset:{tmp_path}/all.tar?pick=*") == [0, 1]


def test_an_end_is_seen_not_inferred(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{i}.png": encode(flat(i)) for i in range(3)}).read_bytes()
    content = whole.rstrip(b"\0")
    aligned = content + bytes(-len(content) % 512)
    for cut in (content, aligned, aligned + bytes(512), aligned[:-512], whole[:700], b""):
        with pytest.raises(Damage):
            data = cut
            list(members(lambda offset, size, data=data: data[offset : offset + size]))
    assert len(walk(aligned + bytes(1024))) == 3
    (tmp_path / "a.tar").write_bytes(aligned)
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert len(source) == 3 and "without the mark of an end" in source.problems[0]


def test_links_inside_a_shard_are_images_and_others_are_counted(tmp_path: Path) -> None:
    data = encode(flat(7))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(entry("x/early.png", 0, tarfile.SYMTYPE, "../y/real.png"))  # before what it leads to
        archive.addfile(entry("y/real.png", len(data)), io.BytesIO(data))
        archive.addfile(entry("hard.png", 0, tarfile.LNKTYPE, "y/real.png"))
        archive.addfile(entry("chain.png", 0, tarfile.SYMTYPE, "hard.png"))
        for name, target in (("out.png", "../../etc/x.png"), ("gone.png", "nothing.png"), ("self.png", "self.png")):
            archive.addfile(entry(name, 0, tarfile.SYMTYPE, target))
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert [source.key(index).split(":")[1] for index in range(4)] == [
        "x/early.png",
        "y/real.png",
        "hard.png",
        "chain.png",
    ]
    assert values(f"webdataset:{tmp_path}/a.tar") == [7] * 4
    assert source.left_out.lines() == ["3 left out: links that lead to no file of their shard (first: out.png)"]


def test_headers_that_claim_gigabytes_cost_no_memory(tmp_path: Path) -> None:
    size = 6 * 2**30
    good = archive_of([entry("0.png", 10)])[:1024]
    for kind, name in ((tarfile.GNUTYPE_LONGNAME, "n"), (tarfile.XHDTYPE, "n"), (tarfile.REGTYPE, "huge.png")):
        header = entry(name, size, kind).tobuf(tarfile.GNU_FORMAT)
        with open(tmp_path / "a.tar", "wb") as file:  # 4 KiB on the disk, the rest is a hole
            file.write(good + header)
            file.truncate(1024 + 512 + size + 1024)
        tracemalloc.start()
        source = open_source(f"webdataset:{tmp_path}/a.tar")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(source) == 1 and peak < 50 * 2**20
        assert "6442450944 bytes" in "".join(source.problems) or "larger than" in source.left_out.lines()[0]
        (tmp_path / "a.tar.index").unlink()


def test_random_damage_is_damage(tmp_path: Path) -> None:
    data = archive_of([entry("x" * 300, 100), entry("b.jpg", 5000), entry("c.jpg", 1)], tarfile.PAX_FORMAT)
    chance = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in chance.integers(0, len(data), 8):
            damaged[place] = chance.integers(0, 256)
        try:
            walk(bytes(damaged))
        except Damage as damage:
            assert 0 <= damage.offset <= len(data)


def test_nothing_to_show_says_what_there_was(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.heic": b"x", "0.json": b"{}"})
    with pytest.raises(UserError, match=r"no images .*\.heic pictures, which are not read: convert"):
        open_source(f"webdataset:{tmp_path}/a.tar")
