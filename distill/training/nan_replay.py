"""An update that came out NaN or infinite, once more, to see where it began (`distill.training.nan_capture` kept it).

Prints every term of the loss, the first module whose output is not finite, in the order in which they ran, and the
parameters whose gradient is not finite. Runs in one process, one rank after the other, on `device`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError
from common.json_files import read_json_object
from common.step_folders import problem
from distill.losses.step import DistillStep
from distill.recipe import Recipe, read
from distill.schedule import schedule, stage_at
from distill.student.model import Student
from distill.targets.targets import Targets
from distill.training.data import micro_batches, roles, to_device
from distill.training.nan_capture import RNG_STATE
from distill.training.rng_state import write_rng
from distill.training.trained_student import TrainedStudent, build_trained_student
from teachers.artefacts import check_artefact_node

#: A replay is one process that computes as the run did, but needs neither its engine nor its speed.
PLAIN = [
    "engine.teachers=replicated",
    "engine.compile=false",
    "engine.compile_teachers=false",
    'engine.deepspeed="off"',
]
MOST = 5  #: parameters and images named


def replay(folder: Path, device: torch.device, overrides: Sequence[str] = ()) -> str:
    """Recompute the update that was kept in `folder`; returns what came out, in words. UserError for another folder.

    overrides: of the kept recipe. Teachers that run code have to be typed there: the folder may come from anywhere.
    """
    if not (folder / "update.json").is_file():
        raise UserError(f"{folder} holds no update to replay; give the folder that the run named, RUN/nan/step-...")
    if (reason := problem(folder)) is not None:
        raise UserError(f"{folder} is damaged ({reason}), and a replay of it would tell nothing")
    facts = read_json_object(folder / "update.json")
    recipe = read(folder / "recipe.yaml", [*PLAIN, *overrides])
    check_typed(recipe, folder / "recipe.yaml", overrides)
    targets = Targets(recipe, device)
    targets.load_normalisers(load_file(folder / "targets.safetensors"))
    student = Student(recipe.student, recipe.data.size, targets.heads(), bf16=facts["bf16"])
    student.load_state_dict(load_file(folder / "student.safetensors"))
    student.to(device).train()
    lines = [
        f"step {facts['step']} of {recipe.name}, student {facts['student']}; in the run loss {facts['line']['loss']}, "
        f"gradient norm {facts['line']['grad_norm']}, not finite: {', '.join(facts['not_finite'])}"
    ]
    for rank in range(facts["processes"]):
        kept = load_file(folder / f"rank-{rank}.safetensors")
        trained = build_trained_student(student, recipe, rank, device)
        if trained.average is not None:
            trained.average.load_state_dict(load_file(folder / "average.safetensors"))
        trained.begin(facts["step"])
        lines += [f"process {rank}", *_rank(recipe, targets, trained, kept, facts, rank)]
    return "\n".join(lines)


def check_typed(recipe: Recipe, path: Path, overrides: Sequence[str]) -> None:
    """UserError for a teacher that runs code, or reads files of its own choice, and that no override names."""
    for name, teacher in recipe.teachers.items():
        field = f"teachers.{name}.backbone"
        if not any(
            override.startswith((f"{field}=", f"{field}.spec=", "teachers.*.backbone=")) for override in overrides
        ):
            check_artefact_node(teacher.backbone, str(path), f"If you trust it, type it after --replay: {field}=NODE")


def _rank(
    recipe: Recipe,
    targets: Targets,
    trained: TrainedStudent,
    kept: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    rank: int,
) -> list[str]:
    student, shifts, average = trained.student, trained.shifts, trained.average
    device = student.mean.device
    stage = stage_at(schedule(recipe), facts["step"] - 1)
    raw = [(role, kept[role.part.partition]) for role in roles(stage, rank, facts["processes"])]
    rng_state = [state for name, state in sorted(kept.items()) if name.startswith(f"{RNG_STATE}.")]
    write_rng(rng_state, device)
    student.zero_grad()
    lines: list[str] = []
    with watch({"student": student, "targets": targets}) as found:
        for number, piece in enumerate(micro_batches(raw, recipe.optim.accumulate)):
            for shown in to_device(piece, device):
                role = shown.role
                look, dispersions = targets.for_pass(role.part, shifts), targets.dispersions()
                step = DistillStep(student, look, recipe, dispersions, role.part, role.scale, shifts, average)
                result = step(shown.images)
                result.loss.backward()
                terms = ", ".join(f"{name} {float(value):.6g}" for name, value in result.report.items())
                loss = float(result.loss.detach())
                lines.append(f"  micro-batch {number}, {role.part.partition}: loss {loss:.6g} ({terms})")
                lines += _images(facts["keys"][rank].get(role.part.partition, []))
    lines.append(f"  first module whose output is not finite: {found[0] if found else 'none'}")
    return lines + _gradients(student)


def _images(keys: list[str]) -> list[str]:
    more = f" and {len(keys) - MOST} more" if len(keys) > MOST else ""
    return [f"    images: {', '.join(keys[:MOST])}{more}"] if keys else []


def _gradients(student: nn.Module) -> list[str]:
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    bad = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    named = f"{', '.join(bad[-MOST:])} ({len(bad)} of {len(gradients)})" if bad else "none"
    return [f"  gradient norm of this process: {float(norm):.6g}", f"  parameters without a finite gradient: {named}"]


@contextmanager
def watch(roots: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """The names of modules whose output is not finite, in the order in which their forward passes end."""
    found: list[str] = []
    handles = []
    for root, module in roots.items():
        for name, part in module.named_modules():
            path = f"{root}.{name}" if name else root

            def look(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
                if path not in found and any(not torch.isfinite(each).all() for each in tensors(output)):
                    found.append(path)

            handles.append(part.register_forward_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in what a module gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
