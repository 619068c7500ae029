"""Arms of one process on cores of their own: the same bits, and nobody takes another's random numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from small_run import small_recipe, train

from common.errors import UserError
from common.jsonl import read_log, without_time
from distill.recipe import EngineNode, Recipe, read_arms
from distill.training.arms import Arm, assemble, run_together, teacher_pool
from distill.training.crew import Crew
from distill.training.data import RawBatch, Streams
from distill.training.engine import start
from distill.training.loop import Loop
from imagery.sources import open_source

#: `dropped` draws random numbers in every step, so it takes its turn alone.
ARMS = {"one": [], "two": ["student.seed=3", "student.embed_dim=32"], "dropped": ["student.drop_path=0.3"]}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


#: The jobs side by side in each update. The first shows who draws; where somebody does, nobody looks ahead. The third
#: and the last are followed by a checkpoint, which holds the stream's place, so nothing is taken ahead of it.
@pytest.mark.parametrize(
    ("names", "beside"),
    [
        (("one", "two", "dropped"), [0, 2, 2, 2, 2, 2]),
        (("one", "two"), [0, 3, 2, 3, 3, 2]),
        (("two",), [0, 2, 1, 2, 2, 1]),
    ],
)
def test_arms_that_step_at_the_same_time_equal_their_solo_runs(
    names: Sequence[str],
    beside: Sequence[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    two_threads: None,
) -> None:
    path = tmp_path / "arms.yaml"
    arms = {name: ARMS[name] for name in names}
    path.write_text(yaml.safe_dump(small_recipe(tmp_path) | {"arms": arms, "baseline": names[0]}), encoding="utf-8")
    threads = ["engine.threads=2", "engine.arm_threads=1", "checkpoint.every=3"]
    recipes = read_arms(path, threads)
    seen: list[int] = []
    whole = Crew.run
    monkeypatch.setattr(Crew, "run", lambda self, jobs: seen.append(len(jobs)) or whole(self, jobs))
    accelerators = start(recipes)
    run_together(
        [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()],
        open_source(recipes[names[0]].data.train),
        untrained=None,
    )
    assert seen == beside
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(Loop, "_may_prepare", lambda *_: False)  # the solo run's images come one update at a time
    solo = read_arms(path, [*threads, f"out={tmp_path / 'alone'}"])
    for name in names[-2:]:
        alone, ours = train(solo[name]), recipes[name].folder
        assert without_time(read_log(ours / "log.jsonl")) == without_time(read_log(alone / "log.jsonl"))
        states = [load_file(folder / "student" / "model.safetensors") for folder in (ours, alone)]
        assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())


def test_an_error_met_ahead_waits_for_its_update(tmp_path: Path, two_threads: None) -> None:
    recipe = Recipe.model_validate(small_recipe(tmp_path) | {"engine": {"threads": 2, "arm_threads": 1}})
    arm = Arm("one", recipe, start({"one": recipe})["one"])
    source = open_source(recipe.data.train)
    ready = assemble([arm], source, teacher_pool([arm]), untrained=None)
    assert ready is not None
    _, trainers, stream = ready

    def fetch(step: int) -> list[RawBatch]:
        if step == 2:
            raise UserError("no third batch")
        return stream.take(step)

    loop = Loop(trainers, fetch, arm.accelerator.device)
    loop.update(1)
    loop.update(2)  # looks ahead, and is finished all the same
    assert [line["step"] for line in read_log(recipe.folder / "log.jsonl")] == [1, 2]
    with pytest.raises(UserError, match="no third batch"):
        loop.update(3)
    loop.close()


def test_a_captured_update_names_its_own_images(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(small_recipe(tmp_path))
    stream = Streams(recipe, open_source(recipe.data.train), 0, 1)
    stream.take(0)
    first = stream.names(0)
    stream.take(1)
    assert stream.names(0) == first != stream.names(1)
    stream.take(2)
    assert stream.names(0) == {}


def test_drawing_beside_others_is_noticed(two_threads: None) -> None:
    crew = Crew(EngineNode(threads=2, arm_threads=1), Accelerator(), 3)
    assert crew.hands == 2
    crew.run([lambda: None, lambda: None])
    with pytest.raises(RuntimeError, match="drew random numbers beside others"):
        crew.run([lambda: None, lambda: torch.rand(1) and None])
    crew.close()


def test_alone_uses_as_many_threads_as_beside_others(two_threads: None) -> None:
    crew, seen = Crew(EngineNode(threads=2, arm_threads=1), Accelerator(), 2), []
    crew.run([lambda: seen.append(torch.get_num_threads())] * 2)
    crew.alone(lambda: seen.append(torch.get_num_threads()))
    crew.close()
    assert seen == [1, 1, 1] and torch.get_num_threads() == 2
