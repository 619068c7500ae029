"""Trackers of numbers and pictures, by Accelerate's names, and which of them are installed."""

from collections.abc import Iterable

from accelerate.utils import is_tensorboard_available, is_wandb_available

from common.errors import UserError

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def missing_trackers(asked: Iterable[str]) -> list[str]:
    """In words, those that are asked for and not installed; Accelerate would leave them out in silence."""
    absent = [name for name in asked if not TRACKERS[name]()]
    return [f"log.trackers: {name} is not installed; pip install {name}" for name in absent]


def refuse_missing_trackers(asked: Iterable[str]) -> None:
    """UserError for the first of them."""
    for said in missing_trackers(asked):
        raise UserError(said)
