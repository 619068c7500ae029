"""Trainings that are killed, signalled, starved and corrupted at random, and must end as if nothing had been.

    python -m tests.chaos --hours 1 --seed 0 [--trials 300] [--log FILE]

A trial: a small training of some kind is disturbed one to three times and then left alone. It may stop in words, never
with a traceback; it must end in the very bits of an undisturbed one, and say so where it had to pass over damage.
Trials are numbered, each with random numbers of its own; with --log they go on where they stopped. Processes of several
are forked here with what torchrun would tell them: the launchers themselves are in the slow tests.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.chaos_worlds import WORLDS, Started, World, begin, fresh, outcome

SECONDS, TIMES = 120.0, 20  #: after which, and after how many times an undisturbed run's length, it is called hung
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TRACEBACK = "Traceback (most recent call last)"


class Trial:
    """One trial in a folder; `faults` lists what went wrong, by kind."""

    def __init__(self, number: int, seed: int, world: World, folder: Path, expected: dict[str, str], length: float):
        self.random = random.Random(f"{seed} {number}")
        self.number, self.world, self.folder = number, world, fresh(folder)
        self.expected, self.length = expected, length
        self.faults: list[tuple[str, str]] = []
        self.deeds: list[str] = []
        self._damaged: str | None = None  # the newest checkpoint, when something in it was changed
        self._all_damaged = False

    def go(self) -> None:
        """Disturb, then let it end, then compare."""
        deeds = [self.kill, self.kill, self.signal, self.flip, self.cut, self.lose, self.litter]
        deeds += [self.small_files, self.two] + ([] if self.world.checkpoints is None else [self.spoil_log])
        deeds += [self.read_only] if can_mount() else []
        for _ in range(self.random.randint(1, 3)):
            self.random.choice(deeds)()
        for attempt in range(3):
            code, said = self.finish(self.start())
            if code == 0:
                break
            if code == 2 and "no older checkpoint is whole" in said and self._damaged:
                shutil.rmtree(self.folder / str(self.world.checkpoints))  # what the message says
                self._damaged = None
                continue
            if attempt == 2 or code != 2:
                self.faults.append(("unfinished", f"exit {code}: {said[-400:]}"))
                return
        try:
            found = outcome(self.world, self.folder)
        except Exception as error:
            self.faults.append(("differing", f"no outcome: {error!r}"))
            return
        different = sorted(key for key in {*found, *self.expected} if found.get(key) != self.expected.get(key))
        if different:
            self.faults.append(("differing", ", ".join(different)))

    def start(self, prepare: Any = None) -> Started:
        return begin(self.world, self.folder, 20000 + (os.getpid() * 7 + time.monotonic_ns() // 1000) % 30000, prepare)

    def finish(self, *started: Started) -> tuple[int, str]:
        """Wait for the end of all; the last one's exit code and the words of all.

        Tracebacks, hangs and damage that goes unsaid are noted.
        """
        codes = [self.wait(running) for running in started]
        said = "".join(running.words() for running in started)
        if TRACEBACK in said:
            self.faults.append(("traceback", said[said.index(TRACEBACK) :][-1500:]))
        if self._damaged and self._damaged not in said and 0 in codes:
            self.faults.append(("silent", f"{self._damaged} was damaged, and nothing was said"))
        if self._damaged and self._damaged in said and "no older" not in said:
            self._damaged = None
        return codes[-1], said

    def wait(self, running: Started) -> int:
        """Until a run and all its workers have ended; its exit code. A hang is noted, with what it used meanwhile."""
        ends = time.monotonic() + max(SECONDS, TIMES * self.length)  # a busy machine is not a hung run
        while (code := running.ended()) is None:
            if time.monotonic() > ends:
                pids = {running.pid, *running.workers}
                states = [state_of(pid) for pid in pids]
                for pid in pids:
                    _kill(pid, signal.SIGUSR2)  # they say where they are
                time.sleep(2.0)
                self.faults.append(("hung", f"{states}: {running.words()[-4000:]}"))
                for pid in pids:
                    _kill(pid, signal.SIGKILL)
                os.waitpid(running.pid, 0)
                return -9
            time.sleep(0.01)
        for pid in running.workers:  # of a launcher that was killed: they must follow it
            while alive(pid) and pid != running.pid:
                if time.monotonic() > ends:
                    self.faults.append(("orphans", f"worker {pid} outlived its launcher: {state_of(pid)}"))
                    _kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        return code

    def wait_a_while(self, running: Started) -> bool:
        """Somewhere in the run; False where it has ended before."""
        ends = time.monotonic() + self.random.uniform(0.0, 1.1) * self.length
        while time.monotonic() < ends:
            if Path(running.said).exists() and not alive(running.pid):
                return False
            time.sleep(0.005)
        return alive(running.pid)

    def kill(self) -> None:
        """kill -9 of the launcher, a worker, or all."""
        running = self.start()
        whom = self.random.choice(["launcher", "worker", "all"]) if self.world.launched else "all"
        if self.wait_a_while(running):
            pids = {"launcher": [running.pid], "worker": [self.random.choice(running.workers)]}
            for pid in pids.get(whom, [running.pid, *running.workers]):
                _kill(pid, signal.SIGKILL)
        self.deeds.append(f"kill {whom}")
        self.finish(running)

    def signal(self) -> None:
        """A signal to the launcher or a worker."""
        number, running = self.random.choice(SIGNALS), self.start()
        one = self.random.choice([running.pid, *running.workers])
        if self.world.launched and number == signal.SIGUSR1:
            one = self.random.choice(running.workers)
        if self.wait_a_while(running):
            _kill(one, number)
        self.deeds.append(f"{signal.Signals(number).name} to {'the launcher' if one == running.pid else 'a worker'}")
        code, said = self.finish(running)
        if code not in (0, 128 + number, -number, 1):
            self.faults.append(("exit code", f"{number}: {code}: {said[-300:]}"))

    def victim(self) -> Path | None:
        """A file that the next start reads, after an interrupted run; None where there is none.

        Of the newest checkpoint, whose damage must be told; or one that can be made again.
        """
        self.kill()
        if (self.folder / self.world.end).exists():  # nobody reads those of a finished run
            return None
        newest = None
        if self.world.checkpoints is not None:
            newest = max((self.folder / self.world.checkpoints).glob("step-????????"), default=None)
        kept = [path for pattern in self.world.kept for path in self.folder.glob(pattern) if path.is_file()]
        if newest is None or (kept and self.random.random() < 0.2):
            return self.random.choice(sorted(kept)) if kept else None
        self._damaged = newest.name
        return self.random.choice(sorted(path for path in newest.rglob("*") if path.is_file()))

    def flip(self) -> None:
        """One bit, anywhere."""
        path = self.victim()
        if path is not None and path.stat().st_size:
            content = bytearray(path.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            path.write_bytes(content)
            self.deeds.append(f"flip {path.name}")

    def cut(self) -> None:
        """The end of a file gone."""
        path = self.victim()
        if path is not None and path.stat().st_size:
            os.truncate(path, self.random.randrange(path.stat().st_size))
            self.deeds.append(f"cut {path.name}")

    def lose(self) -> None:
        """A file gone."""
        path = self.victim()
        if path is not None:
            path.unlink()
            self.deeds.append(f"lose {path.name}")

    def litter(self) -> None:
        """What others, and killed writers, leave in the folder of checkpoints."""
        self.kill()
        folder = self.folder / (self.world.checkpoints or "run/metrics.json.unfinished")
        if (self.folder / self.world.end).exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("step-00000099.bak", "step-100", ".writing-step-00000004", ".removing-step-00000001"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "state.json").write_text("{")
        self.deeds.append("litter")

    def spoil_log(self) -> None:
        """Zeros at the end of the log, as some file systems leave them after a crash, and half a line."""
        self.kill()
        log = self.folder / "run" / "log.jsonl"
        if log.exists() and not (self.folder / self.world.end).exists():
            with log.open("ab") as file:
                file.write(self.random.choice([bytes(100), b'{"step": 3, "lo', b"\n\xff\xfe\n"]))
            self.deeds.append("spoilt log")

    def small_files(self) -> None:
        """A disk that takes no file over some size."""
        if not list(self.folder.iterdir()):
            self.kill()  # what the trial itself writes is there already
        limit = self.random.choice([500, 5000, 30000])

        def prepare() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        said = self.finish(self.start(prepare))
        self.deeds.append(f"files up to {limit} bytes: exit {said[0]}")

    def read_only(self) -> None:
        """A disk that turns read-only in the middle."""
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        try:
            running = self.start()
            self.wait_a_while(running)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=False, capture_output=True)
            code, _ = self.finish(running)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        self.deeds.append(f"read-only: exit {code}")

    def two(self) -> None:
        """A second starter while the first is at work: one of them is refused."""
        first = self.start()
        self.wait_a_while(first)
        second = self.start()
        damaged = self._damaged
        code, said = self.finish(first, second)
        if code == 2 and "is in use" not in said and not damaged:
            self.faults.append(("two", f"refused otherwise: {said[-300:]}"))
        self.deeds.append(f"two starters: the second exits {code}")


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def state_of(pid: int) -> str:
    """What a process is at, and the processor time it has used: a slow one has used much, a hung one little."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return f"{process.status()}, {sum(process.cpu_times()[:2]):.1f} s of processor time"
    return "gone"


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def can_mount() -> bool:
    """Whether this process may mount: it may as root of a machine or of most containers."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def main(argv: list[str]) -> int:
    """Trials until the time or the count is up; the sums at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=10**9)
    parser.add_argument("--worlds", nargs="*", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--log", type=Path, help="a line for every trial; those in it are not made again")
    options = parser.parse_args(argv)
    ends = time.monotonic() + 3600 * options.hours
    done = (
        [json.loads(line) for line in options.log.read_text().splitlines()]
        if options.log and options.log.exists()
        else []
    )
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    expected: dict[str, tuple[dict[str, str], float]] = {}
    for name in options.worlds:
        began, trial = time.monotonic(), Trial(-1, options.seed, WORLDS[name], scratch / name / "whole", {}, 0)
        code, said = trial.finish(trial.start())
        if code:
            print(f"{name} does not train undisturbed: exit {code}\n{said[-2000:]}", file=sys.stderr)
            return 1
        expected[name] = outcome(WORLDS[name], trial.folder), time.monotonic() - began
        print(f"{name}: {expected[name][1]:.1f} s undisturbed", flush=True)
    for number in range(len(done), options.trials):
        if time.monotonic() > ends:
            break
        name = options.worlds[number % len(options.worlds)]
        trial = Trial(number, options.seed, WORLDS[name], scratch / name / "trial", *expected[name])
        trial.go()
        line = {"trial": number, "world": name, "deeds": trial.deeds, "faults": trial.faults}
        done.append(line)
        if options.log:
            with options.log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if trial.faults:
            print(f"trial {number}, {name}, {'; '.join(trial.deeds)}: {trial.faults}", flush=True)
    shutil.rmtree(scratch, ignore_errors=True)
    faults = Counter(kind for line in done for kind in {fault[0] for fault in line["faults"]})
    print(f"trials {len(done)}, by world {dict(Counter(line['world'] for line in done))}")
    deeds = Counter(deed.split(":")[0] for line in done for deed in line["deeds"])
    print(f"deeds {sum(deeds.values())}: {dict(deeds.most_common())}")
    print(
        f"differing bits {faults['differing']}, tracebacks {faults['traceback']}, silent acceptances {faults['silent']}"
    )
    print(f"others { ({kind: n for kind, n in faults.items() if kind not in ('differing', 'traceback', 'silent')}) }")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
