"""Several processes that solve one adapter: each sums over its share of the images, and the sums are added up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from common.other_processes import in_words

PATIENCE = timedelta(hours=2)  #: one may be so much later than another with its share of the teacher's passes


@dataclass(frozen=True)
class Place:
    """Which of the processes this is."""

    rank: int = 0
    world: int = 1

    def share_of(self, images: int, batch: int) -> int:
        """How many of the stream's first `images` this process gets, when each takes `batch` of them in turn."""
        rounds, rest = divmod(images, batch * self.world)
        return rounds * batch + min(max(rest - self.rank * batch, 0), batch)


ALONE = Place()


def launched() -> int:
    """How many processes a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[Place]:
    """Join the processes that a launcher started (accelerate launch, torchrun), and leave them at the end.

    UserError where another of them ends, hangs or cannot be met.
    """
    if launched() < 2:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        yield Place(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        raise in_words(error, "What was summed is kept up to the last save (checkpoint.every)") or error from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
