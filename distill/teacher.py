"""Loading a teacher so that the same node is always the same teacher."""

from collections.abc import Mapping
from typing import Any

import torch

from teachers.contracts import Backbone
from teachers.registry import load_backbone

SEED = 0


def load_teacher(node: str | Mapping[str, Any]) -> Backbone:
    """`load_backbone`, with the random numbers fixed around it and untouched by it.

    A debug recipe's teachers have random weights; what trained the student, what is drawn and what is probed must be
    one and the same network, in whatever process and order it is loaded.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return load_backbone(node)
