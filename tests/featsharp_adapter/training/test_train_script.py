"""The entry script as a user starts it: from a recipe to an adapter that loads as a backbone; errors in words."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from small_recipes import image_folder, small_recipe
from small_timm import timm_folder

from common.errors import guard
from common.trackers import TRACKERS
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.model.views import Views
from featsharp_adapter.train import main
from featsharp_adapter.training.processes import Place
from teachers.registry import load_backbone

ROOT = Path(__file__).parents[3]


def test_started_as_a_script_it_knows_its_options() -> None:
    script = [sys.executable, str(ROOT / "featsharp_adapter" / "train.py"), "--help"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "key=value" in done.stdout


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = small_recipe(
        image_folder(tmp_path / "images"), teacher=f"timm:{timm_folder(tmp_path / 'vit', 0)}", out="out", optim__steps=4
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def test_recipe_to_sharpened_backbone(recipe_file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert guard(main, [str(recipe_file), "optim.steps=3"]) == 0
    printed = capsys.readouterr().out
    assert "fidelity" in printed and "sharp:out/adapter" in printed
    description = json.loads((tmp_path / "out/adapter/adapter.json").read_text())
    assert description["training"]["optim"]["steps"] == 3
    assert set(description["fidelity"]) == {"average", "learned", "side"}
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["optim"]["steps"] == 3
    assert guard(main, [str(recipe_file), "optim.steps=4"]) == 2
    assert "out holds what another recipe trained" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["optim"]["steps"] == 3
    # A file may not name a folder of the machine: who loads it names the teacher.
    node = {"spec": f"sharp:{tmp_path / 'out/adapter'}", "teacher": f"timm:{tmp_path / 'vit'}"}
    assert load_backbone(node)(torch.rand(1, 3, 64, 64)).spatial.shape == (1, 16, 8, 8)


def test_mistakes_end_with_two_and_one_line(recipe_file: Path, capsys) -> None:
    assert guard(main, [str(recipe_file), "upsampler=featshrap"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'did you mean "featsharp"' in error


def test_shares_are_what_the_stream_deals_out() -> None:
    for images in (1, 15, 16, 17, 40, 64, 65):
        for world in (1, 2, 3):
            dealt = [[p for p in range(images) if p // 16 % world == rank] for rank in range(world)]
            assert [Place(rank, world).share_of(images, 16) for rank in range(world)] == [len(part) for part in dealt]


RIDGE = ["upsampler=ridge", "options={inputs: [low, tiles, image], image_width: 4}", "data.images=40"]


def _one_of_two(rank: int, recipe: str, folder: str, port: int) -> None:
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    assert guard(main, [recipe, *RIDGE, "out=two"]) == 0


@pytest.mark.slow
def test_two_processes_solve_what_one_solves(recipe_file: Path, tmp_path: Path, monkeypatch) -> None:
    """Sums over shares of the images, and the map they give: the same to 1e-4 of what sharpening changes."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_one_of_two, (str(recipe_file), str(tmp_path), port), nprocs=2)
    assert guard(main, [str(recipe_file), *RIDGE, "out=one"]) == 0
    one, two = (Adapter.from_pretrained(name) for name in ("one", "two"))
    assert two.meta.training == one.meta.training | {"closed form": two.meta.training["closed form"]}
    views = Views(torch.zeros(2, 16), torch.randn(2, 16, 4, 4), {2: torch.randn(2, 16, 8, 8)})
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        first, second = one(views, image), two(views, image)
        changed = first - torch.nn.functional.interpolate(views.low, scale_factor=2, mode="bilinear")
    assert changed.norm() > 0 and (first - second).norm() <= 1e-4 * changed.norm()


def test_a_missing_tracker_is_told_before_anything_is_written(
    recipe_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", lambda: False)
    assert guard(main, [str(recipe_file), "log.trackers=[wandb]", f"out={tmp_path / 'new'}"]) == 2
    assert "log.trackers: wandb is not installed; pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_process_that_ends_too_early_is_told_in_words() -> None:
    program = (
        "import os, torch, torch.distributed as dist\n"
        "from common.errors import guard\nfrom featsharp_adapter.training.processes import joined\n"
        "def main(arguments):\n"
        "    with joined() as place:\n"
        "        if place.rank: os._exit(3)\n"
        "        dist.all_reduce(torch.ones(1))\n"
        "raise SystemExit(guard(main, []))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | there | {"RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    )
    assert second.wait(120) == 3
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 2 and "another process of this run ended" in said and "Traceback" not in said


def test_what_takes_steps_is_refused_in_several_processes(recipe_file: Path, monkeypatch, capsys) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert guard(main, [str(recipe_file)]) == 2
    assert "only what is solved, ridge, takes several" in capsys.readouterr().err
