"""What test_processes starts in two processes: targets of whole and of shared teachers, compared on each of them."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from small_run import small_recipe

from distill.recipe import Recipe
from distill.schedule import schedule
from distill.targets.sharded_teachers import shard
from distill.targets.targets import Targets
from distill.targets.teacher_views import TeacherPool
from distill.training.engine import start

data = small_recipe(Path("unused")) | {"engine": {"teachers": "zero3", "threads": 1}}
for teacher in data["teachers"].values():
    teacher["backbone"]["model_args"] |= {"embed_dim": 192, "depth": 2}
recipe = Recipe.model_validate(data)
start({"any": recipe})
whole, pool = Targets(recipe, torch.device("cpu")), TeacherPool()
shared = Targets(recipe, torch.device("cpu"), pool)
shard(pool.teachers, schedule(recipe))
images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(dist.get_rank()))
shared.fit([images])
whole.load_normalisers(shared.normaliser_state())
for _ in range(2):
    ours, theirs = shared(images), whole(images)
    assert all(torch.equal(ours[name].spatial, theirs[name].spatial) for name in theirs)
    assert torch.equal(ours["coarse"].summary, theirs["coarse"].summary)
for name, target in whole.teachers.items():
    held = sum(parameter.numel() for parameter in shared.teachers[name].backbone.parameters())
    held += sum(p.ds_tensor.numel() for p in shared.teachers[name].backbone.parameters() if not p.numel())
    everything = sum(parameter.numel() for parameter in target.backbone.parameters())
    assert held < 0.62 * everything, (held, everything)
