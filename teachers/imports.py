"""Importing large libraries without the garbage collector walking through them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def many_imports() -> Iterator[None]:
    """No collections while torch and its like are imported, and none of what was imported ever after.

    The collector would look through every object made so far, again and again, and find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
