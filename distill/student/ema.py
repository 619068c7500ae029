"""The student's own moving average (EMA), and the loss that draws the student to it (MESA).

The average is a student of its own on every process, never trained, in evaluation mode; it takes a step after each
update of the student. Under ZeRO-3 the student's weights are gathered for that step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from distill.student.model import Student


class MovingAverage:
    """average <- decay * average + (1 - decay) * student, over parameters; buffers are the student's.

    Starts as the student is now: make it before the student goes on its engine.
    """

    def __init__(self, student: Student, decay: float, device: torch.device) -> None:
        self._student = student
        self._average = ModelEmaV3(student.to(device), decay=decay, exclude_buffers=True)
        self._average.requires_grad_(False)

    @property
    def net(self) -> Student:
        """The averaged student."""
        found: Student = self._average.module
        return found

    def update(self) -> None:
        """A step towards the student as it is now; all processes must call it."""
        with gathered_weights(self._student):
            self._average.update(self._student)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> the averaged student's own map [B, D, h, w]."""
        with self.net.autocast(images):
            return self.net.tokens(images)[1]

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged student's state, on the CPU, each tensor with memory of its own."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        self.net.load_state_dict(state)


class NoAverage:
    """In place of the average where operations are counted: the student itself is asked what MESA asks the average."""

    def __init__(self, student: Student) -> None:
        self.student = student

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """As the average's: in evaluation mode, where nothing is drawn and no window is set for training."""
        training = self.student.training
        self.student.eval()
        with self.student.autocast(images):
            found = self.student.tokens(images)[1]
        self.student.train(training)
        return found


@contextmanager
def gathered_weights(student: Student) -> Iterator[None]:
    """Inside, every process has all of the student's weights, however DeepSpeed has split them."""
    split = [parameter for parameter in student.parameters() if hasattr(parameter, "ds_id")]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        yield


def mesa(student: Tensor, average: Tensor) -> Tensor:
    """Squared distance of two maps [B, D, h, w] at every position -> [B, h, w], mean over D.

    Each token is first normalised over D, without scale and shift (C-RADIOv4, arXiv 2601.17237, equation 2).
    """
    ours, theirs = (F.layer_norm(maps.float().movedim(1, -1), maps.shape[1:2]) for maps in (student, average))
    return (ours - theirs).square().mean(-1)
