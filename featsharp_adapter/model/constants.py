"""Tensors that depend on sizes alone, made once."""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import ParamSpec, Protocol, TypeVar, cast

import torch

from common.fresh_thread import in_fresh_thread

Given = ParamSpec("Given")
Made = TypeVar("Made", covariant=True)


class Remembered(Protocol[Given, Made]):
    """A function that remembers what it made; without this, callers' arguments would go unchecked."""

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Made: ...

    def cache_clear(self) -> None:
        """Forget all of it."""


def remembered_constants(most: int) -> Callable[[Callable[Given, Made]], Remembered[Given, Made]]:
    """`lru_cache` for functions that make tensors: real ones, fit for gradients, whoever asks first.

    Otherwise a fake tensor made while a plan is counted, or one made in inference mode, would be handed to the training
    after it.
    """

    def decorate(make: Callable[Given, Made]) -> Remembered[Given, Made]:
        @lru_cache(maxsize=most)
        @wraps(make)
        def kept(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            return in_fresh_thread(partial(make, *args, **kwargs))

        @wraps(make)
        def real(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            return make(*args, **kwargs) if torch.compiler.is_compiling() else kept(*args, **kwargs)  # type: ignore[arg-type]

        real.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return cast("Remembered[Given, Made]", real)

    return decorate
