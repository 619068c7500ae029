"""The one table of upsamplers; a name that is not in it does not exist."""

import inspect
from typing import Any

from common.errors import UserError, nearest, unknown
from featsharp_adapter.model.jbu import RADIUS
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.featsharp import FeatSharpUpsampler
from featsharp_adapter.upsamplers.featup import FeatUpUpsampler
from featsharp_adapter.upsamplers.guides import GUIDES
from featsharp_adapter.upsamplers.simple import BilinearUpsampler, NoUpsampler, S2Upsampler, TileUpsampler

UPSAMPLERS: dict[str, type[Upsampler]] = {
    "none": NoUpsampler,
    "bilinear": BilinearUpsampler,
    "tile": TileUpsampler,
    "s2": S2Upsampler,
    "featup": FeatUpUpsampler,
    "featsharp": FeatSharpUpsampler,
    **GUIDES,
}
_GIVEN = ("dim", "factor", "grid")


def build_upsampler(name: str, *, dim: int, factor: int, grid: tuple[int, int], **options: Any) -> Upsampler:
    """A new, untrained upsampler for features of width `dim` on a teacher's native `grid`.

    UserError for an unknown name or option (with the nearest known one), and for a factor that cannot work.
    """
    if name not in UPSAMPLERS:
        raise unknown("upsampler", name, UPSAMPLERS)
    if factor < 1:
        raise UserError(f"an upsampling factor is a whole number >= 1, got {factor}")
    accepted = option_names(name)
    for option in options:
        if option not in accepted:
            known = ", ".join(accepted) or "none"
            raise UserError(f'upsampler {name} has no option "{option}"{nearest(option, accepted)}; it takes: {known}')
    upsampler = UPSAMPLERS[name](dim=dim, factor=factor, grid=grid, **options)
    if upsampler.guide_parameters() and min(grid) * factor <= RADIUS:
        raise UserError(f"{name} filters over {2 * RADIUS + 1} pixels and needs more than {RADIUS} a side, got {grid}")
    return upsampler


def option_names(name: str) -> list[str]:
    """What an upsampler of the table can be told beyond width, factor and grid."""
    return [option for option in inspect.signature(UPSAMPLERS[name]).parameters if option not in _GIVEN]
