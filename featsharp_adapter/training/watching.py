"""What one sees of a training while it runs: log.jsonl, trackers, and pictures of held-out images now and then."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from common.jsonl import Log
from featsharp_adapter.adapter.adapter import Adapter
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.sharpening.pictures import save_panels, shared_basis, to_pictures
from featsharp_adapter.training.samples import Sample
from featsharp_adapter.upsamplers.simple import resize_features

#: Longest side of an image in a picture.
PIXELS = 224
CLASSES: dict[str, Any] = {"tensorboard": TensorBoardTracker, "wandb": WandBTracker}


class Watching:
    """Writes into the folder of a training; `held_out`: the images that are drawn, None for no pictures."""

    def __init__(self, folder: Path, recipe: AdapterRecipe, held_out: Sample | None) -> None:
        self.folder, self.held_out = folder, held_out
        self.log = Log(folder / "log.jsonl")
        self.trackers = [open_tracker(name, folder) for name in recipe.log.trackers]

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """One line of log.jsonl, and the same to the trackers."""
        self.log.write({"step": step, **values})
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    @torch.no_grad()
    def picture(self, step: int, adapter: Adapter) -> None:
        """FOLDER/pictures/step-N.png: the images, the teacher's maps, the same enlarged, and sharpened by now."""
        if self.held_out is None:
            return
        was_training = adapter.training
        adapter.eval()
        images, low = self.held_out.guidance(), adapter.denoise(self.held_out.views.low)
        maps = {"low resolution": low, "bilinear": resize_features(low, adapter.factor)}
        maps["sharpened"] = adapter(self.held_out.views, images)
        adapter.train(was_training)
        basis = shared_basis(maps)
        scale = min(1.0, PIXELS / max(images.shape[-2:]))
        size = (round(images.shape[-2] * scale), round(images.shape[-1] * scale))
        columns = {"image": to_pictures(images.cpu(), size)}
        columns |= {title: to_pictures(basis.paint(found), size) for title, found in maps.items()}
        save_panels(columns, self.folder / "pictures" / f"step-{step:08d}.png")
        rows = [np.concatenate(row, axis=1) for row in zip(*columns.values(), strict=True)]
        for tracker in self.trackers:
            shown = np.stack(rows) if isinstance(tracker, TensorBoardTracker) else rows
            tracker.log_images({"held-out": shown}, step=step, **_form(tracker))

    def close(self) -> None:
        """The training is over, or interrupted."""
        for tracker in self.trackers:
            tracker.finish()


def open_tracker(name: str, folder: Path) -> GeneralTracker:
    """One that writes into the folder of a training."""
    made = CLASSES[name]
    if made is TensorBoardTracker:
        tracker: GeneralTracker = made(folder.name, logging_dir=str(folder.parent))
    else:
        tracker = made(folder.name, dir=str(folder))
    tracker.start()
    return tracker


def _form(tracker: GeneralTracker) -> dict[str, str]:
    return {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
