"""Shards that commands write: in sequence, resumed to the image, and no error of a command is an end of the data."""

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from image_files import encode, flat, write_tar

from common.errors import UserError
from imagery.augment import PLAIN
from imagery.contracts import SequentialSource
from imagery.sources import open_source
from imagery.stream import ImageStream


def stream(spec: str) -> ImageStream:
    return ImageStream(open_source(spec), batch_size=3, height=8, width=8, seed=1, augment=PLAIN, workers=2)


def shards(folder: Path) -> str:
    for number in range(3):
        members = {f"{i}.png": encode(flat(10 * number + i)) for i in range(4)} | {"note.txt": b"x"}
        write_tar(folder / f"{number}.tar", members)
    return f"webdataset:pipe:cat {folder}/{{0..2}}.tar"


def values(images: ImageStream, count: int) -> list[int]:
    found = [int(value) for _ in range(count) for value in next(images).images[:, 0, 0, 0]]
    images.close()
    return found


def test_an_epoch_is_every_image_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    spec = shards(tmp_path) + "?window=5"
    assert isinstance(open_source(spec), SequentialSource)
    whole = values(stream(spec), 8)
    assert sorted(whole[:12]) == sorted(whole[12:]) == sorted(10 * n + i for n in range(3) for i in range(4))
    assert whole[:12] != whole[12:]
    for stop in (1, 3, 5):
        first = stream(spec)
        begun = values(first, stop)
        second = stream(spec)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert begun + values(second, 8 - stop) == whole
    images = stream(spec)
    values(images, 4)
    assert ".txt files" in images.source.left_out.lines()[0]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("head -c 3000 {folder}/0.tar", "without the mark of an end|within a header"),
        ("cat {folder}/0.tar; exit 3", "ended with exit code 3"),
        ("cat {folder}/nothing.tar", "is empty"),
        ("cat {folder}/0.tar | tr 0 1", "damaged header"),
    ],
)
def test_a_command_that_fails_is_no_end_of_the_data(command: str, words: str, tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(UserError, match=words):
        values(stream(f"webdataset:pipe:{command.replace('{folder}', str(tmp_path))}"), 3)


def test_samples_with_several_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": encode(flat(1)), "0.seg.png": encode(flat(99)), "1.jpg": encode(flat(1))})
    with pytest.raises(UserError, match="several pictures"):
        values(stream(f"webdataset:pipe:cat {tmp_path}/a.tar"), 2)
    assert set(values(stream(f"webdataset:pipe:cat {tmp_path}/a.tar?pick=jpg"), 4)) == {1}


def test_another_pick_is_other_images_and_no_run_goes_on_with_it(tmp_path: Path) -> None:
    members = {"0.jpg": encode(flat(1)), "0.png": encode(flat(99)), "1.jpg": encode(flat(2)), "1.png": encode(flat(98))}
    write_tar(tmp_path / "a.tar", members)
    before = stream(f"webdataset:pipe:cat {tmp_path}/a.tar?pick=jpg")
    values(before, 1)
    state = before.state_dict()
    for pick in ("*", "jpg,png"):
        with pytest.raises(UserError, match="pick"):
            stream(f"webdataset:pipe:cat {tmp_path}/a.tar?pick={pick}").load_state_dict(state)
    stream(f"webdataset:pipe:cat {tmp_path}/a.tar?pick= JPG").load_state_dict(state)


def test_braces_that_are_the_shells_stay(tmp_path: Path) -> None:
    shards(tmp_path)
    command = f"A={tmp_path}; echo ${{A}}/1.tar | xargs -I{{}} cat {{}}"
    assert set(values(stream(f"webdataset:pipe:{command}"), 4)) == {10, 11, 12, 13}


def test_a_command_is_not_of_the_terminals_group_and_ends_with_its_reader(tmp_path: Path) -> None:
    shards(tmp_path)
    before = {each.pid for each in psutil.Process().children(recursive=True)}  # of other tests in this process
    reader = open_source(f"webdataset:pipe:(cat {tmp_path}/0.tar; sleep 60); true").open_epoch(
        0, 1, shuffle=False, state=None
    )
    assert len(reader.read(1)) == 1
    running = [each for each in psutil.Process().children(recursive=True) if each.pid not in before]
    groups = set()
    for each in running:
        with suppress(ProcessLookupError):  # `cat` may have ended by now
            groups.add(os.getpgid(each.pid))
    assert groups and os.getpgrp() not in groups  # Ctrl-C does not reach them
    del reader
    _, alive = psutil.wait_procs(running, timeout=5)
    assert all(each.status() == psutil.STATUS_ZOMBIE for each in alive)
