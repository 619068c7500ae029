"""A plan in words and tables, for a terminal of 120 columns."""

from common.errors import UserError
from distill.planning.gpus import USABLE, Gpu
from distill.planning.plan import TERA, Plan, RoleCost, StageCost, count_parameters, deepspeed_estimate
from distill.schedule import Grid
from featsharp_adapter.adapter.budget import budget_of

GIB = 2**30
ZERO = {0: "DDP", 1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}
MOST_GPUS = 4096
MOST_PIECES = 64


def plan_text(made: Plan, gpu: Gpu, share: float) -> str:
    """share: of a GPU's peak that is reached."""
    if not 0 < share <= 1:
        raise UserError(f"--share is a part of a GPU's peak, above 0 and at most 1, got {share}")
    kind = "bf16, adapters fp32" if made.bf16 else "fp32"
    head = f"{made.recipe.name} on {made.gpus} x {gpu.title} ({kind}; {100 * share:.0f} % of the peak reached)"
    parts = [[head], _models(made), *([*_stage(stage, made)] for stage in made.stages)]
    parts += [_memory(made, gpu), _hours(made, gpu, share)]
    return "\n\n".join("\n".join(part) for part in parts)


def _models(made: Plan) -> list[str]:
    student = made.student
    heads = count_parameters(student.summary_heads, student.spatial_heads) / 1e6
    body = made.parameters / 1e6 - heads
    lines = ["parameters, M", f"  {'student':12s} {body:9.2f}  {made.recipe.student.model}, and heads of {heads:.2f}"]
    for name, teacher in made.teachers.items():
        lines.append(f"  {name:12s} {teacher.parameters / 1e6:9.2f}  {teacher.spec.name}")
    return lines


def _stage(cost: StageCost, made: Plan) -> list[str]:
    """TFLOPs per image of every teacher's views, adapter, and the student."""
    whole = f"stage {cost.stage.name}: {cost.stage.steps} steps of {cost.stage.images} images; TFLOPs of an image:"
    lines = [f"{whole:74s} {'model':>8s} {'adapter':>8s}  target"]
    for one in cost.passes:
        shown = f"{one.part.partition}, {one.part.batch_size} images at {_sizes(one)} px"
        grid = _grid(one.largest.size, made.counter.patch)
        lines.append(f"  {shown}")
        lines.append(_row("student", f"{grid} tokens, forward and backward", one.student / _images(one), None, ""))
        for name in one.part.teachers:
            adapter = one.adapters[name] / _images(one) if one.part.teachers[name].upsampler != "none" else None
            target = "x".join(map(str, one.largest.grids[name]))
            lines.append(_row(name, _views(one, name, made), one.teachers[name] / _images(one), adapter, target))
            lines += _saved(one, name, made)
    return lines


def _row(name: str, what: str, flops: float, adapter: float | None, target: str) -> str:
    beside = "-" if adapter is None else f"{adapter / TERA:.3g}"
    return f"    {name:12s} {what:57s} {flops / TERA:8.3g} {beside:>8s}  {target}".rstrip()


def _views(one: RoleCost, name: str, made: Plan) -> str:
    """What a teacher looks at for an image of the largest size."""
    worst, patch = one.largest, made.teachers[name].spec.patch_size
    return " + ".join(
        f"{count / worst.images:.3g} {what} {_grid(size, patch)}" for what, size, count in worst.forwards[name]
    )


def _saved(one: RoleCost, name: str, made: Plan) -> list[str]:
    """What a budget of passes saves of a teacher; all of its passes cost the same."""
    node = one.part.teachers[name]
    if node.passes is None:
        return []
    (n,) = made.teachers[name].tile_grids(node)
    whole = 1 + n * n
    kept, cost = budget_of(node.passes, whole), one.teachers[name] / _images(one) / TERA
    saved = cost * (whole / kept - 1)
    return [f"    {'':12s} passes: {kept:g} of {whole}, which saves {saved:.3g} of {cost + saved:.3g}"]


def _images(one: RoleCost) -> int:
    return one.role.batch_size


def _grid(size: Grid, patch: int) -> str:
    return f"{size[0] // patch}x{size[1] // patch}"


def _sizes(one: RoleCost) -> str:
    sizes = [f"{height}x{width}" for height, width in dict.fromkeys(cost.size for cost in one.sizes)]
    return sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} ({len(sizes)} sizes, means of them)"


def _memory(made: Plan, gpu: Gpu) -> list[str]:
    room = USABLE * gpu.memory
    lines = [
        f"memory of a GPU, GiB, of {room:.0f} that tensors may take ({gpu.memory:.0f} less the driver's and fragments)",
        f"  teachers and adapters, weights {made.teacher_bytes / GIB:20.1f}",
        f"  activations, targets, views {made.worst().peak() / GIB:23.1f}  at their peak: {_at_worst(made)}",
        f"  the student's {'states':>16s} {'by DeepSpeed':>15s} {'in all':>9s}   (DeepSpeed's estimators count 16-bit "
        "weights and no buffers)",
    ]
    for zero, title in ZERO.items():
        whole = made.bytes_on_a_gpu(zero) / GIB
        said = deepspeed_estimate(made, zero)
        theirs = "-" if said is None else f"{said / GIB:.2f}"
        verdict = "fits" if whole <= room else "DOES NOT FIT"
        lines.append(f"    {title:12s} {made.state_bytes(zero) / GIB:15.2f} {theirs:>15s} {whole:9.1f}   {verdict}")
    host = f"{made.saved_bytes / GIB:.1f} GiB over all processes"
    lines.append(f"  beside it, in the host's memory while a checkpoint is written: {host}")
    zero = made.recipe.engine.zero_stage or 2
    return lines if made.bytes_on_a_gpu(zero) / GIB <= room else [*lines, *_what_helps(made, room, zero)]


def _at_worst(made: Plan) -> str:
    stage = made.worst()
    shown = [f"{one.largest.images} images at {_grid(one.largest.size, 1)}" for one in stage.passes]
    return f"stage {stage.stage.name}, {(' or ' if stage.stage.by_ranks else ' + ').join(shown)} px a GPU"


def _what_helps(made: Plan, room: float, zero: int) -> list[str]:
    """What would make it fit with the recipe's ZeRO stage, and by how much."""
    lines = [f"  what helps with {ZERO[zero]}:"]
    if not made.recipe.engine.checkpointing:
        whole = made.checkpointed(zero) / GIB
        lines.append(f"    engine.checkpointing=true   {whole:7.1f} GiB{'' if whole <= room else ', still too much'}")
    cuts = [n for n in range(2, MOST_PIECES + 1) if made.divides_into(n)]
    if fits := next((n for n in cuts if made.accumulating(zero, n) / GIB <= room), cuts[-1] if cuts else None):
        whole = made.accumulating(zero, fits) / GIB
        verdict = "" if whole <= room else ", still too much"
        lines.append(f"    optim.accumulate={made.pieces * fits:<10d} {whole:7.1f} GiB, about{verdict}")
    counts = [n for n in range(made.gpus + 1, MOST_GPUS + 1) if _divides(made, n)]
    enough = next((n for n in counts if made.bytes_on_a_gpu(zero, n) / GIB <= room), None)
    if enough:
        lines.append(
            f"    {enough} GPUs {made.bytes_on_a_gpu(zero, enough) / GIB:27.1f} GiB, about: fewer images on each"
        )
    if (fixed := made.teacher_bytes / GIB) > room / 2:
        lines.append(f"    a GPU with more memory: the teachers' weights alone are {fixed:.1f} GiB on each")
    worst = made.worst()
    looking = max(one.largest.peak_teachers for one in worst.passes)
    if looking >= worst.peak():
        lines.append("    a smaller teachers.*.chunk: the peak is where the teachers look")
    return lines


def _divides(made: Plan, gpus: int) -> bool:
    for cost in made.stages:
        whole = sum(part.ranks for part in cost.stage.passes) if cost.stage.by_ranks else 1
        for part in cost.stage.passes:
            share = gpus * part.ranks // whole if cost.stage.by_ranks else gpus
            if gpus % whole or part.batch_size % share:
                return False
    return True


def _hours(made: Plan, gpu: Gpu, share: float) -> list[str]:
    lines = ["time                  steps   s/step  images/s       time    student  teachers  adapters"]
    total = 0.0
    for cost in made.stages:
        parts, hours = made.seconds(cost, gpu, share), made.hours(cost, gpu, share)
        step = sum(parts)
        shares = "".join(f"{100 * part / step:8.0f} %" for part in parts)
        rate = cost.stage.images / step
        lines.append(
            f"  {cost.stage.name:14s} {cost.stage.steps:10d} {step:8.3g} {rate:9.4g} {duration(hours):>10s} {shares}"
        )
        total += hours
    fit = made.fitting_hours(gpu, share)
    steps = sum(cost.stage.steps for cost in made.stages)
    batches = made.recipe.normaliser.batches
    lines.append(f"  {'PHI-S':14s} {batches:10d} {'':18s} {duration(fit):>10s}")
    spent = (total + fit) * made.gpus
    whole = f"= {f'{spent:.4g} GPU-hours' if spent >= 0.1 else duration(spent)}, without data waits and probes"
    lines.append(f"  {'whole run':14s} {steps:10d} {'':18s} {duration(total + fit):>10s}   {whole}")
    return lines


def duration(hours: float) -> str:
    """In hours, minutes or seconds, whichever gives a number one can read."""
    if hours >= 1:
        return f"{hours:.4g} h"
    if hours >= 1 / 60:
        return f"{60 * hours:.3g} min"
    return f"{3600 * hours:.3g} s" if hours >= 1 / 3600 else "under 1 s"
