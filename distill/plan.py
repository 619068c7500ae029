"""What a recipe asks for, counted before anything is trained."""

from collections.abc import Iterable

from torch import nn

from distill.recipe import Recipe
from distill.student import Student
from distill.targets import Targets


def plan(recipe: Recipe, student: Student, targets: Targets) -> str:
    """A table in words: parameters, tokens and forward passes per image and for the whole run."""
    height, width = recipe.data.size
    patch = student.vit.patch_embed.patch_size[0]
    images = recipe.optim.steps * recipe.optim.batch_size
    lines = [
        f"student   {recipe.student.model}: {millions(student.vit.parameters())} M parameters, heads "
        f"{millions([*student.summary_heads.parameters(), *student.spatial_heads.parameters()])} M; "
        f"{height // patch} x {width // patch} + {len(student.teachers)} tokens per image",
    ]
    for name, target in targets.teachers.items():
        views = 1 + sum(n * n for n in target.sharpener.tile_grids)
        rows, columns = target.spec.native_grid
        factor = target.node.effective_factor
        lines.append(
            f"teacher   {name} ({target.spec.name}): {millions(target.backbone.parameters())} M parameters; {views} "
            f"forward passes of {rows} x {columns} tokens per image; target {rows * factor} x {columns * factor} "
            f"({target.node.upsampler})"
        )
    lines.append(
        f"run       {recipe.optim.steps} steps x {recipe.optim.batch_size} = {images} images, after "
        f"{recipe.normaliser.batches} batches for PHI-S"
    )
    return "\n".join(lines)


def millions(parameters: Iterable[nn.Parameter]) -> str:
    """How many numbers, in millions."""
    return f"{sum(parameter.numel() for parameter in parameters) / 1e6:.2f}"
