"""What a recipe asks for, counted before anything is trained: parameters, operations, memory and GPU-hours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.costs import Counter, PassCost, PlannedTeacher, as_fake, build_student
from distill.recipe import Recipe
from distill.schedule import Stage, describe, schedule
from distill.streams import roles
from distill.student import Student
from distill.targets import head_spec
from teachers.errors import UserError, unknown

GIB = 2**30
TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """NVIDIA's data sheets: memory in GiB, dense TFLOPS in bf16 and in fp32 (which adapters use)."""

    title: str
    memory: float
    bf16: float
    fp32: float


GPUS = {
    "a100-40": Gpu("A100 40 GB", 39.5, 312, 19.5),
    "a100": Gpu("A100 80 GB", 79.2, 312, 19.5),
    "h100": Gpu("H100 SXM 80 GB", 79.2, 989, 67),
    "h200": Gpu("H200 141 GB", 139.8, 989, 67),
}
#: Of a GPU's memory: what tensors may take. The rest is the CUDA context, NCCL's buffers and fragmentation.
USABLE = 0.9


@dataclass(frozen=True)
class StageCost:
    """A stage, and what each of its passes costs the process that does it, at the largest size it draws."""

    stage: Stage
    passes: list[PassCost]


def find_gpu(name: str) -> Gpu:
    """By its name in the table; UserError with the names there are."""
    if name not in GPUS:
        raise unknown("GPU", name, GPUS)
    return GPUS[name]


class Plan:
    """The costs of a recipe on `gpus` GPUs, and their text. bf16: as on a GPU; else fp32, as on a CPU."""

    def __init__(self, recipe: Recipe, gpus: int, *, bf16: bool = True) -> None:
        self.recipe, self.gpus = recipe, gpus
        bf16 = bf16 and recipe.engine.precision != "fp32"
        stages = schedule(recipe)
        self.teachers = {name: PlannedTeacher(name, node, bf16) for name, node in recipe.teachers.items()}
        nodes = {
            name: [p.teachers[name] for s in stages for p in s.passes if name in p.teachers] for name in self.teachers
        }
        heads = {name: head_spec(name, nodes[name], teacher.spec) for name, teacher in self.teachers.items()}
        self.student = build_student(recipe.student, recipe.data.size, heads, bf16=bf16)
        self.student.vit.set_grad_checkpointing(recipe.engine.checkpointing)
        for part in parts:
            for name, node in part.teachers.items():
                self.teachers[name].sharpener(node)  # made out here, where tensors are what they seem
        self.counter = Counter(recipe, self.teachers, self.student)
        with FakeTensorMode():
            as_fake(self.student)
            self.stages = [StageCost(stage, self._passes(stage)) for stage in stages]

    def _passes(self, stage: Stage) -> list[PassCost]:
        found = []
        done = {role.part.partition: role for rank in range(self.gpus) for role in roles(stage, rank, self.gpus)}
        for role in done.values():
            size = max(role.part.sizes, key=lambda size: size[0] * size[1])
            found.append(self.counter.count(role.part, size, role.batch_size))
        return found

    def state_bytes(self, zero: int) -> float:
        """Weights, gradients and two moments on a GPU, all fp32; zero: DeepSpeed's stage, 0 without it.

        Without DeepSpeed several processes hold every gradient twice: DistributedDataParallel's buckets are copies.
        """
        count = sum(parameter.numel() for parameter in self.student.parameters())
        if zero == 0:
            return (16 if self.gpus == 1 else 20) * count
        whole, shared = {1: (8, 12), 2: (4, 16), 3: (0, 20)}[zero]
        largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in self.student.modules())
        return whole * count + shared * count / self.gpus + (4 * largest if zero == 3 else 0)

    def bytes_on_a_gpu(self, zero: int) -> float:
        """The most that a process holds at once, over all stages and passes."""
        teachers = sum(teacher.bytes for teacher in self.teachers.values())
        return teachers + max(cost.peak for stage in self.stages for cost in stage.passes) + self.state_bytes(zero)

    def hours(self, stage: StageCost, gpu: Gpu, share: float) -> tuple[float, float]:
        """Wall-clock hours of a stage, all processes busy: (teachers and student, adapters)."""
        seconds = adapters = 0.0
        for cost in stage.passes:
            weight = 1.0
            if stage.stage.by_ranks:  # a process does one of the passes; the slowest decides
                weight = 1.0 if cost is self._slowest(stage, gpu) else 0.0
            seconds += weight * (cost.student.flops + sum(cost.teachers.values())) / (gpu.bf16 * TERA * share)
            adapters += weight * sum(cost.adapters.values()) / (gpu.fp32 * TERA * share)
        return stage.stage.steps * seconds / 3600, stage.stage.steps * adapters / 3600

    def _slowest(self, stage: StageCost, gpu: Gpu) -> PassCost:
        return max(
            stage.passes,
            key=lambda cost: (
                (cost.student.flops + sum(cost.teachers.values())) / gpu.bf16 + sum(cost.adapters.values()) / gpu.fp32
            ),
        )


def plan(recipe: Recipe, gpu: Gpu, gpus: int, share: float) -> str:
    """The plan in words and tables; share: of a GPU's peak that is reached."""
    if gpus < 1 or not 0 < share <= 1:
        raise UserError("a plan needs at least one GPU and a share of its peak above 0 and at most 1")
    made = Plan(recipe, gpus)
    lines = [f"{recipe.name} on {gpus} x {gpu.title}, assuming {100 * share:.0f} % of its peak is reached", ""]
    lines += [*_models(made), ""]
    for stage in made.stages:
        lines += [*_stage(stage, made), ""]
    lines += [*_memory(made, gpu), ""]
    lines += _hours(made, gpu, share)
    return "\n".join(lines)


def _models(made: Plan) -> list[str]:
    student: Student = made.student
    lines = [
        f"student   {made.recipe.student.model}: {millions(student.vit.parameters())} M parameters, heads "
        f"{millions([*student.summary_heads.parameters(), *student.spatial_heads.parameters()])} M"
    ]
    for name, teacher in made.teachers.items():
        lines.append(f"teacher   {name} ({teacher.spec.name}): {teacher.parameters / 1e6:.2f} M parameters")
    return lines


def _stage(cost: StageCost, made: Plan) -> list[str]:
    """TFLOPs per image of every teacher's views, adapter, and the student."""
    lines = [f"stage {cost.stage.name}: {describe(cost.stage)}"]
    patch = made.student.vit.patch_embed.patch_size[0]
    for one in cost.passes:
        rows, columns = one.size[0] // patch, one.size[1] // patch
        per_image = one.student.flops / one.images / TERA
        lines.append(
            f"  {one.part.partition}: student {rows} x {columns} tokens, {per_image:.4g} TFLOPs an image with backward"
        )
        for name, flops in one.teachers.items():
            node, spec = one.part.teachers[name], made.teachers[name].spec
            seen = " + ".join(
                f"{count / one.images:g} x {what} of {size[0] // spec.patch_size} x {size[1] // spec.patch_size} tokens"
                for what, size, count in one.forwards[name]
            )
            adapter = one.adapters[name] / one.images / TERA
            grid = one.grids[name]
            lines.append(
                f"    {name}: {seen} an image, {flops / one.images / TERA:.4g} TFLOPs; {node.upsampler} "
                f"{adapter:.3g} TFLOPs; target {grid[0]} x {grid[1]}"
            )
    return lines


def _memory(made: Plan, gpu: Gpu) -> list[str]:
    teachers = sum(teacher.bytes for teacher in made.teachers.values()) / GIB
    worst = max((cost for stage in made.stages for cost in stage.passes), key=lambda cost: cost.peak)
    room = USABLE * gpu.memory
    lines = [
        f"memory of a GPU, GiB: teachers' weights {teachers:.1f}; in the worst pass ({worst.part.stage}, "
        f"{worst.part.partition}, {worst.images} images) the teachers work in {worst.peak_teachers / GIB:.1f}, the "
        f"student in {worst.student.peak / GIB:.1f} beside targets of {worst.targets / GIB:.1f}",
        f"  {'':14s} {'states':>8s} {'DeepSpeed says':>15s} {'in all':>8s}   of {room:.0f} usable",
    ]
    fits = []
    for zero in (0, 1, 2, 3):
        whole = made.bytes_on_a_gpu(zero) / GIB
        fits += [zero] if whole <= room else []
        said = deepspeed_estimate(made, zero)
        title, theirs = "DDP" if zero == 0 else f"ZeRO-{zero}", "-" if said is None else f"{said / GIB:.2f}"
        verdict = "fits" if whole <= room else "DOES NOT FIT"
        lines.append(f"  {title:14s} {made.state_bytes(zero) / GIB:8.2f} {theirs:>15s} {whole:8.1f}   {verdict}")
    if not fits:
        lines.append(
            "  what helps: engine.checkpointing: true, more GPUs (fewer images on each), a smaller chunk of a teacher"
        )
    return lines


def deepspeed_estimate(made: Plan, zero: int) -> int | None:
    """DeepSpeed's own estimator of a GPU's states, for 16-bit weights; None for the stages it has none for."""
    if zero < 2:
        return None
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    count = sum(parameter.numel() for parameter in made.student.parameters())
    if zero == 2:
        return int(estimate_zero2_model_states_mem_needs(count, made.gpus, 1, cpu_offload=False)[1])
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in made.student.modules())
    return int(
        estimate_zero3_model_states_mem_needs(
            count, largest, made.gpus, 1, cpu_offload=False, cpu_offload_params=False
        )[1]
    )


def _hours(made: Plan, gpu: Gpu, share: float) -> list[str]:
    lines, total = [], 0.0
    for cost in made.stages:
        plain, adapters = made.hours(cost, gpu, share)
        total += plain + adapters
        images = cost.stage.steps * cost.stage.images
        lines.append(
            f"stage {cost.stage.name}: {cost.stage.steps} steps, {images} images: {plain + adapters:.3g} h "
            f"({plain:.3g} h teachers and student in bf16, {adapters:.3g} h adapters in fp32)"
        )
    recipe = made.recipe
    first = made.stages[0]
    fit = recipe.normaliser.batches / first.stage.steps * _teacher_share(first) * sum(made.hours(first, gpu, share))
    total += fit
    lines.append(f"PHI-S: {recipe.normaliser.batches} batches, {fit:.3g} h")
    steps = sum(cost.stage.steps for cost in made.stages)
    lines.append(
        f"run: {steps} steps, {total:.3g} h on {made.gpus} GPUs = {total * made.gpus:.4g} GPU-hours, without probes"
    )
    return lines


def _teacher_share(cost: StageCost) -> float:
    teachers = sum(sum(one.teachers.values()) for one in cost.passes)
    return teachers / (teachers + sum(one.student.flops for one in cost.passes))


def millions(parameters: Iterable[nn.Parameter] | Sequence[nn.Parameter]) -> str:
    """How many numbers, in millions."""
    return f"{sum(parameter.numel() for parameter in parameters) / 1e6:.2f}"
