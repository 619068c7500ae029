"""What a comparison measures, and its results as JSON lines that others can add to.

A line is one adapter on one budget of teacher passes. `setting` says what lines must have in common to stand in one
table: the very teacher, images (by content, not by place), views, factor and probes. What stands in a file already is
not measured again, and files of several people are read together. docs/adapters.md has the fields.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.digests import digest_value, short
from common.errors import UserError
from common.jsonl import Log
from common.recipes import read_recipe
from featsharp_adapter.compare.variants import FIELDS
from featsharp_adapter.recipe import AdapterRecipe
from featsharp_adapter.training.teacher_data import TeacherData, open_once

SCHEMA = 1
REVISION = 3  #: raised by hand when the code changes what a comparison measures: its results stand in another table


@dataclass(frozen=True)
class Outcome:
    """One adapter: mean squared errors in normalised space on held-out views, and what they do not tell.

    recipe: digest of the upsampler, its options and the fields that variants may differ in. passes: of the teacher, an
    image. steps: of gradient descent. mse_learned: by the downsampler trained with it; None for a budget of passes, for
    which none is. fidelity: equation 7 by the learned downsampler, or by the average where there is none. tv, crf, mmd:
    `side_metrics`. milliseconds, mebibytes: of sharpening one image whose views are there, all threads, tensors only.
    seconds: CPU time of training and judging, all threads.
    """

    setting: dict[str, Any]
    upsampler: str
    recipe: str
    seed: int
    passes: float
    steps: int
    mse_average: float
    mse_learned: float | None
    fidelity: float
    tv: float
    crf: float
    mmd: float
    parameters: int
    seconds: float
    milliseconds: float
    mebibytes: float
    probes: dict[str, float] = field(default_factory=dict)  #: on sharpened features, where a suite was given

    @property
    def teacher(self) -> str:
        return str(self.setting["teacher"])

    @property
    def key(self) -> str:
        """Equal for two measurements of the same thing."""
        return key_of(asdict(self))


def key_of(identity: Mapping[str, Any]) -> str:
    """`Outcome.key`, of the fields that are known before it is measured."""
    return digest_value([identity[name] for name in ("setting", "upsampler", "recipe", "seed", "passes")])


def setting_of(recipe: AdapterRecipe, data: TeacherData, suite: Sequence[str] = ()) -> dict[str, Any]:
    """What results must share to be compared; nothing in it names a place on this machine.

    suite: the file of the probes, and changes to it; by what they say, not by their name.
    """
    return {
        "program": f"{version('agglomerate')}, comparisons {REVISION}",
        "teacher": data.spec.name,
        "teacher_digest": data.spec.digest,
        "factor": recipe.factor,
        "train": open_once(recipe.data.train).fingerprint,
        "held_out": open_once(recipe.data.held_out).fingerprint,
        "images": data.images,
        "held_out_images": recipe.data.held_out_images,
        "zoom": list(recipe.data.zoom),
        "hflip": recipe.data.hflip,
        "views": recipe.views.model_dump(mode="json"),
        "published_views": recipe.published_views,
        "seed": recipe.seed,
        "suite": short(digest_value(read_recipe(suite[0], suite[1:]))) if suite else None,
    }


def variant_digest(recipe: AdapterRecipe) -> str:
    """Of all that a variant's recipe may differ in from another's."""
    said = recipe.model_dump(mode="json", include={"upsampler", "options", *FIELDS})
    return short(digest_value(said))


def append_outcome(path: Path, outcome: Outcome) -> None:
    """One more line at the end of a file of results."""
    Log(path).write({"schema": SCHEMA, **asdict(outcome)})


def read_outcomes(paths: Iterable[Path]) -> list[Outcome]:
    """The lines of these files, each measurement once. UserError for a file or a line of another kind."""
    found: dict[str, Outcome] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would break at U+2028 too
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read results {path}: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                outcome = _parse(line, f"{path}, line {number}")
                found.setdefault(outcome.key, outcome)
    return list(found.values())


def _parse(line: str, where: str) -> Outcome:
    try:
        data = json.loads(line)
        if data.pop("schema") != SCHEMA:
            raise UserError(f"{where}: results of another schema than {SCHEMA}")
        outcome = Outcome(**data)
        _ = float(outcome.mse_average), outcome.setting["teacher"], outcome.key
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        names = ", ".join(each.name for each in fields(Outcome))
        raise UserError(f"{where} is no result of a comparison ({error}); a line holds schema, {names}") from error
    return outcome
