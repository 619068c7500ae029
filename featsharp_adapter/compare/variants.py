"""One line of a comparison: an upsampler by name, and what is different about it.

featsharp                              with the recipe's options if the recipe is for it, else with the defaults
featsharp:block=linear,window=3        the same with these options changed
featsharp:inputs=bilinear+tiles        a list has + between its items
featsharp/bias=false,losses.tv=0.1     the same with these fields of the recipe changed; after options if there are any
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from common.errors import UserError, nearest
from common.plain_yaml import parse_yaml
from common.plugins import CLASS
from common.recipes import apply_override, validate
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.upsamplers.options import check_options
from featsharp_adapter.upsamplers.table import check_upsampler_name

#: A row that is no upsampler: the teacher itself at k times its size (`true_resolution.py`).
TRUE_RESOLUTION = "true_resolution"
#: Fields of the recipe that variants may differ in: none decides which images and views there are.
FIELDS = (
    "normaliser",
    "bias",
    "conditional",
    "border_weight",
    "losses",
    "uncertainty",
    "spectral",
    "downsampler",
    "optim",
    "ridge",
)


@dataclass(frozen=True)
class Variant:
    """`title` is the text it was made from; it names the variant in tables."""

    title: str
    upsampler: str
    options: dict[str, Any]
    fields: tuple[str, ...] = field(default=())  #: changes of the recipe, path=value

    def recipe(self, recipe: AdapterRecipe, seed: int) -> AdapterRecipe:
        """The recipe of this variant and seed."""
        data = recipe.model_dump(mode="json")
        for change in self.fields:
            node, inner, _ = change.partition("=")[0].partition(".")
            if inner and data.get(node) is None:  # an optional part of the recipe that it does not have yet
                data[node] = {}
            apply_override(data, change)
        return validate(
            AdapterRecipe, data | {"upsampler": self.upsampler, "options": self.options, "seed": seed}, self.title
        )


def parse_variant(text: str, recipe: AdapterRecipe) -> Variant:
    """The variant that `text` (forms above) describes; UserError naming the nearest upsampler, option or field."""
    head, slash, changes = text.partition("/")
    own = head.startswith(CLASS)  # whose name has a colon of its own
    name, colon, rest = head.removeprefix(CLASS if own else "").partition(":")
    name = check_upsampler_name(f"{CLASS}{name}" if own else name)
    options = dict(recipe.options) if name == recipe.upsampler else {}
    for key, value in _pairs(text, rest) if colon else []:
        options[key] = [_value(item) for item in value.split("+")] if "+" in value else _value(value)
        if key == "inputs" and isinstance(options[key], str):
            options[key] = [options[key]]
    check_options(name, options)
    fields = tuple(f"{_field(text, key)}={value}" for key, value in _pairs(text, changes)) if slash else ()
    variant = Variant(text, name, options, fields)
    variant.recipe(recipe, recipe.seed)  # says what is wrong with it
    return variant


def recipes_of(recipe: AdapterRecipe, texts: Iterable[str]) -> list[AdapterRecipe]:
    """The recipe of each variant, with the recipe's own seed."""
    return [parse_variant(text, recipe).recipe(recipe, recipe.seed) for text in texts if text != TRUE_RESOLUTION]


def _pairs(text: str, rest: str) -> list[tuple[str, str]]:
    pairs = []
    for pair in rest.split(","):
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise UserError(f"{text}: options are key=value, separated by commas")
        pairs.append((key, value))
    return pairs


def _field(text: str, path: str) -> str:
    name = path.partition(".")[0]
    if name not in FIELDS:
        raise UserError(
            f'{text}: variants cannot differ in "{name}"{nearest(name, FIELDS)}; they can in: {", ".join(FIELDS)}'
        )
    return path


def _value(text: str) -> Any:
    return parse_yaml(text, f'"{text:.80}"')
