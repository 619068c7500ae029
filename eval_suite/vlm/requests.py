"""lmms-eval's requests answered by our model. Nothing here imports lmms-eval: a request is anything with `args`.

generate_until: (context, generation arguments, doc_to_visual, doc_id, task, split);
loglikelihood: (context, continuation or doc_to_target, doc_to_visual, doc_id, task, split).
Documents are looked up in `task_dict[task][split][doc_id]`, as lmms_eval.api.model.lmms keeps them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.progress import ProgressBar
from eval_suite.vlm.model import Llava
from eval_suite.vlm.prompts import IMAGE_MARK, Encoded, encode
from eval_suite.vlm.views import Views

LONGEST = 1024  #: tokens of a reply where a task sets no limit
TaskDict = Mapping[str, Mapping[str, Sequence[Any]]]


class Request(Protocol):
    """lmms_eval.api.instance.Instance, as far as it is read."""

    @property
    def args(self) -> tuple[Any, ...]: ...


def generate(
    model: Llava, requests: Sequence[Request], tasks: TaskDict, batch: int, progress: bool = False
) -> list[str]:
    """Greedy replies in the order of the requests, cut at the first of a task's stop texts.

    Sampling is not done: where a task asks for it, it gets the greedy reply. UserError for anything but pictures.
    """
    replies = [""] * len(requests)
    by_limit: dict[int, list[int]] = {}
    for at, request in enumerate(requests):
        by_limit.setdefault(int(request.args[1].get("max_new_tokens") or LONGEST), []).append(at)
    with ProgressBar(len(requests), "replies", "request", shown=progress) as bar:
        for limit, members in by_limit.items():
            for start in range(0, len(members), batch):
                part = members[start : start + batch]
                asked = [_asked(model, requests[at].args, None, tasks) for at in part]
                said = model.answer([text for text, _ in asked], [views for _, views in asked], limit)
                for at, reply in zip(part, said, strict=True):
                    replies[at] = cut(reply, requests[at].args[1].get("until"))
                bar.update(len(part))
    return replies


def likelihoods(
    model: Llava, requests: Sequence[Request], tasks: TaskDict, progress: bool = False
) -> list[tuple[float, bool]]:
    """(log-likelihood of the continuation and its end mark, whether greedy decoding says just that)."""
    out = []
    for request in ProgressBar(len(requests), "likelihoods", "request", shown=progress).over(requests):
        target, (_, doc_id, task, split) = request.args[1], request.args[2:]
        continuation = target if isinstance(target, str) else target(tasks[task][split][doc_id])
        out.append(model.likelihood(*_asked(model, request.args, str(continuation).strip(), tasks)))
    return out


def cut(reply: str, until: str | Iterable[str] | None) -> str:
    """A reply up to the first stop text in it."""
    for stop in [until] if isinstance(until, str) else until or ():
        reply = reply.split(stop)[0] if stop else reply
    return reply.strip()


def _asked(model: Llava, args: tuple[Any, ...], answer: str | None, tasks: TaskDict) -> tuple[Encoded, list[Views]]:
    context, (show, doc_id, task, split) = args[0], args[2:]
    context = context[0] if isinstance(context, list) else context
    views = [model.view(pixels_of(picture)) for picture in _pictures(show, tasks[task][split][doc_id])]
    if context.count(IMAGE_MARK) != len(views):
        context = context.replace(IMAGE_MARK, "").strip()
    prompt = list(model.recipe.stages.values())[-1].prompt
    return encode(model.tokenizer, prompt, [(context, answer)], len(views)), views


def _pictures(show: Callable[[Any], Any], doc: Any) -> list[Any]:
    return [picture for picture in (show(doc) or []) if picture is not None]


def pixels_of(picture: Any) -> Tensor:
    """A PIL picture as uint8 [3, H, W]; UserError for a video's or a sound's path."""
    convert = getattr(picture, "convert", None)
    if convert is None:
        raise UserError(f"this model sees pictures only, a task shows it {type(picture).__name__} {str(picture)[:80]}")
    return torch.from_numpy(np.asarray(convert("RGB")).copy()).movedim(-1, 0)
