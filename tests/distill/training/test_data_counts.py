"""A run on damaged data, from several sources: it trains, and says and writes what was read and what could not be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from run_logs import without_time
from small_run import small_recipe, train

from common.errors import UserError
from common.jsonl import read_log
from common.recipes import validate
from distill.recipe import Recipe, read
from distill.training.data import Streams, with_own_counts
from imagery.mixture import Mixture
from imagery.sources import open_sources


def photographs(folder: Path, count: int, broken: int) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    for index in range(broken):
        (folder / f"{index:02d}.png").write_bytes(b"broken")
    return folder


def recipe_of(tmp_path: Path, **changes: Any) -> Recipe:
    folder = tmp_path / "photographs"
    folder = folder if folder.exists() else photographs(folder, 10, 3)
    data = small_recipe(tmp_path / "runs") | changes
    data["data"] |= {
        "train": {f"imagefolder:{folder}": 3, "scenes:seed=3,count=24,size=32,cache=true": 1},
        "max_bad_share": 0.9,
    }
    return validate(Recipe, data, "test")


def test_a_run_counts_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(recipe_of(tmp_path))
    found = json.loads((folder / "data.json").read_text())
    assert found["read"] == 24 + found["bad"] and found["bad"] >= 3 and found["problems"] == []
    assert set(found["bad_reasons"]) == {"00.png", "01.png", "02.png"}
    said = capsys.readouterr().out
    assert f"images: {found['read']} read, {found['bad']} of them unreadable and replaced" in said
    assert "00.png: UnidentifiedImageError" in said
    log = without_time(read_log(folder / "log.jsonl"))
    (folder / "student").rename(folder / "first")
    (folder / "checkpoints" / "step-00000006").rename(folder / "taken away")
    assert train(recipe_of(tmp_path)) == folder  # goes on in the middle of the mixture, and of the counts
    assert without_time(read_log(folder / "log.jsonl")) == log
    assert json.loads((folder / "data.json").read_text()) == found


def test_counts_are_those_of_all_partitions_and_no_one_elses(tmp_path: Path) -> None:
    stages = {
        "one": {"steps": 3, "partitions": {"low": {"sizes": [16]}, "high": {"batch_size": 4}}},
        "two": {"steps": 3, "partitions": {"low": {"sizes": [16]}}},
    }
    plain = small_recipe(tmp_path / "runs")["optim"]
    recipe = recipe_of(tmp_path, stages=stages, optim=plain | {"steps": 6})
    source = open_sources(recipe.data.train)
    assert isinstance(source, Mixture)
    stream = Streams(recipe, source, 0, 1)
    for step in range(6):
        stream.take(step)
    report = stream.report()
    assert report["read"] == 3 * (4 + 4) + 3 * 4 + report["bad"] and report["bad"] > 0
    states = stream.state_dict()["streams"]
    others = with_own_counts(states, {"low": states["low"]})
    assert others["low"] == states["low"] and others["high"]["counts"]["read"] == 0
    assert others["high"]["position"] == states["high"]["position"]


def test_a_mixture_is_written_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(yaml.safe_dump(recipe_of(tmp_path).model_dump(mode="json")), encoding="utf-8")
    recipe = read(path, ["data.train={webdataset:A: 0.7, imagefolder:B: 0.3}"])
    assert isinstance(recipe.data.train, dict) and list(recipe.data.train.values())[-2:] == [0.7, 0.3]
    with pytest.raises(UserError, match="no such folder"):
        open_sources({"imagefolder:/nowhere": 1.0})
