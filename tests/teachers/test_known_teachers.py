"""The paper's teachers build on the meta device, with no weights and no network, at the sizes the table states."""

import pytest

from teachers.errors import UserError
from teachers.known import KNOWN, KnownTeacher
from teachers.registry import load_backbone

OFFLINE = [row for row in KNOWN.values() if not row.spec.startswith("transformers:")]
FAST = ("dfn_clip_h", "siglip_so400m", "dinov2_g_reg", "sam_h")  # those of radio_l; the rest take their time


@pytest.mark.parametrize("short", FAST)
def test_radios_teachers_are_as_the_table_says(short: str) -> None:
    check_row(KNOWN[short])


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in OFFLINE if row.short not in FAST], ids=lambda row: row.short)
def test_every_teacher_is_as_the_table_says(row: KnownTeacher) -> None:
    check_row(row)


def check_row(row: KnownTeacher) -> None:
    spec = load_backbone({"spec": row.short, "device": "meta"}).spec
    assert spec.native_size == (row.native, row.native)
    assert (spec.patch_size, spec.spatial_dim, spec.summary_dim) == (row.patch, row.spatial_dim, row.summary_dim)
    assert spec.digest == "meta"
    assert spec.licence != "unknown"


def test_grids_and_tiling_arithmetic_of_the_sharpened_teachers() -> None:
    grids = {
        short: KNOWN[short].native // KNOWN[short].patch for short in ("dfn_clip_h", "siglip_so400m", "siglip2_g_384")
    }
    assert grids == {"dfn_clip_h": 27, "siglip_so400m": 27, "siglip2_g_384": 24}
    assert [3 * grid for grid in grids.values()] == [81, 81, 72]


def test_options_win_over_the_rows_and_a_misspelt_name_is_helped() -> None:
    spec = load_backbone({"spec": "vit_s", "device": "meta", "image_size": 256, "resizable": False}).spec
    assert spec.native_grid == (16, 16) and not spec.resizable
    with pytest.raises(UserError, match='did you mean "siglip_so400m"'):
        load_backbone("siglip_so400")
