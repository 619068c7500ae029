"""What a suite costs, probe by probe, now and at another commit, in one run: processor seconds of one thread.

    python benchmarks/suite_profile.py --against 426c7d9 --backbone tiny:dino

The other commit is looked at in a temporary git worktree; each measurement is a process of its own with an empty cache,
so that drawing the scenes is part of it. Processor seconds, because wall time is shared with whatever else runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common.errors import UserError, guard

REPOSITORY = Path(__file__).parents[1]

#: Run within either tree, so only what both of them know may be called.
CHILD = """
import json, os, sys, time

def seconds():
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system

backbone, suite = sys.argv[1:]
found, last = {}, 0.0

def lap(name):
    global last
    now = seconds()
    found[name], last = now - last, now

try:
    from teachers.imports import many_imports  # as the command line does, where it does
except ImportError:
    from contextlib import nullcontext as many_imports
with many_imports():
    import torch
    from eval_suite.suite import load_suite, run_probes
    from teachers.registry import load_backbone
torch.set_num_threads(1)
suite = load_suite(suite, ["data.scenes.workers=1"])
lap("imports")
for name, node in suite.data.items():
    data = node.open(name)
    for split in ("train", "test"):
        data.dense(split)
    data.pairs("test")
lap("drawing")
backbone = load_backbone(backbone)
lap("backbone")
for outcome in run_probes(backbone, suite, progress=False):
    lap(f"{outcome.group}/{outcome.task}")
print(json.dumps(found))
"""


def profile(tree: Path, backbone: str, suite: str) -> dict[str, float]:
    """Processor seconds by part of a suite on a backbone, by the code of a tree; the first reader pays for features."""
    with tempfile.TemporaryDirectory() as cache:
        own = {"PYTHONPATH": str(tree), "AGGLOMERATE_CACHE": cache, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CHILD, backbone, suite]
        done = subprocess.run(
            command, cwd=tree, env=os.environ | own, capture_output=True, text=True, encoding="utf-8", check=False
        )
    if done.returncode:
        raise UserError(f"{tree}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def profile_of_commit(commit: str, backbone: str, suite: str) -> dict[str, float]:
    """The same by the code of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            return profile(tree, backbone, suite)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def lines(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """A Markdown table: part, seconds before and after, and their sum."""
    rows = [(part, before.get(part, 0.0), after.get(part, 0.0)) for part in dict.fromkeys([*before, *after])]
    rows.append(("sum", sum(before.values()), sum(after.values())))
    head = ["| part | before, s | now, s | now / before |", "|---|---:|---:|---:|"]
    return head + [
        f"| {part} | {then:.1f} | {now:.1f} | {f'{now / then:.2f}' if then else '–'} |" for part, then, now in rows
    ]


def main(argv: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="426c7d9", metavar="COMMIT")
    parser.add_argument("--backbone", default="tiny:dino")
    parser.add_argument("--suite", default="recipes/suites/embedded.yaml", help="a path that both commits have")
    options = parser.parse_args(argv)
    before = profile_of_commit(options.against, options.backbone, options.suite)
    after = profile(REPOSITORY, options.backbone, options.suite)
    print("\n".join(lines(before, after)))


if __name__ == "__main__":
    sys.exit(guard(main))
