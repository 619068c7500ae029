"""The images of every step: each partition keeps its place, alike for all ranks, over stages and interruptions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_recipe
from torch import Tensor

from common.errors import UserError
from common.recipes import validate
from distill.recipe import Recipe
from distill.schedule import schedule
from distill.training import data as streams
from distill.training.data import Streams, newest, roles
from imagery.augment import Augment
from imagery.sources import open_source
from imagery.stream import ImageStream

#: A stage at two sizes, then a low and a high partition, then the low one alone.
STAGES: dict[str, Any] = {
    "one": {"steps": 3, "partitions": {"low": {"sizes": [16, [8, 24]], "batch_size": 4}}},
    "two": {
        "steps": 3,
        "partitions": {"low": {"sizes": [16, 24], "batch_size": 8}, "high": {"batch_size": 4}},
    },
    "three": {"steps": 2, "partitions": {"low": {"batch_size": 4}}},
}
STEPS = 8
RawBatch = dict[tuple[int, str], Tensor]


@pytest.fixture(scope="module")
def source() -> Any:
    return open_source("scenes:seed=3,count=24,size=32,cache=true")


def recipe(**changes: Any) -> Recipe:
    data = small_recipe(Path("unused"))
    del data["optim"]["steps"]
    stages = json.loads(json.dumps(STAGES))
    stages["two"] |= changes
    return validate(Recipe, data | {"stages": stages}, "test")


def take(stream: Streams, steps: Sequence[int]) -> RawBatch:
    """The images by step and partition."""
    return {(step, role.part.partition): images for step in steps for role, images in stream.take(step)}


@pytest.fixture(scope="module")
def whole(source: Any) -> RawBatch:
    """What one process sees."""
    return take(Streams(recipe(), source, 0, 1), range(STEPS))


def test_partitions_come_and_go_with_their_sizes_and_batches(whole: RawBatch) -> None:
    assert list(whole) == [
        *((step, "low") for step in range(3)),
        *((step, name) for step in range(3, 6) for name in ("low", "high")),
        *((step, "low") for step in (6, 7)),
    ]
    parts = {(stage.name, part.partition): part for stage in schedule(recipe()) for part in stage.passes}
    for (step, name), images in whole.items():
        part = parts["one" if step < 3 else "two" if step < 6 else "three", name]
        assert images.shape == (part.batch_size, 3, *part.size_at(0, step))
    assert len({tuple(images.shape[2:]) for images in whole.values()}) > 2


def test_a_partition_goes_through_the_images_without_a_gap(source: Any, whole: RawBatch) -> None:
    """After 3 x 4 and 3 x 8 images, `low` is where a plain stream is after 9 batches of 4; `high` has its own order."""
    plain = ImageStream(source, batch_size=4, height=32, width=32, seed=0, augment=Augment())
    straight = [next(plain).images for _ in range(11)]
    assert torch.equal(whole[6, "low"], straight[9]) and torch.equal(whole[7, "low"], straight[10])
    assert not torch.equal(whole[3, "high"], straight[0])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_see_what_one_process_sees(source: Any, whole: RawBatch, world: int) -> None:
    shares = [take(Streams(recipe(), source, rank, world), range(STEPS)) for rank in range(world)]
    for key, images in whole.items():
        assert torch.equal(torch.cat([share[key] for share in shares]), images)


@pytest.mark.parametrize("at", [1, 3, 4, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_changes_nothing(source: Any, whole: RawBatch, at: int, workers: int) -> None:
    """Interrupted after `at` steps, in the middle of a stage or right at its end."""
    made = recipe()
    made = made.model_copy(update={"data": made.data.model_copy(update={"workers": workers})})
    first, second = Streams(made, source, 0, 1), Streams(made, source, 0, 1)
    take(first, range(at))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    first.close()
    for key, images in take(second, range(at, STEPS)).items():
        assert torch.equal(images, whole[key])
    second.close()


def test_a_run_from_before_stages_goes_on(source: Any) -> None:
    """Its checkpoints hold the state of one stream."""
    plain = validate(Recipe, small_recipe(Path("unused")), "test")
    first, second = Streams(plain, source, 0, 1), Streams(plain, source, 0, 1)
    take(first, [0, 1])
    second.load_state_dict(first.state_dict()["streams"]["all"])
    assert torch.equal(take(first, [2])[2, "all"], take(second, [2])[2, "all"])


def test_split_by_ranks_shows_the_same_images(source: Any, whole: RawBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second stage one process does `low` and one `high`; then both need to know where `low` is."""
    readers = [Streams(recipe(split="ranks"), source, rank, 2) for rank in range(2)]
    shares: list[RawBatch] = [{}, {}]
    for step in range(STEPS):
        now = [reader.state_dict()["streams"] for reader in readers]
        monkeypatch.setattr(streams, "gather_objects", lambda _, now=now: now)
        for share, reader in zip(shares, readers, strict=True):
            share |= take(reader, [step])
    assert (4, "high") not in shares[0] and (4, "low") not in shares[1]
    for key, images in whole.items():
        assert torch.equal(torch.cat([share[key] for share in shares if key in share]), images)


def test_shares_of_the_loss_add_up_whatever_the_split() -> None:
    """The mean over processes of what each does, scaled, gives every partition its share of the images."""
    for made in (recipe(), recipe(split="ranks")):
        stage = schedule(made)[1]
        for world in (2, 4):
            done = [role for rank in range(world) for role in roles(stage, rank, world)]
            for part in stage.passes:
                mine = [role for role in done if role.part == part]
                assert sum(role.scale for role in mine) / world == pytest.approx(part.share)
                assert sum(role.batch_size for role in mine) == part.batch_size
                assert [role.rank for role in mine] == list(range(len(mine)))


def test_what_cannot_be_divided_is_said_before_anything_starts(source: Any) -> None:
    with pytest.raises(UserError, match=r"partition low of stage one: batch_size 4 does not divide over 3"):
        Streams(recipe(), source, 0, 3)
    with pytest.raises(UserError, match=r"stage two splits.*needs a multiple of 2, and there are 1"):
        Streams(recipe(split="ranks"), source, 0, 1)


def test_the_furthest_state_is_the_newest() -> None:
    assert newest([{"low": {"position": 4}}, {"low": {"position": 8}, "high": {"position": 0}}]) == {
        "low": {"position": 8},
        "high": {"position": 0},
    }


def test_a_captured_update_names_its_own_images(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(small_recipe(tmp_path))
    stream = Streams(recipe, open_source(recipe.data.train), 0, 1)
    stream.take(0)
    first = stream.names(0)
    stream.take(1)
    assert stream.names(0) == first != stream.names(1)
    stream.take(2)
    assert stream.names(0) == {}


@pytest.mark.parametrize(
    ("before", "split", "after", "then"),
    [(2, "ranks", 1, "step"), (1, "step", 2, "ranks"), (4, "ranks", 2, "ranks"), (2, "step", 4, "step")],
)
def test_another_number_of_processes_goes_on_with_the_same_images(
    source: Any, whole: RawBatch, before: int, split: str, after: int, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the middle of a stage in which nobody may know where all partitions are; all that was read is counted."""
    first = [Streams(recipe(split=split), source, rank, before) for rank in range(before)]
    for step in range(4):
        now = [reader.state_dict()["streams"] for reader in first]
        monkeypatch.setattr(streams, "gather_objects", lambda _, now=now: now)
        for reader in first:
            reader.take(step)
    states = json.loads(json.dumps([reader.state_dict() for reader in first]))
    read = sum(reader.report()["read"] for reader in first)
    second = [Streams(recipe(split=then), source, rank, after) for rank in range(after)]
    for rank, reader in enumerate(second):
        reader.load_state_dict(streams.state_of_all(states, keeps_counts=rank == 0))
    assert sum(reader.report()["read"] for reader in second) == read == 3 * 4 + 8 + 4
    shares = [take(reader, [4, 5]) for reader in second]
    for step, name in ((4, "low"), (4, "high"), (5, "low"), (5, "high")):
        found = torch.cat([share[step, name] for share in shares if (step, name) in share])
        assert torch.equal(found, whole[step, name])
    assert sum(reader.report()["read"] for reader in second) == read + 2 * (8 + 4)
