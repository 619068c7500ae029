"""How long a run waits for its shards: without an index (cold), and with the ones that the first start left (warm).

    python benchmarks/shard_start.py --shards 100 --members 10000

Shards of tiny members in a temporary folder: what is measured is the headers, not the bytes between them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imagery.tar_members import BLOCK

PROGRAM = (
    "import sys, time; from imagery.sources import open_source; began = time.perf_counter(); "
    "count = len(open_source(sys.argv[1])); print(count, time.perf_counter() - began)"
)


def write_shard(path: Path, members: int) -> None:
    """A tar of `members` images of one block; headers by tarfile would take longer than what is measured."""
    import tarfile

    info = tarfile.TarInfo("00000000.jpg")
    info.size = 100
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    base = sum(header[:148]) + sum(header[156:]) + 8 * 32 - sum(header[:8])
    body = bytes(range(100)).ljust(BLOCK, b"\0")
    with open(path, "wb") as file:
        for number in range(members):
            name = f"{number:08d}".encode()
            header[:8], header[148:156] = name, f"{base + sum(name):06o}\0 ".encode()
            file.write(header + body)
        file.write(bytes(2 * BLOCK))


def started(spec: str, processes: int) -> tuple[float, float]:
    """Seconds until the slowest of `processes` has its source, and seconds of processors in all of them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, spec],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(processes)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    seconds = max(float(run.communicate()[0].split()[1]) for run in runs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2, help="that start at the same time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for number in range(options.shards):
            write_shard(Path(folder) / f"{number:05d}.tar", options.members)
        print(f"{options.shards} shards of {options.members} members, written in {time.perf_counter() - began:.1f} s")
        for name in ("cold", "warm"):
            wall, cpu = started(f"webdataset:{folder}", options.processes)
            print(f"{name}: {wall:.1f} s, {cpu:.1f} s of processors, {options.processes} processes, imports included")


if __name__ == "__main__":
    main()
