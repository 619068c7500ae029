"""Upsamplers by name: the table of this package, entry points of others, and any class by its dotted path."""

import inspect
from typing import Any

from common.errors import UserError, nearest, unknown
from common.plugins import CLASS, load_plugin, registered
from featsharp_adapter.model.jbu import RADIUS
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.featsharp import FeatSharpUpsampler
from featsharp_adapter.upsamplers.featup import FeatUpUpsampler
from featsharp_adapter.upsamplers.guides import GUIDES
from featsharp_adapter.upsamplers.ridge import RidgeUpsampler
from featsharp_adapter.upsamplers.ridge_block import RidgeBlockUpsampler
from featsharp_adapter.upsamplers.simple import BilinearUpsampler, NoUpsampler, S2Upsampler, TileUpsampler

UPSAMPLERS: dict[str, type[Upsampler]] = {
    "none": NoUpsampler,
    "bilinear": BilinearUpsampler,
    "tile": TileUpsampler,
    "s2": S2Upsampler,
    "featup": FeatUpUpsampler,
    "featsharp": FeatSharpUpsampler,
    "ridge": RidgeUpsampler,
    "ridge_block": RidgeBlockUpsampler,
    **GUIDES,
}
GROUP = "featsharp_adapter.upsamplers"  #: the entry point group of upsamplers that other packages add
_GIVEN = ("dim", "factor", "grid")


def upsampler_class(name: str) -> type[Upsampler]:
    """Of the table, of an installed package's entry points (`GROUP`), or `class:PACKAGE.MODULE.NAME`.

    UserError for an unknown name (with the nearest known one) and for a class that lacks what an upsampler must have.
    """
    if name in UPSAMPLERS:
        return UPSAMPLERS[name]
    if not name.startswith(CLASS) and name not in (installed := registered(GROUP)):
        raise unknown("upsampler", name, (*UPSAMPLERS, *installed))
    return _checked(name, load_plugin(name, GROUP))


def check_upsampler_name(name: str) -> str:
    """`name` again; UserError unless it is that of an upsampler."""
    upsampler_class(name)
    return name


def build_upsampler(name: str, *, dim: int, factor: int, grid: tuple[int, int], **options: Any) -> Upsampler:
    """A new, untrained upsampler for features of width `dim` on a teacher's native `grid`.

    name: as `upsampler_class` has it. UserError for an unknown name or option (with the nearest known one), and for a
    factor that cannot work.
    """
    made = upsampler_class(name)
    if factor < 1:
        raise UserError(f"an upsampling factor is a whole number >= 1, got {factor}")
    accepted = option_names(name)
    for option in options:
        if option not in accepted:
            known = ", ".join(accepted) or "none"
            raise UserError(f'upsampler {name} has no option "{option}"{nearest(option, accepted)}; it takes: {known}')
    upsampler = made(dim=dim, factor=factor, grid=grid, **options)
    if not isinstance(getattr(upsampler, "tile_grids", None), tuple) or getattr(upsampler, "factor", None) != factor:
        raise UserError(f"{name}: call super().__init__(dim=dim, factor=factor, grid=grid, tile_grids=...) in __init__")
    if upsampler.guide_parameters() and min(grid) * factor <= RADIUS:
        raise UserError(f"{name} filters over {2 * RADIUS + 1} pixels and needs more than {RADIUS} a side, got {grid}")
    return upsampler


def option_names(name: str) -> list[str]:
    """What an upsampler can be told beyond width, factor and grid."""
    return [option for option in inspect.signature(upsampler_class(name)).parameters if option not in _GIVEN]


def _checked(name: str, found: object) -> type[Upsampler]:
    """`found`, seen to be the class of an upsampler; UserError says what is missing."""
    base = "featsharp_adapter.upsamplers.base.Upsampler"
    if not (isinstance(found, type) and issubclass(found, Upsampler)):
        raise UserError(f"{name} is no upsampler: it must be a subclass of {base}")
    if inspect.isabstract(found):
        raise UserError(f"{name} lacks the method upsample(self, low, tiles, guidance) of {base}")
    parameters = inspect.signature(found).parameters
    missing = [given for given in _GIVEN if given not in parameters]
    if missing:
        raise UserError(f"{name}: its __init__ must take {', '.join(_GIVEN)} by name; missing: {', '.join(missing)}")
    return found
