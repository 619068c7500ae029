"""What a cache of teacher views will take, said before anything starts; and what it cannot be used for."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.store import OVERHEAD
from distill.recipe import Recipe
from distill.recipe_stages import AugmentNode
from distill.schedule import Grid, Pass, schedule, views
from distill.targets.targets import Targets
from distill.targets.view_cache import CachedBackbone, small_name, tiles_name
from imagery.contracts import SequentialSource, Source
from imagery.mixture import Mixture

GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One view of one teacher: how many images of how many bytes each, and how many bytes there are already."""

    teacher: str
    view: str
    images: int
    each: int
    there: int

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.images * self.each


def always_the_same(augment: AugmentNode) -> bool:
    """Whether an image is cut out alike each time."""
    still = augment.zoom[0] == augment.zoom[1] and augment.aspect[0] == augment.aspect[1]
    return still and augment.hflip in (0, 1) and not augment.random_crop


def check_cache(recipe: Recipe, targets: Targets, source: Source | SequentialSource | Mixture) -> str:
    """The forecast in words; UserError where views cannot be replayed, or are more than there is room for."""
    node = recipe.cache
    assert node is not None
    passes = [part for stage in schedule(recipe) for part in stage.passes]
    changing = [part for part in passes if not always_the_same(part.augment)]
    if changing and not node.across_runs:
        where = "" if len(passes) == 1 else f" in partition {changing[0].partition} of stage {changing[0].stage}"
        raise UserError(
            f"cache: every image is cut out anew each time it is shown{where}, so no view could be used twice. Set "
            "augment: {zoom: [1, 1], hflip: 0, random_crop: false}, or cache.across_runs: true for other runs of the "
            "same data and seed, or leave cache out"
        )
    count = len(source) if isinstance(source, Source) and not changing else None
    lines = forecast(recipe, targets, count)
    whole, there = sum(line.bytes for line in lines), sum(line.there for line in lines)
    folder = Path(node.folder)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    said = "\n".join(
        f"  {line.teacher}, {line.view}: {line.images} x {line.each / 2**20:.3f} MiB = {line.bytes / GIB:.3g} GiB"
        for line in lines
    )
    text = (
        f"teacher views are kept in {folder}:\n{said}\n  at most {whole / GIB:.3g} GiB, of which {there / GIB:.3g} are "
        f"there; {free / GIB:.3g} GiB are free"
    )
    if changing:
        text += "\n  nothing of it can be used again within this run: every step has crops of its own"
    for name in dict.fromkeys(name for part in passes for name, each in part.teachers.items() if each.mosaic):
        text += f"\n  {name} is not kept where it sees mosaics: what it says of an image depends on the others"
    room = min(node.max_gib * GIB, free + there)
    if whole > room:
        limit = "cache.max_gib" if room == node.max_gib * GIB else "what is free on the disk"
        raise UserError(f"{text}\n  that is more than {limit} ({room / GIB:.3g} GiB): allow more, or leave cache out")
    return text


def forecast(recipe: Recipe, targets: Targets, count: int | None) -> list[Line]:
    """Every view that the recipe asks for. count: of different images there are; None: no step repeats an image."""
    shown: dict[tuple[str, str, Grid, str], int] = {}
    each: dict[tuple[str, str, Grid, str], int] = {}
    for stage in schedule(recipe):
        for part in stage.passes:
            for size in part.sizes:
                for name, view, grid in cached_views(targets, part, size):
                    key = (name, view, size, str(part.augment))
                    # A size of several is drawn for about its share of the steps; every one may come up more often.
                    shown[key] = shown.get(key, 0) + -(-stage.steps * part.batch_size // len(part.sizes))
                    spec = targets.teachers[name].spec
                    numbers = spec.spatial_dim * grid[0] * grid[1]
                    numbers += (spec.summary_dim or 0) if view.startswith("small") else 0
                    each[key] = 4 * numbers + OVERHEAD
    found = []
    for (name, view, size, augment), times in shown.items():
        images = times if count is None else min(times, count)
        teacher = targets.teachers[name].backbone
        assert isinstance(teacher, CachedBackbone)
        there = teacher.cache.size_of(f"{view} {next(teacher.parameters()).device.type}")
        found.append(Line(name, f"{view} of {size[0]}x{size[1]} px", images, each[name, view, size, augment], there))
    return found


def cached_views(targets: Targets, part: Pass, size: Grid) -> list[tuple[str, str, Grid]]:
    """(teacher, view, its grid) of every view in a pass that is kept; the view named as in teacher_views.py."""
    found = []
    for name, node in part.teachers.items():
        if node.mosaic:
            continue
        target = targets.teachers[name]
        grids = target.upsampler_for(node).tile_grids
        small, *tiles = views(node, target.spec, size, targets.patch, grids)
        patch = target.spec.patch_size
        grid = small.size[0] // patch, small.size[1] // patch
        found.append((name, small_name(small.size), grid))
        native = target.spec.native_grid
        for n, view in zip(grids, tiles, strict=True):
            if view.what == tiles_name(n):  # those that a budget of passes chooses differ by batch, and are not kept
                found.append((name, tiles_name(n), (n * native[0], n * native[1])))
    return found
