"""One line of a comparison: an upsampler by name, and what is different about it.

featsharp                              with the recipe's options if the recipe is for it, else with the defaults
featsharp:block=linear,window=3        the same with these options changed
featsharp:inputs=bilinear+tiles        a list has + between its items
"""

from dataclasses import dataclass
from typing import Any

import yaml

from featsharp_adapter.options import check_options
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.upsamplers.table import UPSAMPLERS
from teachers.errors import UserError, unknown


@dataclass(frozen=True)
class Arm:
    """`title` is the text it was made from; it names the arm in tables."""

    title: str
    upsampler: str
    options: dict[str, Any]


def parse_arm(text: str, recipe: AdapterRecipe) -> Arm:
    """The arm that `text` (forms above) describes; UserError naming the nearest upsampler or option."""
    name, colon, rest = text.partition(":")
    if name not in UPSAMPLERS:
        raise unknown("upsampler", name, UPSAMPLERS)
    options = dict(recipe.options) if name == recipe.upsampler else {}
    for pair in rest.split(",") if colon else []:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise UserError(f"{text}: options are key=value, separated by commas")
        options[key] = [_value(item) for item in value.split("+")] if "+" in value else _value(value)
        if key == "inputs" and isinstance(options[key], str):
            options[key] = [options[key]]
    check_options(name, options)
    return Arm(text, name, options)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f'"{text}" is no value') from error
