"""Two network namespaces as two machines: they train as one does, and where one is cut off the other ends in words."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import assert_close
from small_run import train

from distill.recipe import read

ROOT = Path(__file__).parents[3]
NAMES = (f"agg{os.getpid()}a", f"agg{os.getpid()}b")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a cable, 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs ip and root")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "agg0", "netns", NAMES[0], "type", "veth", "peer", "name", "agg1", "netns", NAMES[1])
        for number, name in enumerate(NAMES):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"agg{number}")
            ip("-n", name, "link", "set", f"agg{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    yield NAMES
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def launch(machine: str, number: int, recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """The documented command of several machines on one of them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"agg{number}"}
    command = ["ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "1", "--node-rank", str(number), "--master-addr", "10.77.0.1"]
    command += ["--master-port", "29511", "distill/run.py", str(recipe), *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["off", "on"])
def test_two_machines_train_as_one(machines: tuple[str, str], write_recipe: Callable[..., Path], engine: str) -> None:
    """Plain and ZeRO-2: every loss and norm, and the student, within the tolerance of two processes on one machine."""
    lamb = {"steps": 6, "batch_size": 4, "lr": 0.003, "warmup_steps": 2, "name": "lamb"}
    path = write_recipe(optim=lamb)
    settings = ["name=machines", f'engine.deepspeed="{engine}"', *(["engine.zero_stage=2"] if engine == "on" else [])]
    both = [launch(machine, n, path, *settings) for n, machine in enumerate(machines)]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)[-3000:]
    alone = train(read(path, ["name=alone"]))
    assert_close(alone.with_name("machines"), alone)
    environment = json.loads((alone.with_name("machines") / "environment.json").read_text())
    assert environment["processes"] == 2 and (environment["deepspeed"] is not None) == (engine == "on")


@pytest.mark.slow
def test_a_machine_that_is_cut_off_ends_the_other_in_words(
    machines: tuple[str, str], write_recipe: Callable[..., Path]
) -> None:
    """Within engine.patience, half a minute here, and the time to say so."""
    path = write_recipe()
    long = ["name=cut", "optim.steps=100000", "engine.patience=0.5", "checkpoint.every=5"]
    both = [launch(machine, n, path, *long) for n, machine in enumerate(machines)]
    log = read(path).folder.with_name("cut") / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 6):
        assert both[0].poll() is None, both[0].communicate()[1][-2000:]
        time.sleep(0.05)
    ip("-n", machines[1], "link", "set", "agg1", "down")
    began = time.monotonic()
    said = both[0].communicate(timeout=150)[1]
    assert both[0].returncode != 0 and time.monotonic() - began < 120
    assert "another process of this run" in said and "start again to go on" in said
    both[1].kill()
    both[1].communicate()
