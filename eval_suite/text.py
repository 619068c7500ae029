"""From a backbone to an image-text space: a student's adaptor, or a text tower of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from eval_suite.features import FeatureTable, ProbedBackbone
from eval_suite.metrics.classification import zero_shot_weights
from teachers.contracts import Features, capability

CHUNK = 256


class AbsentError(Exception):
    """The backbone lacks what a metric needs; the message is the reason the table will show."""


@dataclass(frozen=True)
class TextPath:
    """Unit vectors of images and of texts in one space."""

    backbone: ProbedBackbone
    project: Callable[[Features], Features] | None  #: None: the backbone's own summary is in the space
    encode_text: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def images(self, table: FeatureTable) -> Tensor:
        """Features of N images -> unit vectors [N, D]."""
        if self.project is None:
            return F.normalize(_summary_of(table.summary), dim=1)
        parts = []
        for rows in torch.arange(len(table.spatial)).split(CHUNK):
            piece = table.pick(rows)
            summary = None if piece.summary is None else piece.summary.to(self.backbone.device)
            out = self.project(Features(summary, piece.spatial.to(self.backbone.device))).summary
            parts.append(_summary_of(out).float().cpu())
        return F.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit vectors [N, D]."""
        parts = [self.encode_text(list(texts[at : at + CHUNK])).float().cpu() for at in range(0, len(texts), CHUNK)]
        return F.normalize(torch.cat(parts), dim=1)

    def classes(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Class prototypes [K, D]: each template's unit vector, averaged, made unit again (CLIP's ensembling)."""
        prompts = [template.format(name) for name in names for template in templates]
        return zero_shot_weights(self.texts(prompts).unflatten(0, (len(names), len(templates))))


def text_path(backbone: ProbedBackbone, adaptor: str) -> TextPath:
    """The student's head called `adaptor` if it has heads, else the backbone's own text tower; else AbsentError."""
    model, name = backbone.backbone, backbone.spec.name
    heads = capability(model, "adaptor")
    if heads is None:
        own = capability(model, "encode_text")
        if own is None:
            raise AbsentError(f"{name} has no text tower and no adaptor to one")
        return TextPath(backbone, None, own)
    try:
        head: Any = heads(adaptor)
    except UserError as error:
        raise AbsentError(f'{name} has no adaptor "{adaptor}": {error}') from error
    encode = capability(head, "encode_text")
    if encode is None:
        raise AbsentError(f'the adaptor "{adaptor}" of {name} has no text tower')
    return TextPath(backbone, head.project, encode)


def _summary_of(summary: Tensor | None) -> Tensor:
    if summary is None:
        raise AbsentError("the features have no summary vector")
    return summary
