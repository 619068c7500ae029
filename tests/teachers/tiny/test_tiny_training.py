"""The training of the tiny teachers: targets proved on pictures drawn by hand, two real steps, exact resume."""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from imagery.scenes import Scene
from teachers.tiny.card import load_teacher, save_teacher
from teachers.tiny.model import Architecture, initialise
from teachers.tiny.text import Tokenizer, split_words
from tools.tiny_teachers import targets
from tools.tiny_teachers.cache import SceneCache
from tools.tiny_teachers.crops import Crops, take_crops
from tools.tiny_teachers.fill import fill, fingerprint
from tools.tiny_teachers.heads import affinity_loss, contrastive_loss, histogram_loss
from tools.tiny_teachers.loop import Schedule, draw_crops, train
from tools.tiny_teachers.objectives import Objective, build_objective
from tools.tiny_teachers.train import COUNTS, SCHEDULES, choose_schedule, class_prompts, draw

SMALL = {
    "clip": Architecture(
        image_size=64, patch=16, dim=32, depth=1, heads=2, summary="mean", embedding=16, text_dim=32, text_depth=1
    ),
    "dino": Architecture(image_size=64, patch=16, dim=32, depth=1, heads=2, summary="token"),
    "sam": Architecture(image_size=64, patch=16, dim=32, depth=1, heads=2, summary=None),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> SceneCache:
    """Six real scenes; the crops below never need the full 224 px of a window."""
    return fill(partial(draw, 5), 6, 224, tmp_path_factory.mktemp("scenes"), workers=1)


def start(name: str, cache: SceneCache) -> tuple:
    captions = cache.captions()
    tokenizer = Tokenizer.from_texts([text for row in captions for text in row]) if name == "clip" else None
    network = initialise(SMALL[name], 3, tokenizer)
    objective: Objective = build_objective(name, network, COUNTS, lambda: captions, 4)
    return network, objective


@pytest.mark.parametrize("name", SMALL)
def test_every_objective_trains_and_what_is_saved_loads_equal(name: str, cache: SceneCache, tmp_path: Path) -> None:
    network, objective = start(name, cache)
    schedule = Schedule(steps=12, batch=4, whole=0.5, warmup=2, rate=3e-3, seed=1)
    first = train(*start(name, cache), cache, Schedule(steps=1, batch=4, whole=0.5, warmup=2, seed=1))
    last = train(network, objective, cache, schedule)
    assert last["total"] < 0.9 * first["total"]
    save_teacher(tmp_path, name, network, {})
    loaded, card = load_teacher(tmp_path, name)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images).spatial, network(images).spatial)  # saving rounds the network itself
    assert card["name"] == f"tiny:{name}"


def test_two_runs_agree_and_a_resumed_run_ends_where_an_uninterrupted_one_does(
    cache: SceneCache, tmp_path: Path
) -> None:
    schedule = Schedule(steps=4, batch=2, warmup=1, seed=9, checkpoint_every=2)
    whole, objective = start("dino", cache)
    train(whole, objective, cache, schedule, tmp_path / "whole")
    # The file now holds step 4; a copy taken at step 2 is what an interrupted run leaves.
    cut, objective = start("dino", cache)
    train_until(2, cut, objective, cache, schedule, tmp_path / "cut")
    again, objective = start("dino", cache)
    train(again, objective, cache, schedule, tmp_path / "cut")
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert not torch.equal(whole.state_dict()["vit.pos_embed"], cut.state_dict()["vit.pos_embed"])


def train_until(stop: int, network, objective, cache: SceneCache, schedule: Schedule, path: Path) -> None:
    """Run and be interrupted after `stop` steps."""
    steps = []

    def interrupt(module, inputs, output) -> None:
        steps.append(1)
        if len(steps) > stop:
            raise KeyboardInterrupt

    hook = network.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(network, objective, cache, schedule, path)
    hook.remove()


def test_crops_are_a_function_of_seed_and_step_and_show_what_their_labels_say(cache: SceneCache) -> None:
    schedule = Schedule(steps=1, batch=4, whole=0.5, seed=2)
    one, two, other = (draw_crops(cache, schedule, step, 64, 16)[0] for step in (3, 3, 4))
    assert torch.equal(one.images, two.images) and not torch.equal(one.images, other.images)
    assert one.whole.tolist() == [True, True, False, False]
    rows = np.array([0])
    full = take_crops(cache, rows, np.array([[0, 0, 224]]), 224, 16)
    part = take_crops(cache, rows, np.array([[112, 0, 112]]), 112, 16)
    torch.testing.assert_close(part.images, full.images[:, :, 112:, :112])
    # One label sample per 2 px in both, so the lower left quarter of the whole is the crop.
    assert torch.equal(part.semantic, full.semantic[:, 56:, :56])
    depth = torch.from_numpy(np.array(cache.maps["depth"][0])).float()
    assert torch.equal(full.depth[0], depth)


def drawing() -> Crops:
    """2 x 2 tokens of 8 x 8 samples: object 1 fills the top left token, object 2 a column of the bottom right one."""
    instance = torch.zeros(1, 16, 16, dtype=torch.long)
    instance[0, :8, :8] = 1
    instance[0, 8:, 12:14] = 2
    semantic = torch.where(instance == 1, 7, torch.where(instance == 2, 9, 1))
    depth = torch.where(instance == 1, 2.0, 4.0)
    depth[0, 8:, :8] = 0
    normals = torch.zeros(1, 3, 16, 16)
    normals[:, 1] = -1
    zeros = torch.zeros(1)
    return Crops(
        images=torch.rand(1, 3, 32, 32),
        semantic=semantic,
        coarse=semantic,
        part=semantic,
        instance=instance,
        depth=depth,
        normals=normals,
        indoor=zeros,
        light=torch.zeros(1, 3),
        grid=2,
        whole=torch.tensor([True]),
        rows=np.array([0]),
    )


def test_targets_of_a_drawing() -> None:
    crops = drawing()
    shares = targets.histogram(crops.semantic, 10, 1)[0]
    assert shares[7].tolist() == [[1, 0], [0, 0]] and shares[9, 1, 1] == 0.25
    depth = targets.log_depth(crops, 1)
    assert depth.weight[0, 0].tolist() == [[1, 1], [0, 1]]
    assert float(depth.value[0, 0, 0, 0]) == pytest.approx(np.log(2))
    geometry = targets.object_geometry(crops)
    assert geometry.weight[0, 0].tolist() == [[1, 0], [0, 1]]
    # Object 2's centroid is at sample 13 of 16, its token's centre sample at 12.5: 1/16 of a token to the right.
    assert float(geometry.value[0, 0, 1, 1]) == pytest.approx(0.5 / 8, abs=1e-5)
    assert targets.largest_kind(crops).tolist() == [7]
    assert float(targets.object_count(crops)) == pytest.approx(np.log(3))
    borders = targets.edges(targets.segments(crops), 1)[0, 0]
    assert borders.tolist() == [[1, 1], [0, 1]]  # a change counts for its upper or left sample
    jumps = targets.depth_edges(crops, 1)[0, 0]
    assert jumps[0, 0] == 1 and jumps[0, 1] == 0


def test_window_masks_follow_the_segment_at_the_centre() -> None:
    mask, inside = targets.window_masks(targets.segments(drawing()))
    assert mask.shape == inside.shape == (1, 144, 2, 2)
    first = mask[0, :, 0, 0].view(12, 12)
    assert first[4:8, 4:8].all() and first.sum() == 16  # its own token and nothing beside it
    assert inside[0, :, 0, 0].sum() == 64  # the window's outer row and column lie outside the picture


def test_losses_are_lowest_at_the_truth() -> None:
    shares = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    assert float(histogram_loss(shares.log(), shares)) == pytest.approx(0, abs=1e-6)
    assert float(histogram_loss(shares.flip(1).log(), shares)) > 0.1
    ids = torch.tensor([[[0, 0], [1, 1]]])
    apart = torch.tensor([[0.0, 0.0], [3.0, 3.0]]).expand(1, 1, 2, 2)
    sharp = torch.tensor(5.0)
    assert affinity_loss(apart, ids, sharp) < 0.01 < affinity_loss(apart.transpose(2, 3), ids, sharp)
    eye = torch.eye(4)
    scale = torch.tensor(3.0)
    assert contrastive_loss(eye, eye, scale) < 0.01 < contrastive_loss(eye, eye.roll(1, 0), scale)


def test_words_glyphs_and_unknown_words() -> None:
    assert split_words("A red box with the letter A, 42") == [
        "a",
        "red",
        "box",
        "with",
        "the",
        "letter",
        "A",
        ",",
        "4",
        "2",
    ]
    tokenizer = Tokenizer.from_texts(["a red box", "the letter A"])
    ids = tokenizer(["a red zeppelin", "A"])
    assert ids.shape == (2, 3) and ids[0, 2] == 1 and ids[1].tolist() == [ids[0, 0], 0, 0]
    assert tokenizer([""]).tolist() == [[1]]
    assert all(prompt for row in class_prompts() for prompt in row)


def test_a_filled_cache_is_reused_and_its_pictures_identify_the_world(cache: SceneCache, tmp_path: Path) -> None:
    drawn = []

    def watched(stream: int, index: int) -> Scene:
        drawn.append(index)
        return draw(stream, index)

    again = fill(partial(watched, 5), 6, 224, cache.folder, workers=1)
    assert drawn == [0] and fingerprint(again) == fingerprint(cache)  # one look, to see that the world is the same
    other = tmp_path / "other"
    first = fingerprint(fill(partial(draw, 5), 2, 224, other, workers=1))
    second = fingerprint(fill(partial(watched, 6), 2, 224, other, workers=1))
    assert drawn == [0, 0, 0, 1] and first != second  # another world: looked at, found different, drawn anew


def test_a_schedule_is_changed_only_where_the_command_line_says() -> None:
    plain = Namespace(steps=None, zoom=None, seed=0)
    assert choose_schedule("clip", plain) == SCHEDULES["clip"]
    changed = choose_schedule("clip", Namespace(steps=5, zoom=[0.9, 1.0], seed=100))
    assert (changed.steps, changed.zoom, changed.seed, changed.batch) == (5, (0.9, 1.0), 111, SCHEDULES["clip"].batch)
    with pytest.raises(UserError, match="LOW"):
        choose_schedule("clip", Namespace(steps=None, zoom=[1.0, 0.5], seed=0))
