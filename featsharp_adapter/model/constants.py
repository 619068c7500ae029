"""Tensors that depend on sizes alone, made once."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Given = ParamSpec("Given")
Made = TypeVar("Made")


def remembered_constants(most: int) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """`lru_cache` for functions that make tensors: real ones, fit for gradients, whoever asks first.

    Otherwise a fake tensor made while a plan is counted, or one made in inference mode, would be handed to the training
    after it.
    """

    def decorate(make: Callable[Given, Made]) -> Callable[Given, Made]:
        @lru_cache(maxsize=most)
        @wraps(make)
        def kept(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            with _disable_current_modes(), torch.inference_mode(False):
                return make(*args, **kwargs)

        @wraps(make)
        def real(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            return make(*args, **kwargs) if torch.compiler.is_compiling() else kept(*args, **kwargs)

        real.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return real

    return decorate
