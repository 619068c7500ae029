"""What was launched is what runs, or is refused with the command that works."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TWO_MACHINES = (
    "--num_machines 2 --num_processes 4 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29533"
)


def refused(tmp_path: Path, options: str) -> str:
    """What `accelerate launch` of the debug recipe says when it is refused; nothing may have been written."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", *shlex.split(options)]
    command += ["distill/run.py", "recipes/debug.yaml", f"out={tmp_path / 'runs'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "started one alone" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
    return done.stderr


def test_two_processes_that_would_train_alone_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, "--num_processes 2")
    assert f"torchrun --nproc-per-node 2 distill/run.py recipes/debug.yaml out={tmp_path / 'runs'}" in said


@pytest.mark.slow
def test_two_machines_that_would_train_alone_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, TWO_MACHINES)
    assert "--nproc-per-node 2 --nnodes 2 --node-rank RANK --master-addr 10.0.0.1 --master-port 29533 distill" in said


@pytest.mark.slow
def test_numbers_in_a_config_file_are_seen_too(tmp_path: Path) -> None:
    """Then they are in nobody's command line: only the address to meet at gives them away."""
    config = tmp_path / "config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_machines: 1\nnum_processes: 2\n"
        "machine_rank: 0\nmixed_precision: 'no'\nuse_cpu: true\n"
    )
    assert "torchrun --nproc-per-node PROCESSES distill/run.py" in refused(tmp_path, f"--config_file {config}")
