"""Probe3D's heads, losses and schedule against slow twins; labels are learnt from an oracle and not from a constant."""

import math
from pathlib import Path

import layout_fixtures as make
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_readers_layouts import opened
from toy_world import Constant, Dumb, Oracle, ToyBackbone, ToyData, probed

from common.errors import UserError
from eval_suite.features import ProbedBackbone
from eval_suite.probes import long_training
from eval_suite.probes.dpt import DepthBins, make_head
from eval_suite.probes.long_training import KeptState, ahead
from eval_suite.probes.probe3d_dense import Probe3dDepthProbe, Probe3dNormalsProbe, augmented, rate
from eval_suite.probes.probe3d_losses import depth_loss, gradient_loss, normal_loss, sig_log
from teachers.contracts import BackboneSpec, Features


class Layered:
    """Gives a backbone inner layers: its last map, stronger from block to block."""

    num_blocks = 4
    strength = 20.0  #: of the last; the published learning rate is made for features of many channels

    def intermediate(self, images: torch.Tensor, blocks: list[int]) -> list[torch.Tensor]:
        return [self.strength * (1 + block) / 4 * self(images).spatial for block in blocks]  # type: ignore[operator]


class LayeredOracle(Layered, Oracle):
    pass


class LayeredConstant(Layered, Constant):
    pass


def depth_probe(**fields: object) -> Probe3dDepthProbe:
    given = {"protocol": "probe3d-dpt", "epochs": 30, "hidden": 24, "augment": "none", **fields}
    return Probe3dDepthProbe(probe="probe3d_depth", name="depth", data="toy", **given)


def normals_probe(**fields: object) -> Probe3dNormalsProbe:
    given = {"protocol": "probe3d-dpt", "epochs": 30, "hidden": 24, "augment": "none", **fields}
    return Probe3dNormalsProbe(probe="probe3d_normals", name="normals", data="toy", **given)


def values_of(results: list) -> dict[str, float]:
    return {result.metric: result.value for result in results}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["probe3d-dpt", "probe3d-multiscale"])
def test_depth_of_an_oracle_and_of_a_constant(protocol: str) -> None:
    task = depth_probe(protocol=protocol, epochs=60)
    best, worst = (values_of(task.run(probed(b), ToyData(), 0)) for b in (LayeredOracle(), LayeredConstant()))
    assert best["d1"] > 97 and best["si_d1"] > 97 and best["rmse"] < 0.3 and best["si_rmse"] < 0.3
    assert worst["d1"] < 60 and worst["rmse"] > 0.8 and worst["si_rmse"] > 0.8


def test_depth_order_of_an_oracle_and_of_a_constant() -> None:
    """In a few seconds the linear head learns which is farther; how far in metres takes the slow tests' training."""
    task = depth_probe(protocol="probe3d-linear", hidden=None, kernel=1, epochs=20, metrics=("si_d1", "si_rmse"))
    best, worst = (values_of(task.run(probed(b), ToyData(32, 8), 0)) for b in (LayeredOracle(), LayeredConstant()))
    assert best["si_d1"] > 80 and best["si_rmse"] < 0.4, best
    assert worst["si_d1"] < 60 and worst["si_rmse"] > 0.8, worst


@pytest.mark.slow
def test_normals_of_an_oracle_and_of_a_constant() -> None:
    best, worst = (
        values_of(normals_probe().run(probed(b), ToyData(), 0)) for b in (LayeredOracle(), LayeredConstant())
    )
    assert best["recall_11.25"] > 97 and best["rmse"] < 8
    assert worst["recall_11.25"] < 10 and worst["rmse"] > 35


def test_results_names_directions_and_protocol() -> None:
    results = depth_probe(epochs=1, hidden=4).run(probed(LayeredOracle()), ToyData(8, 8), 0)
    assert {result.metric: result.higher_is_better for result in results} == {
        "d1": True, "d2": True, "d3": True, "rmse": False,
        "si_d1": True, "si_d2": True, "si_d3": True, "si_rmse": False,
    }  # fmt: skip
    assert results[0].protocol == "probe3d-dpt (epochs=1, hidden=4, augment=none)" and results[0].n == 8
    plain = Probe3dNormalsProbe(probe="probe3d_normals", name="normals", data="toy")
    assert plain.named_protocol == "probe3d-dpt"
    found = normals_probe(epochs=1, hidden=4, metrics=("recall_11.25",)).run(probed(LayeredOracle()), ToyData(8, 8), 0)
    assert [result.metric for result in found] == ["recall_11.25"]
    with pytest.raises(UserError, match="no inner layers"):
        depth_probe().run(probed(Dumb()), ToyData(8, 4), 0)


@pytest.mark.parametrize(("kind", "factor"), [("dpt", 16), ("linear", 4), ("multiscale", 8)])
def test_heads_have_the_published_sizes(kind: str, factor: int) -> None:
    head = make_head(kind, 12, 5, hidden=8)
    layers = list(torch.randn(4, 2, 12, 3, 5).unbind(0))
    assert head(layers).shape == (2, 5, 3 * factor, 5 * factor)
    changed = [layer.clone() for layer in layers]
    for at in range(4):  # every layer counts
        changed[at] = changed[at] + 1
        assert not torch.allclose(head(changed), head(layers), atol=1e-5)


def test_dpt_is_what_it_says_step_by_step() -> None:
    """The forward pass written out with functional calls only."""
    head = make_head("dpt", 6, 4, hidden=8)
    layers = list(torch.randn(4, 1, 6, 3, 4).unbind(0))
    up = lambda values, by: F.interpolate(values, scale_factor=by, mode="bilinear", align_corners=True)  # noqa: E731
    weights = dict(head.named_parameters())

    def unit(values: torch.Tensor, name: str) -> torch.Tensor:
        hidden = F.relu(F.conv2d(values, weights[f"{name}.body.0.weight"], weights[f"{name}.body.0.bias"], padding=1))
        return values + F.relu(
            F.conv2d(hidden, weights[f"{name}.body.2.weight"], weights[f"{name}.body.2.bias"], padding=1)
        )

    maps = [
        up(F.conv2d(layer, weights[f"reduce.{at}.weight"], weights[f"reduce.{at}.bias"]), 2)
        for at, layer in enumerate(layers)
    ]
    running = unit(maps[3], "fuse.3.after")
    for at in (2, 1, 0):
        running = unit(unit(maps[at], f"fuse.{at}.before") + running, f"fuse.{at}.after")
    hidden = F.relu(F.conv2d(up(running, 4), weights["out.0.weight"], weights["out.0.bias"], padding=1))
    expected = up(F.conv2d(hidden, weights["out.2.weight"], weights["out.2.bias"], padding=1), 2)
    assert torch.allclose(head(layers), expected, atol=1e-6)


def test_depth_bins_are_a_mean_over_even_depths() -> None:
    logits = torch.randn(2, 256, 3, 4)
    depths = np.linspace(0.001, 10, 256)
    weight = logits.clamp(min=0).double() + 0.1
    expected = (weight * torch.from_numpy(depths).view(1, -1, 1, 1)).sum(1) / weight.sum(1)
    assert torch.allclose(DepthBins(0.001, 10.0)(logits)[:, 0].double(), expected, atol=1e-4)


def test_depth_losses_agree_with_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, depth = (0.5 + 4 * torch.rand(2, 2, 13, 17, generator=generator, dtype=torch.float64)).unbind(0)
    depth[torch.rand(depth.shape, generator=generator) < 0.3] = 0
    gaps = {
        (b, y, x): math.log(float(predicted[b, y, x]) + 1e-3) - math.log(float(depth[b, y, x]) + 1e-3)
        for b in range(2) for y in range(13) for x in range(17) if depth[b, y, x] > 0
    }  # fmt: skip
    flat = np.array(list(gaps.values()))
    assert float(sig_log(predicted, depth)) == pytest.approx(math.sqrt((flat**2).mean() - 0.85 * flat.mean() ** 2))
    expected = 0.0
    for stride in (1, 2, 4, 6):
        kept = {
            (b, y // stride, x // stride): g for (b, y, x), g in gaps.items() if y % stride == 0 and x % stride == 0
        }
        total = sum(
            abs(g - kept[b, y + dy, x + dx])
            for (b, y, x), g in kept.items() for dy, dx in ((2, 0), (0, 2)) if (b, y + dy, x + dx) in kept
        )  # fmt: skip
        expected += total / len(kept)
    assert float(gradient_loss(predicted, depth)) == pytest.approx(expected)
    assert float(depth_loss(predicted, depth)) == pytest.approx(10 * float(sig_log(predicted, depth)) + 0.5 * expected)
    assert float(sig_log(3 * predicted, predicted)) == pytest.approx(math.log(3) * 0.15**0.5, rel=1e-2)
    nothing = depth_loss(predicted.requires_grad_(), torch.zeros_like(depth))
    nothing.backward()
    assert float(nothing.detach()) == 0 and bool(torch.isfinite(predicted.grad).all())


def test_normal_loss_agrees_with_a_loop_and_rewards_certainty_only_where_right() -> None:
    generator = torch.Generator().manual_seed(1)
    answer = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    truth = F.normalize(torch.randn(2, 3, 3, 5, generator=generator, dtype=torch.float64), dim=1)
    truth[:, :, 0] = 0
    losses = []
    for b in range(2):
        for y in range(1, 3):
            for x in range(5):
                ours, n = answer[b, :3, y, x], truth[b, :, y, x]
                k = float(answer[b, 3, y, x])
                kappa = (k if k > 0 else math.exp(k) - 1) + 1.01
                angle = math.acos(max(-1 + 1e-4, min(1 - 1e-4, float(ours @ n / ours.norm()))))
                losses.append(math.log(1 + math.exp(-kappa * math.pi)) - math.log(kappa**2 + 1) + kappa * angle)
    assert float(normal_loss(answer, truth)) == pytest.approx(np.mean(losses))
    right, wrong = (
        torch.cat([truth, torch.full((2, 1, 3, 5), 3.0)], 1),
        torch.cat([-truth, torch.full((2, 1, 3, 5), 3.0)], 1),
    )
    unsure = torch.cat([-truth, torch.full((2, 1, 3, 5), -3.0)], 1)
    assert normal_loss(right, truth) < normal_loss(unsure, truth) < normal_loss(wrong, truth)


def test_learning_rate_is_a_warm_up_and_a_quarter_cosine() -> None:
    assert rate(0, 100, 10) == pytest.approx(0.01) and rate(150, 100, 10) == pytest.approx(1.0)
    middle = 150 + (1000 - 150) // 2
    assert rate(middle, 100, 10) == pytest.approx(0.99 * math.cos(math.pi / 4) + 0.01, abs=2e-3)
    assert rate(999, 100, 10) == pytest.approx(0.01, abs=3e-3)
    assert rate(75, 100, 10) == pytest.approx(0.01 + 0.99 / 2)


def test_augmentation_moves_picture_and_label_together_and_is_seeded() -> None:
    depth = (
        torch.rand(6, 16, 16, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(4, 1)
        .repeat_interleave(4, 2)
    )
    pictures = depth[:, None].repeat(1, 3, 1, 1)
    moved = 0
    for seed in range(6):
        shown, known = augmented(pictures, depth, "colour_crop", torch.Generator().manual_seed(seed))
        again, _ = augmented(pictures, depth, "colour_crop", torch.Generator().manual_seed(seed))
        assert torch.equal(shown, again) and shown.shape == pictures.shape and known.shape == depth.shape
        for picture, label, before in zip(shown, known, depth, strict=True):
            moved += int(not torch.equal(label, before))
            order = torch.corrcoef(torch.stack([picture.mean(0).flatten(), label.flatten()]))[0, 1]
            assert float(order) > 0.95  # colours change, places do not come apart
    assert 8 < moved < 28  # every other of 36
    _, still = augmented(pictures, depth, "colour", torch.Generator().manual_seed(0))
    assert torch.equal(still, depth)
    vectors = torch.rand(6, 3, 64, 64)
    assert augmented(pictures, vectors, "colour_crop", torch.Generator().manual_seed(0))[1].shape == vectors.shape


class Shades(Layered, ToyBackbone):
    """Mean colours of patches of 8 pixels, any size."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        ones = (1.0, 1.0, 1.0)
        self.spec = BackboneSpec("shades", "test", 8, 3, None, (32, 32), True, ones, ones, "none", "test", "sha256:2")

    def forward(self, images: torch.Tensor) -> Features:
        return Features(None, F.avg_pool2d(images, 8))


class Stopping(Shades):
    """Fails after some forward passes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def intermediate(self, images: torch.Tensor, blocks: list[int]) -> list[torch.Tensor]:
        self.most -= 1
        if self.most < 0:
            raise KeyboardInterrupt
        return super().intermediate(images, blocks)


def test_training_goes_on_at_the_last_whole_epoch(tmp_path: Path) -> None:
    task = depth_probe(protocol="probe3d-linear", hidden=None, epochs=3, augment="colour_crop")
    data = ToyData(16, 4)
    whole = values_of(task.run(probed(Shades()), data, 0))
    with pytest.raises(KeyboardInterrupt):
        task.run(ProbedBackbone(Stopping(5), cache=tmp_path), data, 0)  # two steps an epoch, so in the third
    going_on = Stopping(2 + 1)  # what is left: one epoch, and the test
    assert values_of(task.run(ProbedBackbone(going_on, cache=tmp_path), data, 0)) == whole
    damaged = next((tmp_path / "training").rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert values_of(task.run(ProbedBackbone(Shades(), cache=tmp_path), data, 0)) == whole
    other = Stopping(100)
    task.run(ProbedBackbone(other, cache=tmp_path), data, 1)
    assert other.most == 100 - 6 - 1  # another seed starts from the beginning


def test_state_is_kept_nowhere_without_a_folder() -> None:
    state = KeptState(None, {"a": 1})
    state.save({"x": torch.ones(1)})
    assert state.load() is None and state.store is None


def test_reading_ahead_keeps_the_order_and_hands_errors_on() -> None:
    assert list(ahead(lambda n: n * n, range(20))) == [n * n for n in range(20)]

    def poor(number: int) -> int:
        if number == 5:
            raise UserError("number five is missing")
        return number

    with pytest.raises(UserError, match="number five"):
        list(ahead(poor, range(20)))
    assert long_training.READERS > 1


@pytest.mark.parametrize("reader", ["nyu_probe3d", "navi"])
def test_both_tasks_on_the_published_layouts(tmp_path: Path, reader: str) -> None:
    fixture = make.nyu_probe3d if reader == "nyu_probe3d" else make.navi
    data = opened(reader, fixture(tmp_path), size=48)
    how = {"epochs": 1, "batch": 2, "hidden": 4, "augment": "colour_crop" if reader == "nyu_probe3d" else "colour"}
    farthest = 10.0 if reader == "nyu_probe3d" else 1.0
    depth = depth_probe(**how, farthest=farthest).run(probed(Shades()), data, 0)
    normals = normals_probe(**how).run(probed(Shades()), data, 0)
    assert len(depth) == 8 and len(normals) == 4
    assert all(0 <= result.value <= 180 for result in depth + normals)
