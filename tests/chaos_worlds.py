"""What chaos.py torments: the smallest trainings of each kind, run in children that are forked with torch warm."""

import faulthandler
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).parents[1]
for room in ("distill", "featsharp_adapter", "eval_suite"):
    sys.path.insert(0, str(ROOT / "tests" / room))

from small_run import small_recipe  # noqa: E402
from tiny_language import tiny_language  # noqa: E402
from toy_world import Oracle, ToyData  # noqa: E402

from common.errors import guard  # noqa: E402
from common.jsonl import read_log  # noqa: E402
from common.recipes import validate  # noqa: E402
from eval_suite.vlm.recipe import VlmRecipe  # noqa: E402
from eval_suite.vlm.training import Where, trained  # noqa: E402
from tests.run_logs import without_time  # noqa: E402

# What the trainings import when they begin, now: a fork then begins at once.
for module in ("distill.preflight", "distill.training.arms", "distill.training.processes", "featsharp_adapter.train"):
    importlib.import_module(module)
for module in ("deepspeed", "small_recipes", "small_teacher", "teachers.timm_backbone", "transformers", "peft"):
    importlib.import_module(module)
for module in ("eval_suite.__main__", "eval_suite.suite", "eval_suite.predictions", "teachers.tiny.backbone"):
    importlib.import_module(module)

VOLATILE = {"identity", "ds_config", "ds_version"}
#: What accelerate's launcher tells a single process, and torchrun each of several.
ACCELERATE, TORCHRUN = {"ACCELERATE_MIXED_PRECISION": "no"}, {"TORCHELASTIC_RUN_ID": "chaos"}


@dataclass(frozen=True)
class World:
    """A kind of training. `run(folder)` runs it to its end in this process; `processes` are forked for it."""

    name: str
    run: Callable[[Path], int]
    checkpoints: str | None = "run/checkpoints"  #: its folder of checkpoints, below the trial's
    kept: tuple[str, ...] = ()  #: patterns of files that a start reads again, and makes again where they are damaged
    end: str = "run/student"  #: what is there when it is finished
    processes: int = 1
    launched: bool = False  #: by a launcher of its own, which a single process does without
    deepspeed: bool = False


def distillation(folder: Path) -> int:
    """distill/run.py on the small recipe, a checkpoint after each of eight updates."""
    import runpy

    recipe = small_recipe(folder)
    recipe |= {"name": "run", "checkpoint": {"every": 1, "keep": 3}, "normaliser": {"batches": 1}}
    recipe["data"] = recipe["data"] | {"train": "scenes:seed=3,count=4,size=32,cache=true"}
    recipe["optim"] = recipe["optim"] | {"steps": 8}
    recipe["student"] = recipe["student"] | {"drop_path": 0.2}
    path = folder / "recipe.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    sys.argv = ["distill/run.py", str(path)]
    try:
        runpy.run_path(str(ROOT / "distill" / "run.py"), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def adapter(folder: Path) -> int:
    """featsharp_adapter/train.py with the small teacher, a checkpoint after every step."""
    from small_recipes import image_folder
    from small_recipes import small_recipe as adapter_recipe
    from small_teacher import SmallTeacher

    from featsharp_adapter import train
    from featsharp_adapter.training import teacher_data

    teacher_data.load_backbone = lambda node: SmallTeacher()
    pictures = folder.parent / "pictures"
    if not pictures.exists():
        image_folder(pictures)
    recipe = adapter_recipe(pictures, out=str(folder / "run"), checkpoint={"every": 1, "keep": 3})
    path = folder / "recipe.yaml"
    if not path.exists():
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return guard(train.main, [str(path)])


def vlm(folder: Path) -> int:
    """The two stages of a tiny LLaVA with LoRA and dropout."""
    language = folder.parent / "language"
    if not language.exists():
        language.mkdir()
        tiny_language(language, ["what colour is square ? 0 5 red green blue white", "a picture of"])
    stage = {"data": "toy", "use": "questions", "batch": 4, "steps": 5, "learning_rate": 3e-3, "warmup": 0.1}
    align = {"data": "toy", "use": "captions", "batch": 4, "steps": 3, "learning_rate": 1e-2}
    tune = {"tune": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}, "save_every": 1}
    recipe = validate(VlmRecipe, {"language_model": str(language), "stage1": align, "stage2": stage, **tune}, "chaos")
    where = Where(torch.device("cpu"), folder / "run")
    return guard(lambda _: trained(Oracle(), recipe, {"toy": ToyData(8, 4)}, 0, where) and None, [])


def probing(folder: Path) -> int:
    """eval_suite run: a few probes of a shipped backbone on a few scenes, with kept features and predictions."""
    from eval_suite import __main__ as program

    suite = folder / "suite.yaml"
    if not suite.exists():
        shipped = ROOT / "recipes" / "suites" / "embedded_debug.yaml"
        suite.write_text(yaml.safe_dump({"extends": str(shipped), "data": {"scenes": {"train": 8, "test": 6}}}))
    chosen = [word for group in ("classification", "dense", "retrieval") for word in ("--only", group)]
    command = ["run", "--backbone", "tiny:clip", "--suite", str(suite), "--out", str(folder / "run" / "metrics.json")]
    return guard(program.main, [*command, "--cache", str(folder / "run" / "cache"), "--keep-predictions", *chosen])


FITTED = ("run/normaliser/*",)
WORLDS = {
    world.name: world
    for world in (
        World("plain", distillation, kept=FITTED),
        World("accelerate launch", distillation, kept=FITTED, launched=True),
        World("two processes", distillation, kept=FITTED, processes=2, launched=True),
        World("ZeRO-2", distillation, kept=FITTED, processes=2, launched=True, deepspeed=True),
        World("adapter", adapter, end="run/adapter"),
        World("vlm", vlm),
        World("probing", probing, None, ("run/*.unfinished/**/*", "run/cache/**/*"), "run/metrics.json"),
    )
}


@dataclass
class Started:
    """A running world: its first process (of several: their launcher), and where what they say goes."""

    pid: int
    workers: list[int]
    said: Path

    def ended(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    def words(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace")


def begin(world: World, folder: Path, port: int, prepare: Callable[[], None] | None = None) -> Started:
    """Fork the world's process, or a launcher that forks its workers as torchrun does and ends with the first to fail.

    prepare: called in every process first.
    """
    said = folder / f"said-{time.monotonic_ns()}.txt"
    pids = folder / "pids"
    pids.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _child(world, folder, port, said, pids, prepare)
    if not world.launched:
        return Started(pid, [pid], said)
    ends = time.monotonic() + 60
    while not pids.exists() and time.monotonic() < ends:
        time.sleep(0.01)
    return Started(pid, [int(word) for word in pids.read_text().split()], said)


def _child(world: World, folder: Path, port: int, said: Path, pids: Path, prepare: Callable[[], None] | None) -> None:
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        code = _launch(world, folder, port, pids, prepare) if world.launched else _work(world, folder, prepare)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(world: World, folder: Path, prepare: Callable[[], None] | None) -> int:
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # the way of chaos.py to ask where a process hangs
    if prepare is not None:
        prepare()
    return world.run(folder)


def _launch(world: World, folder: Path, port: int, pids: Path, prepare: Callable[[], None] | None) -> int:
    workers = []
    for rank in range(world.processes):
        pid = os.fork()
        if pid == 0:
            os.environ |= TORCHRUN | told(world, rank, port) if world.processes > 1 else ACCELERATE
            code = 1
            try:
                code = _work(world, folder, prepare)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        workers.append(pid)
    pids.with_suffix(".new").write_text(" ".join(map(str, workers)))
    pids.with_suffix(".new").rename(pids)
    if world.processes > 1:  # accelerate's launcher of one process passes nothing on, and dies
        stop = lambda number, frame: [_kill(worker, number) for worker in workers]  # noqa: E731
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    codes: dict[int, int] = {}
    while len(codes) < len(workers):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] != 0:
            for worker in set(workers) - codes.keys():
                _kill(worker, signal.SIGTERM)
    bad = [code for code in codes.values() if code]
    return (bad[0] if bad[0] > 0 else 128 - bad[0]) if bad else 0


def told(world: World, rank: int, port: int) -> dict[str, str]:
    """What a launcher of several puts into the environment of each."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own |= {"WORLD_SIZE": str(world.processes), "LOCAL_WORLD_SIZE": str(world.processes)}
    if world.deepspeed:
        own |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    return own


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def outcome(world: World, folder: Path) -> dict[str, str]:
    """What a finished training left: digests of the numbers in its last checkpoint, its student or model, its log."""
    found: dict[str, str] = {}
    if world.checkpoints is not None:
        newest = max((folder / world.checkpoints).glob("step-????????"))
        found["checkpoint"] = newest.name
        for path in sorted(newest.rglob("*")):
            if path.is_file() and path.name not in ("manifest.json", "state.json"):
                found[str(path.relative_to(newest))] = digest(contents(path))
    else:
        for path in sorted((folder / "run").glob("metrics*")):
            found[path.name] = digest(contents(path) if path.is_file() else "left over")
    for path in sorted((folder / "run").glob("*/*.safetensors")):
        found[str(path.relative_to(folder))] = digest(contents(path))
    log = folder / "run" / "log.jsonl"
    if log.exists():
        found["log"] = digest(without_time(read_log(log)))
    return found


def contents(path: Path) -> Any:
    """A file as Python has it."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    return torch.load(path, weights_only=False, map_location="cpu")


def digest(value: Any) -> str:
    """Of nested plain data and tensors, without what names a run or its folder."""
    hasher = hashlib.sha256()
    _feed(hasher, value)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        hasher.update(str(value.dtype).encode() + bytes(value.contiguous().flatten().view(torch.uint8).numpy()))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            if key not in VOLATILE:
                hasher.update(str(key).encode())
                _feed(hasher, value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            _feed(hasher, each)
    elif hasattr(value, "__dict__") and not callable(value):
        _feed(hasher, vars(value))
    else:
        hasher.update(repr(value).encode())


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
