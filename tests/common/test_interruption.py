"""Signals end a program in a line, and a launcher's end is its workers' end. With real processes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

LOOP = """
import sys, time
from common.errors import guard
from common.interruption import Stopped, heeding

def main(argv):
    if argv[0] == "no loop":
        print("begun", flush=True)
        time.sleep(60)
    with heeding(grace=2.0) as wishes:
        print("begun", flush=True)
        while not (wishes.stop and argv[0] == "heeds"):
            time.sleep(0.02)
            if wishes.save:
                wishes.save = False
                print("saved", flush=True)

sys.exit(guard(main))
"""
LAUNCHER = """
import os, subprocess, sys
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print(worker.pid, flush=True)
worker.wait()
"""


def begin(how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOOP, how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("how", ["no loop", "heeds"])
def test_a_signal_ends_a_program_in_a_line(how: str, number: signal.Signals, code: int) -> None:
    process = begin(how)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == f"stopped by {number.name}; start again to go on\n"


def test_a_program_that_does_not_come_to_an_end_is_ended() -> None:
    process = begin("is deaf")
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143 and 1.5 < time.monotonic() - began < 15
    assert said == "SIGTERM: not done after 2 s; the last checkpoint stays as it is\n"


def test_a_second_ctrl_c_does_not_wait() -> None:
    process = begin("is deaf")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=30) == 130 and time.monotonic() - began < 1.7
    process.communicate()


def test_sigusr1_is_a_wish_and_no_end() -> None:
    process = begin("heeds")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None and process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("how", ["heeds", "is deaf"])
def test_workers_end_with_their_launcher(number: signal.Signals, how: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, LOOP, how]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert launcher.stdout is not None
    worker = psutil.Process(int(launcher.stdout.readline()))
    assert launcher.stdout.readline() == "begun\n"
    os.kill(launcher.pid, number)
    launcher.wait()
    gone, alive = psutil.wait_procs([worker], timeout=20)
    assert gone and not alive
    launcher.communicate()
