"""Trains every arm of a recipe without probing: what distill/ablate.py does, for tests with several processes."""

import sys

from distill.recipe import read_arms
from distill.training.arm_groups import group
from distill.training.arms import Arm, run_together
from distill.training.engine import start
from imagery.sources import open_source

recipes = read_arms(sys.argv[1])
accelerators = start(recipes)
arms = [Arm(name, recipe, accelerators[name]) for name, recipe in recipes.items()]
for members in group((arm, arm.recipe) for arm in arms):
    run_together(members, open_source(members[0].recipe.data.train), untrained=None)
