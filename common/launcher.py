"""Processes that end with whoever started them: a launcher that is killed must not leave its workers training on."""

import ctypes
import json
import os
import signal
import sys
import threading
import time

import psutil

#: What launchers tell their processes: torchrun (`accelerate launch` of several is one), `accelerate launch` of one.
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
GRACE_SECONDS = 30.0
INITS = {"init", "systemd", "tini", "dumb-init", "docker-init", "catatonit", "podman-init"}
_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Where a launcher started this process: SIGTERM when it ends, and the end half a minute later, come what may."""
    if any(name in os.environ for name in LAUNCHED):
        end_with_parent()


def tell_launcher(message: str) -> None:
    """Where torchrun started this process, have it end its own report with the message; nothing happens elsewhere.

    torchrun prints a traceback of itself and a table of failures after what the processes said. The table shows what
    lies in the file named by TORCHELASTIC_ERROR_FILE, in the format of torch.distributed.elastic's ErrorHandler.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    reply = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(reply, file)
    except OSError:
        pass  # it has been printed already


def end_with_parent(grace: float = GRACE_SECONDS) -> None:
    """SIGTERM when the parent ends, by the kernel where it can (Linux), and by looking every second everywhere.

    `grace` seconds after the parent's end this process ends even if it does not heed the signal.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_watch, args=(parent, grace), name="launcher watch", daemon=True).start()


def _watch(parent: int, grace: float) -> None:
    while not _is_init(parent) and os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(128 + signal.SIGTERM)


def _is_init(pid: int) -> bool:
    """Whether this is what inherits orphans: then the parent ended before we could ask who it is."""
    try:
        return psutil.Process(pid).name() in INITS
    except psutil.Error:
        return True
