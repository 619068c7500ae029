"""The index beside a shard: made once, true to the shard as it is, and shared by processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from image_files import encode, flat, write_tar

from common.errors import guard
from imagery.__main__ import main
from imagery.shard_files import LocalShard
from imagery.shard_index import index_shard
from imagery.shard_indices import cache_folder, indices_of, make
from imagery.sources import open_source


def shard(path: Path, count: int) -> Path:
    members = {f"{i}.png": encode(flat(i)) for i in range(count)} | {"a.seg.png": b"x", "a.png": b"y", "b.txt": b"z"}
    return write_tar(path, members)


def test_a_kept_index_says_what_a_new_one_says(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 4)
    path.write_bytes(path.read_bytes()[:-1024] + b"?" * 512)
    first, second = (open_source(f"webdataset:{path}") for _ in range(2))
    assert (tmp_path / "a.tar.index").is_file()
    for name in ("problems", "lost_share", "fingerprint"):
        assert getattr(first, name) == getattr(second, name)
    assert first.left_out.counts == second.left_out.counts
    assert [first.key(i) for i in range(len(first))] == [second.key(i) for i in range(len(second))]
    assert [first.read(i) for i in range(len(first))] == [second.read(i) for i in range(len(second))]


def test_a_changed_shard_and_a_damaged_index_make_a_new_one(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 3)
    assert len(open_source(f"webdataset:{path}")) == 4
    status = path.stat()
    shard(path, 3)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    before = (tmp_path / "a.tar.index").stat().st_mtime_ns
    open_source(f"webdataset:{path}")
    assert (tmp_path / "a.tar.index").stat().st_mtime_ns > before
    content = (tmp_path / "a.tar.index").read_bytes()
    for damage in (b"", content[:100], content[:-20], b"\x80\x04" + content[2:]):
        (tmp_path / "a.tar.index").write_bytes(damage)
        assert len(open_source(f"webdataset:{path}")) == 4


def test_a_shard_replaced_by_one_of_its_size_and_date_is_noticed(tmp_path: Path) -> None:
    pictures = [
        (f"{i}.png", encode(np.random.default_rng(i).integers(0, 256, (5 + i, 9, 3), np.uint8))) for i in range(6)
    ]
    path = write_tar(tmp_path / "a.tar", dict(pictures))
    open_source(f"webdataset:{path}")
    status = path.stat()
    write_tar(path, dict(reversed(pictures)))
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    source = open_source(f"webdataset:{path}")
    assert {source.key(i).partition(":")[2]: source.read(i) for i in range(6)} == dict(pictures)


def test_an_index_that_contradicts_itself_or_its_shard_is_made_again(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 3)
    right = open_source(f"webdataset:{path}")
    index = path.with_name("a.tar.index")
    with np.load(index) as stored:
        facts = dict(stored)
    for name, value in (
        ("offsets", facts["offsets"][:2]),
        ("offsets", facts["offsets"] + (1 << 30)),
        ("offsets", facts["offsets"] - (1 << 30)),
        ("offsets", facts["offsets"] + 512),
        ("sizes", -facts["sizes"]),
        ("sizes", facts["sizes"].astype(np.float64)),
        ("extension", facts["extension"] + 40),
        ("lengths", facts["lengths"][:-1]),
    ):
        with index.open("wb") as file:
            np.savez_compressed(file, **(facts | {name: value}))
        again = open_source(f"webdataset:{path}")
        assert again.fingerprint == right.fingerprint and len(again) == len(right) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nobody_may_write_it_goes_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGGLOMERATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    path = shard(tmp_path / "set" / "a.tar", 3)
    (tmp_path / "set").chmod(0o555)
    open_source(f"webdataset:{path}")
    assert len(list((cache_folder() / "shards").glob("*.index"))) == 1


def test_a_shard_that_somebody_indexes_is_waited_for(tmp_path: Path) -> None:
    one, other = LocalShard(shard(tmp_path / "a.tar", 2)), LocalShard(shard(tmp_path / "b.tar", 3))
    with FileLock(tmp_path / ".a.tar.index.lock"):
        assert make(one) is None and make(other) is not None
    assert [len(index.names) for index in indices_of([one, other])] == [4, 5]


def test_processes_share_the_work(tmp_path: Path) -> None:
    for number in range(6):
        shard(tmp_path / f"{number}.tar", 200)
    program = (
        "import sys; from imagery import shard_indices as s; real = s._made\n"
        "def counted(shard): sys.stdout.write(f'made {shard.name}\\n'); return real(shard)\n"  # one write: threads
        "s._made = counted; from imagery.sources import open_source; print(len(open_source(sys.argv[1])))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"webdataset:{tmp_path}"],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "3"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    said = [run.communicate(timeout=120)[0].split("\n") for run in runs]
    assert all("1206" in lines for lines in said)
    made = sorted(line for lines in said for line in lines if line.startswith("made"))
    assert made == [f"made {number}.tar" for number in range(6)]  # each by one process alone
    assert not list(tmp_path.glob(".*"))  # no locks, nothing unfinished


def test_an_index_is_of_headers_alone(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 3)
    asked = []

    def read(offset: int, size: int) -> bytes:
        asked.append(size)
        return path.read_bytes()[offset : offset + size]

    index = index_shard(read, path.stat().st_size)
    assert index.names[:2] == ["0.png", "1.png"] and np.all(index.sizes > 0)
    assert sum(size for size in asked if size == 512) == sum(size for size in asked if size < 1 << 20)


def test_the_command_makes_indices_and_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "a.tar", 2)
    assert guard(main, ["index", f"webdataset:{tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "a.tar" not in said.split("\n")[0] and ": 3 images" in said and "1 left out: .txt files" in said
    assert (tmp_path / "a.tar.index").is_file()
    assert guard(main, ["index", f"webdataset:{tmp_path}/none.tar"]) == 2
