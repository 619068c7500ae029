"""The training loop: fetch, look, learn, log, save; for one arm or many. It knows no teacher."""

import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from distill.crew import Crew
from distill.learner import Learner, Seen
from distill.streams import Shown, Streams, Taken, micro_batches, show


def train(learners: Sequence[Learner], stream: Streams, device: torch.device) -> None:
    """Every learner from where it stands to its last step, all of them on the same batches of the same streams.

    `stream` must stand where the learner that is furthest behind stands; the others wait until it has caught up. All
    learners must agree on optim.accumulate and on `engine` (`distill.groups`).
    """
    first = min(learner.start for learner in learners)
    last = max(learner.recipe.optim.steps for learner in learners)
    crew = Crew(learners[0].recipe.engine, learners[0].engine.accelerator, len(learners))
    for learner in learners:
        learner.engine.model.train()
        learner.clock.restart()
    quiet = not learners[0].engine.accelerator.is_main_process
    name = ", ".join(learner.recipe.name for learner in learners)
    bar = tqdm(total=last, initial=first, desc=name, disable=quiet, mininterval=2, leave=True)
    losses: dict[str, str] = {}
    for done in range(first + 1, last + 1):
        began = time.perf_counter()
        taken = stream.take(done - 1)
        waited = time.perf_counter() - began
        active = [learner for learner in learners if learner.takes_part(done)]
        for learner in active:
            learner.clock.add("data", waited)
        update(active, done, taken, crew, device)
        for learner in active:
            with learner.turn():
                loss = learner.finish(done, taken)
            if loss is not None:
                losses["loss" if len(learners) == 1 else learner.recipe.name] = f"{loss:.4f}"
                bar.set_postfix(losses, refresh=False)
        bar.update()
    bar.close()
    crew.close()


def update(learners: Sequence[Learner], done: int, taken: Sequence[Taken], crew: Crew, device: torch.device) -> None:
    """Update number `done` of every learner, micro-batch by micro-batch, so that no more than one is on the device."""
    for learner in learners:
        learner.begin(done)
    pieces = micro_batches(taken, learners[0].recipe.optim.accumulate)
    for number, piece in enumerate(pieces, 1):
        shown, together = show(piece, device), []
        for index, learner in enumerate(learners):
            with learner.turn():
                seen = learner.look(shown, first=index == 0)
                learn = job(learner, shown, seen, last=number == len(pieces))
                if learner.draws or crew.hands == 1:
                    crew.alone(learn)
                else:
                    together.append(learn)
        crew.run(together)


def job(learner: Learner, shown: Sequence[Shown], seen: Seen, *, last: bool) -> Callable[[], None]:
    """A learner's part in a micro-batch, to be done in its turn or beside others'."""

    def learn() -> None:
        learner.clock.start()
        learner.learn(shown, seen, last)

    return learn
