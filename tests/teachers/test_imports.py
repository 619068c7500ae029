"""Imports without the collector leave it as they found it."""

import gc

import pytest

from teachers.imports import many_imports


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_off_inside_and_as_before_afterwards(enabled: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError), many_imports():
            assert not gc.isenabled()
            import no_such_module_anywhere  # noqa: F401
        assert gc.isenabled() is enabled
        kept = gc.get_freeze_count()
        with many_imports():
            made = [[number] for number in range(1000)]
        assert gc.get_freeze_count() >= kept + len(made)
    finally:
        gc.unfreeze()
        (gc.enable if was else gc.disable)()
