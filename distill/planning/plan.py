"""What a recipe asks for, counted before anything is trained: parameters, operations, memory and GPU-hours."""

from dataclasses import dataclass
from statistics import fmean

from torch import nn

from common.errors import UserError
from common.torch_internals import FakeTensorMode
from distill.planning.costs import Counter, PassCost, PlannedTeacher, build_student
from distill.planning.counting import as_fake
from distill.planning.gpus import Gpu
from distill.recipe import Recipe
from distill.schedule import Pass, Stage, schedule
from distill.targets.target_upsampler import adapter_dtype
from distill.targets.targets import head_spec
from distill.training.data import Role, roles

TERA = 1e12
#: Numbers in the flat buffer through which each ZeRO stage reduces gradients, by DeepSpeed's default.
ZERO_BUCKET = 500_000_000


@dataclass(frozen=True)
class RoleCost:
    """A pass of a stage and what it costs the process that does it, at each of the sizes that are drawn.

    sizes: of a micro-batch, of which a step has `pieces`.
    """

    role: Role
    sizes: list[PassCost]
    pieces: int = 1

    @property
    def part(self) -> Pass:
        """The pass itself."""
        return self.role.part

    @property
    def largest(self) -> PassCost:
        """At the size that takes the most memory."""
        return max(self.sizes, key=lambda cost: cost.peak)

    @property
    def student(self) -> float:
        """FLOPs of the student in a step, mean over sizes: each is drawn as often."""
        return self.pieces * fmean(cost.student.flops for cost in self.sizes)

    @property
    def teachers(self) -> dict[str, float]:
        """FLOPs of every teacher's forward passes, mean over sizes."""
        return {name: self.pieces * fmean(cost.teachers[name] for cost in self.sizes) for name in self.part.teachers}

    @property
    def adapters(self) -> dict[str, float]:
        """FLOPs of what is between every teacher and its target, mean over sizes."""
        return {name: self.pieces * fmean(cost.adapters[name] for cost in self.sizes) for name in self.part.teachers}


@dataclass(frozen=True)
class StageCost:
    """A stage and its passes."""

    stage: Stage
    passes: list[RoleCost]

    def peak(self, share: float = 1.0) -> float:
        """Most bytes that a process has in use beside weights and gradients.

        Passes that one process does after each other are gone back through together, so what the first ones hold for
        that stays. share: of these images, as on 1/share times the GPUs; the teachers work in chunks, whatever it is.
        """
        most, held = 0.0, 0.0
        for each in self.passes:
            worst = each.largest
            now = max(worst.peak_teachers, share * (worst.targets + worst.student.peak))
            most = max(most, now if self.stage.by_ranks else held + now)
            held += share * max(cost.held for cost in each.sizes)
        return most


class Plan:
    """The costs of a recipe on `gpus` GPUs. bf16: as on a GPU that has it; else fp32, as on a CPU."""

    def __init__(self, recipe: Recipe, gpus: int, *, bf16: bool = True) -> None:
        if gpus < 1:
            raise UserError(f"a plan needs at least one GPU, got {gpus}")
        self.recipe, self.gpus = recipe, gpus
        self.bf16 = bf16 and recipe.engine.precision != "fp32"
        stages = schedule(recipe)
        done = [_roles(stage, gpus) for stage in stages]  # what does not divide is said before anything is built
        nodes = {
            name: [p.teachers[name] for s in stages for p in s.passes if name in p.teachers] for name in recipe.teachers
        }
        self.teachers = {
            name: PlannedTeacher(name, node, nodes[name], self.bf16) for name, node in recipe.teachers.items()
        }
        heads = {name: head_spec(name, nodes[name], teacher.spec) for name, teacher in self.teachers.items()}
        self.heads = heads
        self.student = build_student(recipe.student, recipe.data.size, heads, bf16=self.bf16)
        self.student.vit.set_grad_checkpointing(recipe.engine.checkpointing)
        self.counter = Counter(recipe, self.teachers, self.student)
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fakes:
            as_fake(self.student)
            self.stages = [
                StageCost(stage, [RoleCost(role, self._sizes(role), self.pieces) for role in roles_of])
                for stage, roles_of in zip(stages, done, strict=True)
            ]

    def _sizes(self, role: Role) -> list[PassCost]:
        sizes = sorted(set(role.part.sizes))
        return [self.counter.count(role.part, size, role.batch_size // self.pieces) for size in sizes]

    @property
    def pieces(self) -> int:
        """Micro-batches of a step."""
        return self.recipe.optim.accumulate

    @property
    def parameters(self) -> int:
        """Of the student."""
        return sum(parameter.numel() for parameter in self.student.parameters())

    @property
    def largest_layer(self) -> int:
        """Parameters of the student's largest module: what ZeRO-3 has to gather at once."""
        return max(sum(p.numel() for p in module.parameters(recurse=False)) for module in self.student.modules())

    def state_bytes(self, zero: int, gpus: int | None = None) -> float:
        """Weights, their moving average, gradients and two moments on a GPU, all fp32, and the buffers of the engine.

        zero: DeepSpeed's stage, 0 without it. Without it several processes hold every gradient twice, for
        DistributedDataParallel's buckets are copies; with it there is one more copy of the weights to update.
        """
        count, gpus = self.parameters, gpus or self.gpus
        average = 0 if self.recipe.ema.decay is None else 4
        if zero == 0:
            return (average + (16 if gpus == 1 else 20)) * count
        whole, shared = {1: (8, 12), 2: (4, 16), 3: (0, 20)}[zero]
        gathered = 4 * self.largest_layer if zero == 3 else 0
        return (average + whole) * count + shared * count / gpus + gathered + 4 * ZERO_BUCKET

    @property
    def saved_bytes(self) -> float:
        """Of a checkpoint: weights, their moving average and two moments. It is copied to the host's memory first."""
        return (12 if self.recipe.ema.decay is None else 16) * self.parameters

    @property
    def teacher_bytes(self) -> int:
        """Weights of all teachers and of what sharpens them, as held on every GPU; zero3 leaves each its share."""
        whole = sum(teacher.bytes for teacher in self.teachers.values())
        return -(-whole // self.gpus) if self.recipe.engine.teachers == "zero3" else whole

    def worst(self, share: float = 1.0) -> StageCost:
        """The stage that needs the most memory."""
        return max(self.stages, key=lambda stage: stage.peak(share))

    def bytes_on_a_gpu(self, zero: int, gpus: int | None = None) -> float:
        """The most that a process holds at once, over all stages; on another number of GPUs, about."""
        share = self.gpus / (gpus or self.gpus)
        return self.teacher_bytes + self.worst(share).peak(share) + self.state_bytes(zero, gpus)

    def accumulating(self, zero: int, pieces: int) -> float:
        """`bytes_on_a_gpu`, about, with `optim.accumulate` times `pieces`: fewer images at once, chunks as they are."""
        share = 1 / pieces
        return self.teacher_bytes + self.worst(share).peak(share) + self.state_bytes(zero)

    def divides_into(self, pieces: int) -> bool:
        """Whether every micro-batch can be cut into so many."""
        return all(cost.images % pieces == 0 for stage in self.stages for one in stage.passes for cost in one.sizes)

    def checkpointed(self, zero: int) -> float:
        """`bytes_on_a_gpu` if the student's activations were computed again in the backward pass."""
        self.student.vit.set_grad_checkpointing(True)
        again = self.counter.anew()
        worst = self.worst()
        with self._fakes:
            passes = [
                RoleCost(
                    each.role, [again.count(each.part, cost.size, cost.images) for cost in each.sizes], each.pieces
                )
                for each in worst.passes
            ]
        self.student.vit.set_grad_checkpointing(self.recipe.engine.checkpointing)
        return self.teacher_bytes + StageCost(worst.stage, passes).peak() + self.state_bytes(zero)

    def seconds(self, stage: StageCost, gpu: Gpu, share: float) -> tuple[float, float, float]:
        """Of a step of a stage, every process busy: (student, teachers, adapters)."""
        rate = (gpu.bf16 if self.bf16 else gpu.fp32) * TERA * share
        each = [
            (
                one.student / rate,
                sum(one.teachers.values()) / rate,
                sum(
                    flops / ((gpu.bf16 if adapter_dtype(one.part.teachers[name]) else gpu.fp32) * TERA * share)
                    for name, flops in one.adapters.items()
                ),
            )
            for one in stage.passes
        ]
        if stage.stage.by_ranks:  # a process does one of the passes; the slowest decides
            return max(each, key=sum)
        student, teachers, adapters = (sum(column) for column in zip(*each, strict=True))
        return student, teachers, adapters

    def hours(self, stage: StageCost, gpu: Gpu, share: float) -> float:
        """Wall-clock hours of a stage."""
        return stage.stage.steps * sum(self.seconds(stage, gpu, share)) / 3600

    def fitting_hours(self, gpu: Gpu, share: float) -> float:
        """Wall-clock hours until PHI-S is known: the teachers look at the first stage's images."""
        return self.recipe.normaliser.batches * self.seconds(self.stages[0], gpu, share)[1] / 3600


def _roles(stage: Stage, gpus: int) -> list[Role]:
    """What the processes do in a stage; each pass once."""
    found = {role.part.partition: role for rank in range(gpus) for role in roles(stage, rank, gpus)}
    return list(found.values())


def deepspeed_estimate(plan: Plan, zero: int) -> int | None:
    """DeepSpeed's own estimator of a GPU's states, for 16-bit weights; None for the stages it has none for."""
    if zero < 2:
        return None
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    if zero == 2:
        return int(estimate_zero2_model_states_mem_needs(plan.parameters, plan.gpus, 1, cpu_offload=False)[1])
    return int(
        estimate_zero3_model_states_mem_needs(
            plan.parameters, plan.largest_layer, plan.gpus, 1, cpu_offload=False, cpu_offload_params=False
        )[1]
    )


def count_parameters(*modules: nn.Module) -> int:
    """Numbers that modules learn."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
