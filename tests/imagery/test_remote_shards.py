"""Shards behind a URL, with the real protocols: the same images as from a disk, broken connections, a bounded cache."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, write_tar
from range_server import Server, serving

from common.errors import UserError
from imagery.augment import Augment
from imagery.shard_indices import cache_folder
from imagery.sources import open_source
from imagery.stream import Batch, ImageStream

pytest.importorskip("aiohttp")
SHARDS, IMAGES = 3, 5


@pytest.fixture(autouse=True)
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagery.shard_files.FIRST_WAIT", 0.01)
    monkeypatch.setenv("AGGLOMERATE_CACHE", str(tmp_path / "indices"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    chance = np.random.default_rng(0)
    (tmp_path / "store").mkdir()
    for shard in range(SHARDS):
        pictures = [chance.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(IMAGES)]
        write_tar(tmp_path / "store" / f"{shard}.tar", {f"{i}.png": encode(each) for i, each in enumerate(pictures)})
    with serving(tmp_path / "store") as running:
        yield running


def stream(spec: str, rank: int = 0, world: int = 1) -> ImageStream:
    settings = {"height": 16, "width": 16, "seed": 1, "augment": Augment(zoom=(1, 2)), "workers": 2}
    return ImageStream(open_source(spec), batch_size=4 // world, rank=rank, world=world, **settings)


def take(images: ImageStream, count: int) -> list[Batch]:
    batches = [next(images) for _ in range(count)]
    images.close()
    return batches


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert [batch.keys for batch in one] == [batch.keys for batch in two]
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, two, strict=True))


def test_a_connection_that_breaks_in_a_member_loses_and_repeats_nothing(server: Server, tmp_path: Path) -> None:
    server.break_every = 3
    remote = stream(f"webdataset:{server.url}/{{0..2}}.tar")
    local = stream(f"webdataset:{tmp_path}/store")
    assert remote.source.fingerprint == local.source.fingerprint
    first = take(remote, 5)
    again = stream(f"webdataset:{server.url}/{{0..2}}.tar")
    again.load_state_dict(remote.state_dict())
    assert_same(first + take(again, 5), take(local, 10))
    assert remote.report()["bad"] == again.report()["bad"] == 0


def test_a_network_that_stays_away_stops_the_run_in_words(server: Server) -> None:
    images = stream(f"webdataset:{server.url}/0.tar")
    server.break_every = 1
    with pytest.raises(UserError, match=r"cannot read bytes .* of http://.*0\.tar in 6 attempts.*last checkpoint"):
        next(images)
    server.break_every = 0
    assert images.state_dict()["position"] == 0  # nothing was stepped over
    images.close()  # forgets what failed
    take(images, 1)


def test_a_rank_reads_the_bytes_of_its_own_images_alone(server: Server) -> None:
    images = [stream(f"webdataset:{server.url}/{{0..2}}.tar", rank, 2) for rank in range(2)]
    server.asked.clear()
    for each in images:
        each.source.read(0)
    one = len(server.asked)
    server.asked.clear()
    batch = next(images[0])
    images[0].close()
    ahead = 2 * 3  # it reads at most two batches ahead
    assert one == 2 and len(batch.keys) <= len(server.asked) <= ahead
    assert all(last - first < 16_000 for _, first, last in server.asked)  # members, not shards


def test_the_index_is_made_once_and_again_for_another_shard(server: Server, tmp_path: Path) -> None:
    spec = f"webdataset:{server.url}/0.tar"
    open_source(spec)
    assert len(list((cache_folder() / "shards").glob("*.index"))) == 1
    server.asked.clear()
    assert len(open_source(spec)) == IMAGES
    assert all(last - first < 8192 for _, first, last in server.asked)  # a few bytes of images for the identity
    write_tar(tmp_path / "store" / "0.tar", {"x.png": encode(np.zeros((4, 4, 3), np.uint8))})
    assert len(open_source(spec)) == 1


def test_an_index_that_lies_beside_the_object_is_used(server: Server, tmp_path: Path) -> None:
    open_source(f"webdataset:{tmp_path}/store/0.tar")  # writes 0.tar.index
    server.asked.clear()
    assert len(open_source(f"webdataset:{server.url}/0.tar")) == IMAGES
    assert ("0.tar.index" in {name for name, _, _ in server.asked}) and not (cache_folder() / "shards").exists()


def test_copies_are_made_in_the_background_within_a_bound(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tmp_path / "store" / "0.tar").stat().st_size
    monkeypatch.setattr("imagery.sources.GIB", 2 * size + 1000)  # room for two of three
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "old.tar").write_bytes(bytes(size))  # of another run
    os.utime(copies / "old.tar", (0, 0))
    spec = f"webdataset:{server.url}/{{0..2}}.tar"
    cached = stream(f"{spec}?cache={copies}&cache_gib=1")
    assert_same(take(cached, 6), take(stream(spec), 6))
    until = time.monotonic() + 20
    while len(list(copies.glob("*.tar"))) < 2 or (copies / "old.tar").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.2)
    assert sum(path.stat().st_size for path in copies.glob("*.tar")) <= 2 * size + 1000
    server.asked.clear()
    whole = [cached.source.read(index) for index in range(SHARDS * IMAGES)]
    assert {name for name, _, _ in server.asked} == {"2.tar"}  # the one there was no room for
    assert whole == [open_source(spec).read(index) for index in range(SHARDS * IMAGES)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("webdataset:{url}/9.tar", "cannot read http.*9.tar: FileNotFoundError"),
        ("webdataset:{url}/0.tar?cache=/tmp/x", "cache=FOLDER and cache_gib=NUMBER go together"),
        ("webdataset:ftp://host/0.tar", '"ftp://" is not read; known: s3://'),
        ("webdataset:{url}/0.tar?cache=/proc/none&cache_gib=1", "cannot write there"),
    ],
)
def test_what_is_wrong_is_said(server: Server, spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_source(spec.replace("{url}", server.url))


def test_a_server_without_ranges_is_refused(server: Server) -> None:
    server.ranges = False
    with pytest.raises(UserError, match="ignores ranges"):
        source = open_source(f"webdataset:{server.url}/0.tar")
        source.read(0)


def test_a_page_of_words_in_between_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.page_every = 3
    remote = stream(f"webdataset:{server.url}/{{0..2}}.tar")
    assert_same(take(remote, 5), take(stream(f"webdataset:{tmp_path}/store"), 5))


def test_without_entity_tags_an_index_of_another_shard_is_noticed(server: Server, tmp_path: Path) -> None:
    server.tagged = False
    spec, path = f"webdataset:{server.url}/0.tar", tmp_path / "store" / "0.tar"
    chance = np.random.default_rng(1)
    pictures = {f"{i}.png": encode(chance.integers(0, 256, (9, 9 + i, 3), np.uint8)) for i in range(IMAGES)}
    write_tar(path, pictures)
    size = path.stat().st_size
    open_source(spec)
    write_tar(path, dict(reversed(pictures.items())))
    assert path.stat().st_size == size
    again = open_source(spec)
    assert {again.key(i).partition(":")[2]: again.read(i) for i in range(IMAGES)} == pictures


def test_copies_of_shards_of_one_name_are_kept_apart(server: Server, tmp_path: Path) -> None:
    server.tagged = False
    for folder, shard in (("a", "0"), ("b", "1")):
        (tmp_path / "store" / folder).mkdir()
        (tmp_path / "store" / f"{shard}.tar").rename(tmp_path / "store" / folder / "part.tar")
    plain = [open_source(f"webdataset:{server.url}/{folder}/part.tar") for folder in "ab"]
    assert len({source.shards[0].size for source in plain}) == 1  # archives are padded: equal sizes are common
    for folder, source in zip("ab", plain, strict=True):
        cached = open_source(f"webdataset:{server.url}/{folder}/part.tar?cache={tmp_path}/copies&cache_gib=1")
        cached._cache._copy_all()
        server.asked.clear()
        assert [cached.read(i) for i in range(IMAGES)] == [source.read(i) for i in range(IMAGES)]


def test_a_copy_of_what_a_shard_was_before_is_made_again(tmp_path: Path) -> None:
    pictures = [
        (f"{i}.png", encode(np.random.default_rng(i).integers(0, 256, (9, 9 + i, 3), np.uint8))) for i in range(6)
    ]
    path, spec = tmp_path / "a.tar", f"webdataset:{tmp_path}/a.tar?cache={tmp_path}/copies&cache_gib=1"
    for content in (pictures, pictures[::-1]):
        write_tar(path, dict(content))
        os.utime(path, (0, 0))
        source = open_source(spec)
        source._cache._copy_all()
        assert {source.key(i).partition(":")[2]: source.read(i) for i in range(6)} == dict(pictures)


def test_s3_by_its_own_protocol(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("photographs")
        for path in sorted((tmp_path / "store").glob("*.tar")):
            files.put(str(path), f"photographs/set/{path.name}")
        local = open_source(f"webdataset:{tmp_path}/store")
        for spec in ("s3://photographs/set/{0..2}.tar", "s3://photographs/set/*.tar", "s3://photographs/set/"):
            remote = open_source(f"webdataset:{spec}")
            assert remote.fingerprint == local.fingerprint
            assert [remote.read(index) for index in (0, 7, 14)] == [local.read(index) for index in (0, 7, 14)]
        with pytest.raises(UserError, match="no shard at s3://photographs/none"):
            open_source("webdataset:s3://photographs/none/*.tar")
    finally:
        store.stop()
