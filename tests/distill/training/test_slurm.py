"""docs/cluster/train.slurm as it stands, Slurm's commands played by small scripts: two "machines" of one process."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import train
from test_preemption import wait_for_lines

from common.jsonl import read_log
from distill.recipe import read

ROOT = Path(__file__).parents[3]
SCRIPT = "docs/cluster/train.slurm"
#: srun starts the command once a machine, in a group of its own as slurmstepd does, and ends the others when one fails.
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then printf "127.0.0.1\\nother\\n"; else echo "$@" >> "$FAKE/requeued"; fi',
    "scancel": 'echo "$@" >> "$FAKE/cancelled"; for pid in $(cat "$FAKE/tasks"); do kill -TERM -- "-$pid"; done',
    "srun": """
shift
set -m
for node in 0 1; do SLURM_NODEID=$node "$@" & echo $! >> "$FAKE/tasks"; done
code=0
for pid in $(cat "$FAKE/tasks"); do
  wait "$pid" || { code=$?; for each in $(cat "$FAKE/tasks"); do kill -KILL -- "-$each" 2> /dev/null; done; }
done
exit $code
""",
}


def submit(folder: Path, job: int, *arguments: str) -> subprocess.Popen[str]:
    """The batch script, as Slurm starts it on the first machine."""
    fake = folder / f"slurm{job}"
    fake.mkdir()
    for name, text in COMMANDS.items():
        (fake / name).write_text(f"#!/bin/bash\n{text}\n")
        (fake / name).chmod(0o755)
    told = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    path = f"{fake}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | told | {"FAKE": str(fake), "PATH": path}
    command = ["bash", SCRIPT, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_job_saves_is_put_back_and_goes_on(write_recipe: Callable[..., Path]) -> None:
    """The batch script alone is told. The second start ends it as one process without a stop does."""
    path = write_recipe(optim={"steps": 60, "batch_size": 4, "lr": 0.003, "warmup_steps": 2})
    folder = read(path).folder
    job = submit(path.parent, 41, str(path), "checkpoint.every=1000")
    wait_for_lines(folder / "log.jsonl", 5, job)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said[-3000:]
    assert (path.parent / "slurm41" / "requeued").read_text() == "requeue 41\n"
    assert (path.parent / "slurm41" / "cancelled").read_text() == "--signal=TERM 41.0\n"
    saved = [each.name for each in (folder / "checkpoints").iterdir()]
    assert len(saved) == 1 and int(saved[0][5:]) < 60 and not (folder / "student").exists()
    again = submit(path.parent, 42, str(path), "checkpoint.every=1000")
    _, said = again.communicate(timeout=900)
    assert again.returncode == 0, said[-3000:]
    assert not (path.parent / "slurm42" / "requeued").exists()
    assert (folder / "student" / "model.safetensors").is_file()
    ours, theirs = read_log(folder / "log.jsonl"), read_log(train(read(path, ["name=whole"])) / "log.jsonl")
    assert [line["step"] for line in ours] == list(range(1, 61))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)


@pytest.mark.slow
def test_a_job_that_fails_says_so_and_is_not_put_back(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    job = submit(path.parent, 43, str(path), "optim.step=1")
    _, said = job.communicate(timeout=300)
    assert job.returncode != 0 and 'unknown field "optim.step"' in said
    assert not (path.parent / "slurm43" / "requeued").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", ["train.slurm", "torchrun.sh"])
def test_scripts_are_bash(script: str) -> None:
    assert not subprocess.run(["bash", "-n", str(ROOT / "docs" / "cluster" / script)], capture_output=True).returncode
