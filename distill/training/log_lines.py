"""From the results of an update's passes and micro-batches to a line of log.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from common.jsonl import Log
from distill.losses.step import StepResult
from distill.training.data import gather_objects


def joined(results: Mapping[str, StepResult]) -> StepResult:
    """The step's result from those of its passes here; the names of the terms begin with the partition's."""
    loss = torch.stack([result.loss for result in results.values()]).sum()
    return StepResult(
        loss, {f"{name}/{term}": value for name, result in results.items() for term, value in result.report.items()}
    )


def mean_result(results: Sequence[StepResult]) -> StepResult:
    """Of equal micro-batches: loss and terms as one large batch has them."""
    if len(results) == 1:
        return results[0]
    loss = torch.stack([result.loss.detach() for result in results]).mean()
    return StepResult(
        loss, {name: torch.stack([result.report[name] for result in results]).mean() for name in results[0].report}
    )


def not_finite(*values: Tensor | float) -> Tensor | bool:
    """Whether any of these numbers is NaN or infinite: a flag where the tensors are, for which nothing has waited."""
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        return True
    tensors = [value.detach().float().reshape(()) for value in values if isinstance(value, Tensor)]
    together = [value.to(tensors[0].device, non_blocking=True) for value in tensors]
    return ~torch.isfinite(torch.stack(together)).all() if together else False


def log_values(result: StepResult, norm: float | Tensor, accelerator: Accelerator, *, by_ranks: bool) -> dict[str, Any]:
    """Loss and its terms averaged over the processes, and the gradient norm. Waits for the device.

    by_ranks: whether processes may have terms of their own; then what one has not counts as zero, for each brings its
    terms in a scale that makes the mean over all of them the step's.
    """
    names, loss = list(result.report), result.loss.detach()
    if by_ranks:
        names = list(dict.fromkeys(name for each in gather_objects({"names": names}) for name in each["names"]))
    terms = torch.stack([loss, *(result.report.get(name, torch.zeros_like(loss)) for name in names)]).float()
    values = accelerator.reduce(terms, "mean").tolist()
    return {"loss": values[0], "losses": dict(zip(names, values[1:], strict=True)), "grad_norm": float(norm)}


def write_line(line: dict[str, Any], log: Log, accelerator: Accelerator) -> None:
    """Write a line to log.jsonl and the trackers."""
    if accelerator.is_main_process:
        log.write(line)
    flat = {"loss": line["loss"], **line["losses"], "grad_norm": line["grad_norm"], "lr": line["lr"], **line["time"]}
    accelerator.log({name: value for name, value in flat.items() if value is not None}, step=line["step"])
