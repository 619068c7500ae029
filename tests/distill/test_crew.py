"""Arms of one process on cores of their own: the same bits, and nobody takes another's random numbers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from small_run import small_recipe, train

from distill.arm import Arm, run_together
from distill.crew import Crew
from distill.log import read_log, without_time
from distill.recipe import EngineNode, read_arms
from distill.runtime import start
from imagery.sources import open_source

#: `dropped` draws random numbers in every step, so it takes its turn alone.
ARMS = {"one": [], "two": ["student.seed=3", "student.embed_dim=32"], "dropped": ["student.drop_path=0.3"]}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_arms_that_step_at_the_same_time_equal_their_solo_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(small_recipe(tmp_path) | {"arms": ARMS, "baseline": "one"}), encoding="utf-8")
    threads = ["engine.threads=2", "engine.student_threads=1"]
    recipes = read_arms(path, threads)
    beside: list[int] = []
    whole = Crew.run
    monkeypatch.setattr(Crew, "run", lambda self, jobs: beside.append(len(jobs)) or whole(self, jobs))
    accelerators = start(recipes)
    run_together(
        [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()],
        open_source(recipes["one"].data.train),
        untrained=None,
    )
    assert beside == [0, 2, 2, 2, 2, 2]  # the first update shows who draws
    assert torch.get_num_threads() == 2
    solo = read_arms(path, [*threads, f"out={tmp_path / 'alone'}"])
    for name in ("two", "dropped"):
        alone, ours = train(solo[name]), recipes[name].folder
        assert without_time(read_log(ours / "log.jsonl")) == without_time(read_log(alone / "log.jsonl"))
        states = [load_file(folder / "student" / "model.safetensors") for folder in (ours, alone)]
        assert all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())


def test_drawing_beside_others_is_noticed(two_threads: None) -> None:
    crew = Crew(EngineNode(threads=2, student_threads=1), Accelerator(), 3)
    assert crew.hands == 2
    crew.run([lambda: None, lambda: None])
    with pytest.raises(RuntimeError, match="drew random numbers beside others"):
        crew.run([lambda: None, lambda: torch.rand(1) and None])
    crew.close()


def test_alone_uses_as_many_threads_as_beside_others(two_threads: None) -> None:
    crew, seen = Crew(EngineNode(threads=2, student_threads=1), Accelerator(), 2), []
    crew.run([lambda: seen.append(torch.get_num_threads())] * 2)
    crew.alone(lambda: seen.append(torch.get_num_threads()))
    crew.close()
    assert seen == [1, 1, 1] and torch.get_num_threads() == 2
