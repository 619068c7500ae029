"""Is the data of a suite there and as the probes want it? Looked at before hours are spent on features."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from common.errors import UserError
from eval_suite.probes.base import Need
from eval_suite.readers.contracts import DenseImages, ImageSource, LabelledData
from eval_suite.readers.remembered import Remembered
from eval_suite.readers.scenes import ScenesNode
from eval_suite.suite import Suite

WHOLE = 100  #: sets of up to so many images are looked at whole
LOOKED_AT = 32  #: images of a larger set that are decoded, evenly spread


@dataclass(frozen=True)
class Finding:
    """One kind of label of one split: what is there, or what is wrong with it."""

    data: str
    split: str
    kind: str
    text: str
    problem: bool


def check_suite(suite: Suite, *, thorough: bool) -> list[Finding]:
    """Everything the probes of a suite ask of its data, found or not; `thorough` decodes every file."""
    findings: list[Finding] = []
    for name, node in suite.data.items():
        needs = list(dict.fromkeys(need for probe in suite.probes.values() for need in probe.wants().get(name, [])))
        if not needs:
            findings.append(Finding(name, "-", "-", "no probe of the suite uses it", False))
        elif isinstance(node, ScenesNode):
            text = f"rendered when asked for: {node.train} train, {node.test} test, {node.pairs} pairs, {node.size} px"
            findings.append(Finding(name, "-", "scenes", text, False))
        else:
            findings += _check_data(name, node, needs, thorough)
    return findings


def _check_data(name: str, node: object, needs: list[Need], thorough: bool) -> list[Finding]:
    try:
        data: LabelledData = Remembered(node.open(name))  # type: ignore[attr-defined]
    except UserError as error:
        return [Finding(name, "-", "-", str(error), True)]
    findings = []
    for need in needs:
        kind = need.kind + (f" {', '.join(need.labels)}" if need.labels else "")
        try:
            text, problem = _describe(data, need, thorough), False
        except UserError as error:
            text, problem = str(error), True
        findings.append(Finding(name, need.split, kind, text, problem))
    return findings


def _describe(data: LabelledData, need: Need, thorough: bool) -> str:
    """One line on a set; UserError for the first thing that is wrong."""
    if need.kind == "dense":
        return _dense(data.dense(need.split), need.labels, thorough)
    return DESCRIBED[need.kind](data, need.split, thorough)


def _classes(data: LabelledData, split: str, thorough: bool) -> str:
    found = data.classes(split)
    return f"{_images(found.images, thorough)}, {len(torch.unique(found.labels))} of {len(found.names)} classes"


def _captions(data: LabelledData, split: str, thorough: bool) -> str:
    found = data.captions(split)
    return f"{_images(found.images, thorough)}, {sum(map(len, found.captions))} captions"


def _questions(data: LabelledData, split: str, thorough: bool) -> str:
    asked = data.questions(split)
    kinds = len({item.kind for item in asked.questions})
    return f"{_images(asked.images, thorough)}, {len(asked.questions)} questions of {kinds} kinds, rule {asked.rule}"


def _conversations(data: LabelledData, split: str, thorough: bool) -> str:
    told = data.conversations(split)
    shown = "no images" if told.images is None else _images(told.images, thorough)
    alone = sum(not item.rows for item in told.conversations)
    turns = sum(len(item.turns) for item in told.conversations)
    return f"{shown}, {len(told.conversations)} conversations of {turns} turns, {alone} of them without an image"


def _pairs(data: LabelledData, split: str, thorough: bool) -> str:
    pairs = data.pairs(split)
    seen = pairs.valid.sum(1).float()
    return (
        f"{_images(pairs.first, thorough)}, {len(pairs.first)} pairs with {int(seen.mean())} points, "
        f"{int((seen == 0).sum())} pairs without any"
    )


def _ranked(data: LabelledData, split: str, thorough: bool) -> str:
    ranked = data.ranked(split)
    return f"{_images(ranked.gallery, thorough)} in the gallery, {_images(ranked.queries, thorough)} as queries"


def _instances(data: LabelledData, split: str, thorough: bool) -> str:
    found = data.instances(split)
    objects = [thing for some in found.objects for thing in some]
    kinds, crowds = len({thing.kind for thing in objects}), sum(thing.crowd for thing in objects)
    bare = sum(not some for some in found.objects)
    what = f"{len(objects)} objects of {kinds} of {len(found.names)} categories, {crowds} crowds"
    return f"{_images(found.images, thorough)}, {what}, {bare} images without any"


def _keypoints(data: LabelledData, split: str, thorough: bool) -> str:
    points = data.keypoints(split)
    kinds = len({item.kind for item in points.objects})
    return f"{_images(points.images, thorough)}, {len(points.objects)} objects of {kinds} kinds"


DESCRIBED: Mapping[str, Callable[[LabelledData, str, bool], str]] = {
    "classes": _classes,
    "captions": _captions,
    "questions": _questions,
    "conversations": _conversations,
    "pairs": _pairs,
    "ranked": _ranked,
    "instances": _instances,
    "keypoints": _keypoints,
}


def _dense(found: DenseImages, labels: tuple[str, ...], thorough: bool) -> str:
    parts = [_images(found.images, thorough)]
    for label in labels:
        maps, seen, valid, total = found.labels(label), set(), 0, 0
        metres: list[float] = []
        names = found.names.get(label, ())
        chosen = _chosen(len(found.rows), thorough)
        for position in chosen:
            values = maps[torch.tensor([position])]
            if names:
                seen |= set(torch.unique(values).tolist()) - {255}
                valid += int((values != 255).sum())
            else:
                valid += int((values.abs().sum(1) > 0).sum() if values.ndim == 4 else (values > 0).sum())
                if values.ndim == 3 and bool((values > 0).any()):
                    metres += [float(values[values > 0].min()), float(values.max())]
            total += values.shape[-1] * values.shape[-2]
        share = f"{100 * valid / max(total, 1):.0f} % of the pixels labelled"
        share += f", {min(metres):.3g} to {max(metres):.3g} m" if metres else ""
        parts.append(f"{label}: " + (f"{len(seen)} of {len(names)} classes seen, {share}" if names else share))
        if not valid:
            raise UserError(f'"{label}" has no valid pixel in the {len(chosen)} maps looked at')
    return "; ".join(parts)


def _images(images: ImageSource, thorough: bool) -> str:
    """How many, how many of them were looked at, and the range of their own sizes; UserError for an unreadable one."""
    sizes, chosen = set(), _chosen(len(images), thorough)
    for row in chosen:
        read = getattr(images, "original", None)
        picture = images.read(torch.tensor([row]))[0] if read is None else read(row)
        sizes.add((picture.shape[-1], picture.shape[-2]))
    smallest, largest = min(sizes), max(sizes)
    shown = f"{smallest[0]}x{smallest[1]}" + (f" to {largest[0]}x{largest[1]}" if len(sizes) > 1 else "")
    looked = "" if len(chosen) == len(images) else f" ({len(chosen)} of {len(images)} looked at)"
    return f"{len(images)} images{looked}, {shown} px"


def _chosen(count: int, thorough: bool) -> list[int]:
    if thorough or count <= WHOLE:
        return list(range(count))
    return [step * count // LOOKED_AT for step in range(LOOKED_AT)]


def report_lines(findings: list[Finding]) -> Iterator[str]:
    """The findings as aligned lines, problems marked."""
    widths = [max(len(getattr(finding, field)) for finding in findings) for field in ("data", "split", "kind")]
    for finding in findings:
        head = "  ".join(
            getattr(finding, field).ljust(width) for field, width in zip(("data", "split", "kind"), widths, strict=True)
        )
        yield f"{'PROBLEM' if finding.problem else 'ok     '}  {head}  {finding.text}"
