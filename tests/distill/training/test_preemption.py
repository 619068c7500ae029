"""A signal ends a run after the running update, with a checkpoint from which it goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from run_logs import without_time
from same_state import assert_same_checkpoints
from small_run import train

from common.jsonl import read_log
from distill.recipe import read

ROOT = Path(__file__).parents[3]
LONG = ["optim.steps=60", "checkpoint.every=1000", "student.drop_path=0.2"]


def begin(*command: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_lines(log: Path, count: int, process: subprocess.Popen[str]) -> None:
    while not (log.exists() and log.read_text().count("\n") >= count):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends(write_recipe: Callable[..., Path], number: signal.Signals, code: int) -> None:
    path = write_recipe()
    folder = read(path).folder
    process = begin("distill/run.py", str(path), *LONG)
    wait_for_lines(folder / "log.jsonl", 5, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    saved = [each.name for each in (folder / "checkpoints").iterdir()]
    assert process.returncode == code and len(saved) == 1
    assert (
        f"stopped by {number.name} after step {int(saved[0][5:])}, which is saved" in said and "Traceback" not in said
    )
    train(read(path, LONG))
    whole = train(read(path, [*LONG, "name=whole"]))
    assert without_time(read_log(folder / "log.jsonl")) == without_time(read_log(whole / "log.jsonl"))
    assert_same_checkpoints(folder, whole)


@pytest.mark.slow
def test_sigusr1_saves_and_goes_on(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    folder = read(path).folder
    process = begin("distill/run.py", str(path), *LONG)
    wait_for_lines(folder / "log.jsonl", 5, process)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0 and "is saved, as SIGUSR1 asked" in said
    assert len(list((folder / "checkpoints").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_stop_together_when_their_launcher_is_ended(
    write_recipe: Callable[..., Path], how: signal.Signals
) -> None:
    """torchrun passes SIGTERM on; after kill -9 the workers find out by themselves. Either way one checkpoint."""
    path = write_recipe()
    folder = read(path).folder
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = begin(*launcher, "distill/run.py", str(path), *LONG)
    wait_for_lines(folder / "log.jsonl", 5, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    process.communicate()
    assert gone and not alive
    assert len(list((folder / "checkpoints").glob("step-????????"))) == 1
