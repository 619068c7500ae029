"""Trains the tiny teachers on scenes: `python -m tools.tiny_teachers.train clip|dino|sam|all --out DIR`."""

import argparse
import dataclasses
import os
import platform
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError, add_debug_flag, guard
from imagery.scenes import Scene, render_scene, vocab
from teachers.tiny.card import load_teacher, save_teacher, write_card
from teachers.tiny.model import ARCHITECTURES, TinyNetwork, initialise
from teachers.tiny.text import Tokenizer
from tools.tiny_teachers.cache import SceneCache
from tools.tiny_teachers.fill import fill, fingerprint
from tools.tiny_teachers.loop import Schedule, train
from tools.tiny_teachers.objectives import LabelCounts, build_objective
from tools.tiny_teachers.readme import write_readme
from tools.tiny_teachers.scores import dense_scores, encode, text_scores

SIZE = 224
TRAIN_STREAM, HELD_OUT_STREAM = 77001, 77002  #: scene streams; nothing else in the project draws from them
SCHEDULES = {
    "clip": Schedule(steps=1200, batch=64, whole=0.625, seed=11),
    "dino": Schedule(steps=1300, batch=48, seed=12),
    "sam": Schedule(steps=800, batch=32, seed=13),
}
COUNTS = LabelCounts(len(vocab.SEMANTIC_CLASSES), len(vocab.PARTS), vocab.COARSE_CLASSES)
SCENE_PROMPTS = ("{1}, a large {0}", "a picture taken {1} of a large {0}", "a scene {1} with a {0}")


def draw(stream: int, index: int) -> Scene:
    """Scene `index` of a stream with all labels."""
    return render_scene(stream, index, SIZE, SIZE)


def class_prompts() -> list[list[str]]:
    """A few sentences per scene class."""
    split = [name.rsplit(" ", 1) for name in vocab.SCENE_CLASSES]
    return [[prompt.format(kind, place) for prompt in SCENE_PROMPTS] for kind, place in split]


def build_network(name: str, cache: SceneCache, seed: int) -> TinyNetwork:
    """A fresh network; the vocabulary of clip's text tower is every word of the training captions and the prompts."""
    if ARCHITECTURES[name].embedding is None:
        return initialise(ARCHITECTURES[name], seed)
    texts = [caption for row in cache.captions() for caption in row]
    texts += [*vocab.COARSE_CLASSES, *(prompt for row in class_prompts() for prompt in row)]
    return initialise(ARCHITECTURES[name], seed, Tokenizer.from_texts(texts))


def score_network(name: str, network: TinyNetwork, training: SceneCache, held_out: SceneCache) -> dict[str, float]:
    """Scores on held-out scenes; ridge probes are fitted on training scenes."""
    fit = encode(network, training, np.arange(min(600, len(training))))
    held = encode(network, held_out, np.arange(len(held_out)))
    scores = dense_scores(fit, held, COUNTS.semantic, COUNTS.coarse)
    if network.text is None:
        return scores
    labels = torch.from_numpy(np.array(held_out.facts["scene_class"])).long()
    return scores | text_scores(network, held, held_out.captions(), class_prompts(), labels)


def facts_of(name: str, schedule: Schedule, result: dict[str, float], training: SceneCache) -> dict[str, Any]:
    """What the card says about the training."""
    clocks = {key: round(result.pop(key), 1) for key in ("wall_seconds", "cpu_seconds")}
    return {
        "training": dataclasses.asdict(schedule) | clocks,
        "data": {
            "scenes": len(training),
            "stream": TRAIN_STREAM,
            "held_out_stream": HELD_OUT_STREAM,
            "size": SIZE,
            "fingerprint": fingerprint(training),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "final_losses": {key: round(value, 4) for key, value in result.items()},
    }


def make_teacher(name: str, schedule: Schedule, training: SceneCache, held_out: SceneCache, out: Path) -> None:
    """Train, save, load again, score what was loaded, complete the card."""
    network = build_network(name, training, schedule.seed)
    objective = build_objective(name, network, COUNTS, training.captions, schedule.seed + 1)
    checkpoint = out / f"{name}.checkpoint"
    out.mkdir(parents=True, exist_ok=True)
    result = train(network, objective, training, schedule, checkpoint)
    save_teacher(out, name, network, facts_of(name, schedule, result, training))
    loaded, card = load_teacher(out, name)
    card["scores"] = score_network(name, loaded, training, held_out)
    write_card(out, name, card)
    checkpoint.unlink(missing_ok=True)
    print(f"tiny:{name}", card["training"], card["final_losses"], card["scores"], sep="\n  ")


def choose_schedule(name: str, options: argparse.Namespace) -> Schedule:
    """The teacher's own schedule, changed as the command line says."""
    schedule = SCHEDULES[name]
    zoom = schedule.zoom if options.zoom is None else tuple(options.zoom)
    if not 0 < zoom[0] <= zoom[1] <= 1:
        raise UserError(f"--zoom {zoom[0]} {zoom[1]}: two shares of the scene's side, 0 < LOW <= HIGH <= 1")
    steps = schedule.steps if options.steps is None else options.steps
    return dataclasses.replace(schedule, steps=steps, zoom=zoom, seed=schedule.seed + options.seed)


def main(argv: list[str]) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_teachers.train", description=__doc__)
    parser.add_argument("name", choices=[*SCHEDULES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and cards")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "tiny-teachers-scenes")
    parser.add_argument("--scenes", type=int, default=6000, help="training scenes")
    parser.add_argument("--held-out", type=int, default=400, help="scenes to score on")
    parser.add_argument("--steps", type=int, help="instead of the schedule's own number")
    parser.add_argument(
        "--zoom", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of a crop's side over the scene's, for each"
    )
    parser.add_argument("--seed", type=int, default=0, help="added to the schedule's own seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw scenes")
    parser.add_argument("--threads", type=int, default=1, help="threads per teacher; the shipped weights used 1")
    add_debug_flag(parser)
    options = parser.parse_args(argv)
    training, held_out = (
        # It is drawn with labels, so none of its maps is None.
        fill(partial(draw, stream), count, SIZE, options.cache / f"{stream}-{count}", options.workers)  # type: ignore[arg-type]
        for stream, count in ((TRAIN_STREAM, options.scenes), (HELD_OUT_STREAM, options.held_out))
    )
    torch.set_num_threads(options.threads)
    for name in SCHEDULES if options.name == "all" else [options.name]:
        make_teacher(name, choose_schedule(name, options), training, held_out, options.out)
    write_readme(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
