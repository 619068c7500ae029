"""Every adapter recipe that ships loads, validates and builds without weights; mistakes are answered in words."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.recipes import dump, load_recipe
from featsharp_adapter.model.downsampler import build_downsampler
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.upsamplers.table import build_upsampler
from imagery.augment import Augment
from teachers.known import KNOWN
from teachers.registry import load_backbone

FOLDER = Path(__file__).parents[3] / "recipes" / "adapters"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"tiny_clip", "tiny_dino", "dfn_clip_h14_378", "siglip_so400m_14_384"} <= {path.stem for path in RECIPES}


def size_of(recipe: AdapterRecipe) -> tuple[int, tuple[int, int]]:
    """Width and grid of the recipe's teacher, built without weights; of one that only the Hub can build, by its row."""
    node = {"spec": recipe.teacher} if isinstance(recipe.teacher, str) else dict(recipe.teacher)
    row = KNOWN.get(str(node["spec"]))
    if row is not None and row.spec.startswith("transformers:"):
        return row.spatial_dim, (row.native // row.patch, row.native // row.patch)
    tiny = str(node["spec"]).startswith("tiny:")
    if tiny:
        node.pop("weights", None)  # of a teacher that the recipe's head says how to train
    spec = load_backbone(node if tiny else {**node, "device": "meta"}).spec
    return spec.spatial_dim, spec.native_grid


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_on_the_meta_device(path: Path) -> None:
    recipe = load_recipe(AdapterRecipe, path)
    dim, grid = size_of(recipe)
    with torch.device("meta"):
        size = {"dim": dim, "factor": recipe.factor}
        upsampler = build_upsampler(recipe.upsampler, grid=grid, **size, **recipe.options)
        build_downsampler(recipe.downsampler.name, kernel=recipe.downsampler.kernel, **size)
    assert upsampler.tile_grids == (recipe.factor,)
    assert isinstance(recipe.data.augment(), Augment) and recipe.views.settings().zoom == recipe.views.zoom
    head = path.read_text().split("\nteacher:")[0]
    assert "command" in head and "hardware" in head


def test_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe(AdapterRecipe, RECIPES[0], ["seed=7"])
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert load_recipe(AdapterRecipe, tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("upsampler=featshrap", 'did you mean "featsharp"'),
        ("options.windw=3", 'did you mean "window"'),
        ("options.window=wide", "window of featsharp cannot be 'wide'"),
        ("options.block=no_fnn", "block of featsharp cannot be"),
        ("normaliser=phis", 'did you mean "phi_s"'),
        ("losses.tv=-1", "losses.tv"),
        ("optim.stpes=3", 'did you mean "steps"'),
        ("views.per_step=9", "more than the count"),
        ("factor=0", "factor"),
        ("downsampler.name=avg", "downsampler.name"),
    ],
)
def test_mistakes_name_the_field(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(AdapterRecipe, RECIPES[0], [override])
