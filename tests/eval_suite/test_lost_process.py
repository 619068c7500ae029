"""Several processes that probe: one that hangs is found in time, a long probe of the first is not."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from common.errors import UserError, guard
from eval_suite import processes
from eval_suite.__main__ import main

SECONDS = 3.0


def _rank(rank: int, port: int, said: Path, work) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    def joined(_: list[str]) -> None:
        with processes.joined_processes("cpu", SECONDS / 60):
            work(rank, said)

    try:
        text = f"exit {guard(joined, [])}"
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    with said.open("a") as file:
        file.write(f"{rank} {text}\n")
    os._exit(0)


def run_two(work, folder: Path, seconds: float = 60.0) -> str:
    """What two processes that do `work(rank, file)` wrote into the file, until the first of them ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    said, children = folder / "said", []
    for rank in range(2):
        child = os.fork()
        if not child:
            _rank(rank, port, said, work)
        children.append(child)
    ends = time.monotonic() + seconds
    while said.exists() is False or said.read_text().count("exit") < 1:
        assert time.monotonic() < ends, "nobody noticed"
        time.sleep(0.05)
    time.sleep(1.0)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return said.read_text()


def _hangs(rank: int, said: Path) -> None:
    processes.all_say(rank, patient=True)
    if rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    began = time.monotonic()
    try:
        processes.all_say(rank)
    finally:
        with said.open("a") as file:
            file.write(f"after {time.monotonic() - began:.1f}\n")


def _works_alone(rank: int, said: Path) -> None:
    if not rank:
        time.sleep(2 * SECONDS)
    assert processes.all_say(rank, patient=True) == [0, 1]
    assert processes.all_say(rank) == [0, 1]


def test_a_process_that_hangs_is_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = run_two(_hangs, tmp_path).split()
    assert said[0] == "after" and SECONDS - 1 < float(said[1]) < 10 * SECONDS
    assert said[2:] == ["0", "exit", "2"]
    assert "another process of this run ended, hangs or cannot be reached" in capfd.readouterr().err


def test_a_long_probe_of_the_first_process_is_waited_for(tmp_path: Path) -> None:
    assert sorted(run_two(_works_alone, tmp_path).splitlines()) == ["0 exit 0", "1 exit 0"]


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_patience_is_a_time(tmp_path: Path, minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--backbone", "tiny:clip", "--suite", "recipes/suites/embedded_debug.yaml"]
    assert guard(main, [*command, "--out", str(tmp_path / "m.json"), f"--patience={minutes}"]) == UserError.exit_code
    assert "--patience" in capsys.readouterr().err
