"""Options of upsamplers as users write them, checked against what the upsampler's own signature says."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from common.errors import UserError, nearest
from featsharp_adapter.upsamplers.table import option_names, upsampler_class


def check_options(upsampler: str, options: Mapping[str, Any]) -> None:
    """UserError, naming the nearest option or the type wanted, unless the upsampler takes these."""
    accepted = option_names(upsampler)
    try:
        parameters = inspect.signature(upsampler_class(upsampler), eval_str=True).parameters
    except NameError as error:  # an import under TYPE_CHECKING
        raise UserError(f"{upsampler}: the annotations of its __init__ cannot be read: {error}") from error
    for name, value in options.items():
        if name not in accepted:
            known = ", ".join(accepted) or "none"
            raise UserError(f'options: {upsampler} has no option "{name}"{nearest(name, accepted)}; it takes: {known}')
        if parameters[name].annotation is inspect.Parameter.empty:  # the user's own class says nothing of it
            continue
        try:
            TypeAdapter(parameters[name].annotation, config=ConfigDict(strict=False)).validate_python(value)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"]
            raise UserError(f"options: {name} of {upsampler} cannot be {value!r} ({wanted})") from error
