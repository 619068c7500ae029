"""The images of every step: one endless stream for each partition, which goes on from stage to stage.

A partition keeps its place in the data when the stage, and with it its batch or its size, changes. Streams of different
partitions walk through the same images in orders of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError
from common.keyed_random import mix
from distill.losses.shift_equivariance import margin
from distill.recipe import Recipe
from distill.schedule import Grid, Pass, Stage, schedule, stage_at, student_patch
from imagery.contracts import SequentialSource, Source
from imagery.mixture import Mixture
from imagery.stream import Batch, ImageStream, to_float

_PARTITION = 0x9A87  # keeps these random numbers apart from the other uses of a seed


@dataclass(frozen=True)
class Role:
    """A pass that this process does, as number `rank` of `world` that do it, on `batch_size` images of its own.

    scale: what its mean loss is multiplied by, so that the mean over all processes is the step's loss: the pass's
    share, and where other processes do other passes, how much rarer it is than all of them.
    """

    part: Pass
    rank: int
    world: int
    batch_size: int
    scale: float


#: The uint8 images [b, 3, H, W] of a pass of a step, as they come from the stream.
RawBatch = tuple[Role, Tensor]


@dataclass(frozen=True)
class PassBatch:
    """The images [b, 3, H, W] in [0, 1] that this process shows in one pass of a step."""

    role: Role
    images: Tensor


def roles(stage: Stage, rank: int, world: int) -> list[Role]:
    """What a process does in the steps of a stage: every pass, or, split by ranks, the pass of its block of ranks.

    UserError when a batch, or the processes, cannot be divided like that.
    """
    if not stage.by_ranks:
        return [Role(part, rank, world, _local(part, world), part.share) for part in stage.passes]
    whole = sum(part.ranks for part in stage.passes)
    if world % whole:
        shares = ", ".join(f"{part.partition} {part.ranks}" for part in stage.passes)
        raise UserError(
            f"stage {stage.name} splits its partitions over the processes ({shares}), which needs a multiple of "
            f"{whole}, and there are {world}; use stages.{stage.name}.split: step"
        )
    first = 0
    for part in stage.passes:
        count = world // whole * part.ranks
        if first <= rank < first + count:
            return [Role(part, rank - first, count, _local(part, count), part.share * world / count)]
        first += count
    raise ValueError(f"rank {rank} is not in 0..{world - 1}")


def refuse_uneven(role: Role, accumulate: int) -> None:
    """UserError when a process's images of a pass do not divide into micro-batches of equal size."""
    if role.batch_size % accumulate:
        raise UserError(
            f"partition {role.part.partition} of stage {role.part.stage}: the {role.batch_size} images of a process do "
            f"not divide into optim.accumulate: {accumulate} micro-batches"
        )


def _local(part: Pass, world: int) -> int:
    if part.batch_size % world:
        where = f"partition {part.partition} of stage {part.stage}"
        raise UserError(f"{where}: batch_size {part.batch_size} does not divide over {world} processes")
    return part.batch_size // world


class Streams:
    """The streams of one process. `take(step)` gives the images of update `step`; steps come in rising order."""

    def __init__(self, recipe: Recipe, source: Source | SequentialSource | Mixture, rank: int, world: int) -> None:
        self.recipe, self.source, self.rank, self.world = recipe, source, rank, world
        self.stages = schedule(recipe)
        for stage in self.stages:  # what does not divide is said now, not in the middle of the night
            for role in roles(stage, rank, world):
                refuse_uneven(role, recipe.optim.accumulate)
        self._names = list(dict.fromkeys(part.partition for stage in self.stages for part in stage.passes))
        self._states: dict[str, Any] = {}  # where partitions stood that no stream of ours is at now
        self._open: dict[str, tuple[Role, ImageStream]] = {}
        self._keys: dict[int, dict[str, list[str]]] = {}  # of the last two steps: names of the images, by partition
        self.stage = self.stages[0]
        self._start(self.stage)

    def take(self, step: int) -> list[RawBatch]:
        """The uint8 images [b, 3, H, W] of every pass of update `step` (0, 1, ...) that this process does."""
        stage = stage_at(self.stages, step)
        if stage is not self.stage:
            self._move(stage)
        given = self._given()
        before = {known: keys for known, keys in self._keys.items() if known == step - 1}
        self._keys = before | {step: {role.part.partition: batch.keys for role, batch in given}}
        return [(role, batch.images) for role, batch in given]

    def names(self, step: int) -> dict[str, list[str]]:
        """By partition, the names of the images of update `step`: of the one last taken, or of the one before it."""
        return self._keys.get(step, {})

    def next(self) -> list[RawBatch]:
        """The next batch of every stream of the current stage, whatever the step."""
        return [(role, batch.images) for role, batch in self._given()]

    def state_dict(self) -> dict[str, Any]:
        """Where every partition stands; plain JSON types."""
        return {"stage": self.stage.name, "streams": self._all_states()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        if "streams" not in state:  # of a run from before there were stages: one stream
            state = {"stage": self.stages[0].name, "streams": {self._names[0]: state}}
        self.close()
        self._open = {}
        self._states = dict(state["streams"])
        self._start(next(stage for stage in self.stages if stage.name == state["stage"]))

    def report(self) -> dict[str, Any]:
        """What this process read so far, in every partition: images read, bad ones with reasons, unreadable parts."""
        counts = [state["counts"] for state in self._all_states().values()]
        mine = [each for each in counts if "read" in each]
        reasons = {key: reason for each in mine for key, reason in each["bad_reasons"].items()}
        return {
            "read": sum(each["read"] for each in mine),
            "bad": sum(each["bad"] for each in mine),
            "bad_keys": list(reasons),
            "bad_reasons": reasons,
            "problems": list(self.source.problems),
        }

    def close(self) -> None:
        """Stop the threads."""
        for _, stream in self._open.values():
            stream.close()

    def _given(self) -> list[tuple[Role, Batch]]:
        return [(role, next(stream)) for role, stream in self._open.values()]

    def _all_states(self) -> dict[str, Any]:
        return self._states | {name: stream.state_dict() for name, (_, stream) in self._open.items()}

    def _move(self, stage: Stage) -> None:
        """On to another stage. Where processes do different passes, one may need what another knows."""
        self._states = self._all_states()
        self.close()
        if self.stage.by_ranks or stage.by_ranks:
            self._states = with_own_counts(newest(gather_objects(self._states)), self._states)
        self._open = {}
        self._start(stage)

    def _start(self, stage: Stage) -> None:
        self.stage = stage
        for role in roles(stage, self.rank, self.world):
            name = role.part.partition
            stream = self._make(role)
            if name in self._states:
                state = self._states.pop(name)
                # What we hold was counted by us, though perhaps in another role: an ImageStream takes its own alone.
                if "counts" in state:
                    state = state | {"counts": state["counts"] | {"rank": role.rank, "world": role.world}}
                stream.load_state_dict(state)
            self._open[name] = (role, stream)

    def _make(self, role: Role) -> ImageStream:
        recipe, part = self.recipe, role.part
        index = self._names.index(part.partition)
        room = margin(recipe, student_patch(recipe.student))
        return ImageStream(
            self.source,
            batch_size=role.batch_size,
            height=part.sizes[0][0] + room,
            width=part.sizes[0][1] + room,
            size_at=lambda start: enlarged(part.size_at(recipe.seed, self._step_of(part, start)), room),
            seed=mix(recipe.seed, index, _PARTITION) if index else recipe.seed,
            rank=role.rank,
            world=role.world,
            augment=part.augment.build(),
            workers=recipe.data.workers,
            max_bad_share=recipe.data.max_bad_share,
            pin_memory=torch.cuda.is_available(),
        )

    def _step_of(self, part: Pass, start: int) -> int:
        """The update whose batch of this pass starts at global position `start` of its partition."""
        stage = next(stage for stage in self.stages if part in stage.passes)
        before = sum(
            earlier.steps * other.batch_size
            for earlier in self.stages
            if earlier.first < stage.first
            for other in earlier.passes
            if other.partition == part.partition
        )
        return stage.first + (start - before) // part.batch_size


def enlarged(size: Grid, room: int) -> Grid:
    """A size with `room` more pixels either way."""
    return size[0] + room, size[1] + room


def to_device(raw: Sequence[RawBatch], device: torch.device) -> list[PassBatch]:
    """The images on the device, as backbones take them."""
    return [PassBatch(role, to_float(images.to(device, non_blocking=True))) for role, images in raw]


def micro_batches(raw: Sequence[RawBatch], count: int) -> list[list[RawBatch]]:
    """The images of a step in `count` equal pieces, in order, each with a piece of every pass."""
    pieces = [[(role, piece) for piece in images.split(len(images) // count)] for role, images in raw]
    return [list(micro) for micro in zip(*pieces, strict=True)]


def newest(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every partition the state that is furthest: those who have left it remember where it was then."""
    found: dict[str, Any] = {}
    for state in states:
        for name, each in state.items():
            if name not in found or each["position"] > found[name]["position"]:
                found[name] = each
    return found


def state_of_all(states: Sequence[Mapping[str, Any]], *, keeps_counts: bool) -> dict[str, Any]:
    """The states of all processes as one, for another number of processes; one of these keeps what all have counted."""
    streams = newest([state["streams"] for state in states])
    for name in streams:
        counts = [each["streams"][name]["counts"] for each in states if name in each["streams"]]
        whole = merged_counts(counts if keeps_counts else [])
        streams[name] = streams[name] | {"counts": streams[name]["counts"] | whole}
    return {"stage": states[0]["stage"], "streams": streams}


def merged_counts(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several read, as one: images read, bad ones, and why."""
    reasons = {key: reason for each in counts for key, reason in each.get("bad_reasons", {}).items()}
    return {"read": _total(counts, "read"), "bad": _total(counts, "bad"), "bad_reasons": reasons}


def _total(counts: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(each.get(name, 0) for each in counts)


def with_own_counts(states: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The states with the counts of this process, which may be another one's: or images would be counted twice."""
    nothing = {"rank": -1, "world": -1, "read": 0, "bad": 0, "bad_reasons": {}}
    return {name: state | {"counts": own[name]["counts"] if name in own else nothing} for name, state in states.items()}


def gather_objects(value: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process gave, in order of rank; all must call it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts
