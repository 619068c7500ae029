"""Sharp features for a segmentation head of your own: the same linear head on plain and on sharpened features.

    python examples/segmentation_head.py [--train 48 --test 24 --steps 200]

Images and labels are rendered scenes, so that nothing is downloaded; put your own tensors in their place.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agglomerate
from imagery.scenes.scene_set import SceneSet
from imagery.scenes.vocab import COARSE_BACKGROUNDS, COARSE_CLASSES
from teachers.contracts import Backbone, fit_images

CLASSES = len(COARSE_CLASSES)  # kinds of background, then kinds of objects


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """images [N, 3, 224, 224] in [0, 1] and classes [N, 224, 224]."""
    drawn = list(SceneSet(seed, count, 224, 224))
    images = torch.stack([torch.from_numpy(scene.rgb).permute(2, 0, 1).float() / 255 for scene in drawn])
    return images, torch.stack([torch.from_numpy(scene.kind).long() for scene in drawn if scene.kind is not None])


@torch.no_grad()
def features(backbone: Backbone, images: Tensor) -> Tensor:
    """[N, C, h, w], four images at a time."""
    return torch.cat([backbone(fit_images(piece, backbone.spec)).spatial for piece in images.split(4)])


def train_head(maps: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """A 1x1 convolution, trained on maps enlarged to the labels' size."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm2d(maps.shape[1]), nn.Conv2d(maps.shape[1], CLASSES, 1))
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for step in range(steps):
        rows = torch.arange(step * 8, step * 8 + 8) % len(maps)
        answer = F.interpolate(head(maps[rows]), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(answer, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head.eval()


@torch.no_grad()
def pixel_accuracy(head: nn.Module, maps: Tensor, labels: Tensor) -> float:
    """In per cent, over the objects' pixels."""
    answer = F.interpolate(head(maps), size=labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
    objects = labels >= len(COARSE_BACKGROUNDS)
    return float((answer == labels)[objects].float().mean() * 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("train", 48), ("test", 24), ("steps", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    known, asked = scenes(options.train, seed=1), scenes(options.test, seed=2)
    for title, backbone in (
        ("plain", agglomerate.load_backbone("tiny:clip").eval().requires_grad_(False)),
        ("sharpened 2x", agglomerate.sharpened("builtin:tiny-clip-featsharp-2x", fit="squash")),
    ):
        maps = features(backbone, known[0])
        head = train_head(maps, known[1], options.steps)
        accuracy = pixel_accuracy(head, features(backbone, asked[0]), asked[1])
        print(f"{title:13} {maps.shape[-2]}x{maps.shape[-1]} tokens: {accuracy:.1f} % of the objects' pixels right")


if __name__ == "__main__":
    main()
