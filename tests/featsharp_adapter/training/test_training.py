"""Training: it learns, it can be interrupted anywhere without a trace, and views in memory are the views made live."""

from pathlib import Path

import pytest
import torch
from small_recipes import image_folder, small_recipe, small_teacher_data

from common.errors import UserError
from featsharp_adapter.recipe import LogNode, OptimNode
from featsharp_adapter.training import teacher_data as teacher_data_module
from featsharp_adapter.training.checkpoints import Checkpoints
from featsharp_adapter.training.optim import build_optimiser, clip_norm, rate_scale
from featsharp_adapter.training.train_one import fit_one, new_trainer, open_samples, train_one
from featsharp_adapter.training.trainer import Trainer
from imagery.stream import ImageStream
from teachers.contracts import state_digest


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


class Interrupted(Exception):
    """What pulling the plug looks like from inside."""


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step

    def stop(self, number, sample):
        if number == step:
            raise Interrupted
        return original(self, number, sample)

    monkeypatch.setattr(Trainer, "step", stop)


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_interrupted_training_ends_where_uninterrupted_training_ends(images, tmp_path, monkeypatch, cache_gib) -> None:
    recipe = small_recipe(images, data__cache_gib=cache_gib)
    straight, fidelity = train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "straight")
    for step in (4, 7):  # checkpoints are at 3 and 6
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_at(step, patch)
            train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "resumed")
    resumed, again = train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "resumed")
    assert state_digest(resumed) == state_digest(straight)
    assert again == fidelity
    assert (tmp_path / "resumed/log.jsonl").read_text() == (tmp_path / "straight/log.jsonl").read_text()


def test_a_training_does_not_go_on_with_other_images(images, tmp_path, monkeypatch) -> None:
    recipe = small_recipe(images)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(4, patch)
        train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "run")
    (images / "0.png").write_bytes((images / "1.png").read_bytes())
    teacher_data_module.open_once.cache_clear()
    with pytest.raises(UserError, match="or of other images"):
        train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "run")


def test_training_lowers_the_loss_and_moves_everything_that_learns(images, monkeypatch) -> None:
    recipe = small_recipe(images, optim={"steps": 60, "batch_size": 6, "lr": 3e-3, "lr_guide": 1e-2, "warmup": 5})
    teacher_data = small_teacher_data(recipe, monkeypatch)
    trainer, samples = new_trainer(recipe, teacher_data), open_samples(recipe, teacher_data)
    before = {name: tensor.clone() for name, tensor in trainer.adapter.state_dict().items()}
    losses = [float(trainer.step(number, samples.next())["loss"]) for number in range(60)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name, tensor in trainer.adapter.state_dict().items():
        moved = not torch.equal(before[name], tensor)
        assert moved != name.startswith("normaliser."), name


def test_a_training_is_watched_without_being_changed(images, tmp_path, monkeypatch) -> None:
    """Pictures and a tracker's numbers, also after an interruption; weights are to the bit as without."""
    pytest.importorskip("tensorboard")
    plain = small_recipe(images)
    seen = plain.model_copy(update={"log": LogNode(trackers=["tensorboard"], pictures=3, images=2)})
    unseen, _ = train_one(plain, small_teacher_data(plain, monkeypatch), folder=tmp_path / "plain")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(7, patch)
        train_one(plain, small_teacher_data(plain, monkeypatch), folder=tmp_path / "seen")
    watched, _ = train_one(seen, small_teacher_data(seen, monkeypatch), folder=tmp_path / "seen")
    assert state_digest(watched) == state_digest(unseen)
    assert (tmp_path / "seen/log.jsonl").read_text() == (tmp_path / "plain/log.jsonl").read_text()
    # From the checkpoint at step 6 on: the end, which every training draws.
    assert [path.name for path in (tmp_path / "seen/pictures").iterdir()] == ["step-00000008.png"]
    assert list((tmp_path / "seen").glob("events.out.tfevents.*")) and not (tmp_path / "plain/pictures").exists()


def test_what_is_solved_is_drawn_once(images, tmp_path, monkeypatch) -> None:
    recipe = small_recipe(images, upsampler="ridge", options={"inputs": ["low", "tiles"]}, log={"pictures": 100})
    train_one(recipe, small_teacher_data(recipe, monkeypatch), folder=tmp_path / "ridge")
    assert [path.name for path in (tmp_path / "ridge/pictures").iterdir()] == ["step-00000000.png"]
    assert '"error"' in (tmp_path / "ridge/log.jsonl").read_text()


def test_no_bias_means_no_bias(images, monkeypatch) -> None:
    recipe = small_recipe(images, bias=False)
    adapter, _ = train_one(recipe, small_teacher_data(recipe, monkeypatch))
    assert not adapter.bias.buffer.any()


def test_seeds_differ_and_repeat(images, monkeypatch) -> None:
    digests = []
    for seed in (0, 0, 1):
        recipe = small_recipe(images, seed=seed)
        digests.append(state_digest(train_one(recipe, small_teacher_data(recipe, monkeypatch))[0]))
    assert digests[0] == digests[1] != digests[2]


def test_every_seed_begins_at_weights_of_its_own(images, monkeypatch) -> None:
    """Also neighbouring ones, which once shared theirs; seed 0 is torch's 0, as the shipped adapters were trained."""
    made = []
    for seed in range(4):
        recipe = small_recipe(images, seed=seed, upsampler="ridge", options={"inputs": ["image"], "image_width": 4})
        made.append(fit_one(recipe, small_teacher_data(recipe, monkeypatch)).upsampler.stem.near.weight)
    assert all(not torch.equal(made[i], made[j]) for i in range(4) for j in range(i))


def test_views_made_live_are_the_views_in_memory(images, monkeypatch) -> None:
    stored = small_teacher_data(small_recipe(images), monkeypatch)
    live_recipe = small_recipe(images, data__cache_gib=0.0)
    live = small_teacher_data(live_recipe, monkeypatch)
    assert stored.store is not None and live.store is None
    assert torch.allclose(stored.statistics.covariance, live.statistics.covariance, rtol=1e-4, atol=1e-5)
    first, kept = open_samples(live_recipe, live).next(), stored.store.gather(torch.arange(2))
    for mine, theirs in [
        (first.pixels, kept.pixels),
        (first.homographies, kept.homographies),
        (first.targets, kept.targets),
        (first.views.low, kept.views.low),
        (first.views.tiles[2], kept.views.tiles[2]),
    ]:
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-5)


def test_stored_samples_show_every_image_once_an_epoch(images, monkeypatch) -> None:
    recipe = small_recipe(images)
    teacher_data = small_teacher_data(recipe, monkeypatch)
    samples = open_samples(recipe, teacher_data)
    epochs = [torch.cat([samples.next().views.low for _ in range(3)]) for _ in range(2)]
    everything = teacher_data.store.gather(torch.arange(6)).views.low
    for epoch in epochs:
        matches = (epoch[:, None] == everything[None]).flatten(2).all(dim=2)
        assert matches.sum(dim=0).tolist() == [1] * 6
    assert not torch.equal(epochs[0], epochs[1])


def test_training_with_nothing_to_train_is_refused(images, monkeypatch) -> None:
    recipe = small_recipe(images, upsampler="bilinear", options={}, bias=False, downsampler={"name": "average"})
    with pytest.raises(UserError, match="nothing to train"):
        train_one(recipe, small_teacher_data(recipe, monkeypatch))


def test_every_parameter_is_in_exactly_one_group(images, monkeypatch) -> None:
    recipe = small_recipe(images)
    trainer = new_trainer(recipe, small_teacher_data(recipe, monkeypatch))
    optimiser = build_optimiser(trainer.adapter, trainer.downsampler, recipe.optim)
    grouped = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(trainer.parameters)
    assert set(grouped) == {id(parameter) for parameter in trainer.parameters}
    assert [group["peak"] for group in optimiser.param_groups] == [1e-3, 1e-2]


def test_schedule_and_clipping_as_published() -> None:
    optim = OptimNode(steps=1100, batch_size=1, lr=1.0, lr_guide=1.0)
    scales = [rate_scale(optim, step) for step in (0, 50, 100, 600, 1100)]
    assert scales == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])
    assert [clip_norm(optim, step) for step in (0, 9, 10)] == [1e-4, 1e-4, 5.0]


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, "this", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"value": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found: list[dict] = []
    assert checkpoints.restore(found.append) == 3 and found == [{"value": 3}]
    with pytest.raises(UserError, match="another recipe"):
        Checkpoints(tmp_path, "other", keep=2).restore(found.append)
    newest = tmp_path / "step-00000003" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    assert checkpoints.restore(found.append) == 2 and found[-1] == {"value": 2}
    assert "step-00000003 is damaged" in capsys.readouterr().err


def test_a_failure_while_writing_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "this", keep=2)
    checkpoints.save(1, {"value": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="No space left"):
            checkpoints.save(2, {"value": 2})
    (tmp_path / ".writing-step-00000002").mkdir()
    found: list[dict] = []
    assert checkpoints.restore(found.append) == 1 and found == [{"value": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_micro_batches_add_up_to_the_same_step(images, monkeypatch) -> None:
    norms = []
    for micro_batch in (None, 1):
        recipe = small_recipe(images, optim__micro_batch=micro_batch, downsampler={"name": "average"})
        trainer = new_trainer(recipe, teacher_data := small_teacher_data(recipe, monkeypatch))
        norms.append({k: float(v) for k, v in trainer.step(0, open_samples(recipe, teacher_data).next()).items()})
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_held_out_samples_that_do_not_fit_are_the_same_samples(images, monkeypatch) -> None:
    kept = small_teacher_data(small_recipe(images), monkeypatch).held_out
    made = small_teacher_data(small_recipe(images, data__cache_gib=0.0), monkeypatch).held_out
    assert type(kept) is not type(made)
    closed: list[bool] = []
    opened = made.open_stream

    def watched(batch_size: int) -> ImageStream:
        stream = opened(batch_size)
        close = stream.close
        stream.close = lambda: (closed.append(True), close())
        return stream

    made.open_stream = watched
    abandoned = made.in_order(1)
    next(abandoned)
    abandoned.close()
    assert closed == [True]  # its threads do not wait for ever
    for mine, theirs in zip(kept.in_order(3), made.in_order(3), strict=True):
        assert torch.equal(mine.pixels, theirs.pixels) and torch.allclose(mine.targets, theirs.targets, atol=1e-5)


def test_a_short_training_encodes_the_images_it_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    recipe = small_recipe(image_folder(tmp_path / "images"), optim__steps=2)
    data = small_teacher_data(recipe, monkeypatch)
    assert data.training.size == 4 and "see 4 of the 6 training images" in capsys.readouterr().out
    whole = small_recipe(tmp_path / "images", optim__steps=2, upsampler="ridge", options={})
    assert small_teacher_data(whole, monkeypatch).training.size == 6  # a closed form sees all
