"""A benchmark answered by the suite's vision-language model, which is trained once on the backbone for all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from common.errors import UserError, unknown
from common.progress import ProgressBar
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.answer_rules import score_replies
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.vlm import keep_replies
from eval_suite.readers.contracts import TEST, TRAIN, ImageSource, LabelledData, QuestionImages
from eval_suite.results import Result
from eval_suite.vlm.benchmarks import asking_of, prompt_of
from eval_suite.vlm.model import Llava
from eval_suite.vlm.prompts import encode
from eval_suite.vlm.recipe import VlmRecipe
from eval_suite.vlm.training import Where, picture_of, trained


class LlavaProbe(ProbeNode):
    """Greedy replies to a benchmark's questions, by its prompt and its scoring rule.

    `metrics`: which of the rule's numbers are reported; None: the one that counts in the paper's VLM group, or all of
    them for a user's own questions. The model itself is the suite's `vlm` node.
    """

    probe: Literal["llava"]
    group: str = "vlm"
    metrics: tuple[str, ...] | None = None  #: which of the rule's numbers; None: the one the VLM group counts
    reply_tokens: int | None = Field(default=None, gt=0)  #: at most so many in a reply; None: the benchmark's limit
    _recipe: VlmRecipe | None = PrivateAttr(default=None)

    def shares(self, recipe: VlmRecipe | None) -> None:
        """Which model answers; told by the suite."""
        self._recipe = recipe

    @property
    def recipe(self) -> VlmRecipe:
        """The suite's model; UserError where there is none."""
        if self._recipe is None:
            raise UserError(f"probe {self.name} is a llava; say which model in the suite's vlm node")
        return self._recipe

    def shared_options(self) -> dict[str, Any]:
        return {"vlm": self.recipe.model_dump(mode="json")}

    def needs(self) -> list[Need]:
        return [Need("questions", TEST)]

    def reads(self, data: LabelledData) -> list[ImageSource]:
        """None: its model runs the backbone itself."""
        return []

    def wants(self) -> dict[str, list[Need]]:
        out: dict[str, list[Need]] = {}
        for stage in self.recipe.stages.values():
            out.setdefault(stage.data, []).append(Need(stage.use, TRAIN))
        out.setdefault(self.data, []).extend(self.needs())
        return out

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        return self.run_on(backbone, dict.fromkeys(self.wants(), data), seed)

    def run_on(self, backbone: ProbedBackbone, data: Mapping[str, LabelledData], seed: int) -> list[Result]:
        asked = data[self.data].questions(TEST)  # first: a benchmark that is not there should not cost a training
        where = Where(backbone.device, under=backbone.cache, progress=backbone.progress)
        model = backbone.remember(
            f"vlm {self.recipe.model_dump_json()} {seed}",
            lambda: trained(backbone.backbone, self.recipe, data, seed, where),
        )
        longest = self.reply_tokens or asking_of(asked.benchmark).tokens
        replies = answer_all(model, asked, longest, progress=backbone.progress, name=self.name)
        keep_replies(self, backbone, asked.images, asked.rule, asked.questions, replies)
        scores = score_replies(asked.rule, replies, asked.questions)
        counted = asking_of(asked.benchmark).metric
        chosen = self.metrics or ((counted,) if counted else tuple(scores))
        for metric in chosen:
            if metric not in scores:
                raise unknown(f"metric of probe {self.name}", metric, scores)
        protocol = protocol_of(self.recipe, asked.rule)
        return [self.result(metric, scores[metric], seed, protocol=protocol) for metric in chosen]


def protocol_of(recipe: VlmRecipe, rule: str) -> str:
    """What has to be said beside a number: language model, what was tuned, views, scoring rule."""
    return f"llava {Path(recipe.language_model).name}, tune {recipe.tune}, {recipe.views}, rule {rule}"


def answer_all(model: Llava, asked: QuestionImages, longest: int, *, progress: bool, name: str) -> list[str]:
    """Greedy replies to all questions, in their order; those of like length are answered side by side."""
    model.learn("none")
    recipe = model.recipe
    prompt = list(recipe.stages.values())[-1].prompt
    texts = [
        encode(model.tokenizer, prompt, [(prompt_of(item, asked.benchmark), None)], 1 + len(item.more))
        for item in asked.questions
    ]
    order = sorted(range(len(texts)), key=lambda at: len(texts[at].ids))
    replies = [""] * len(texts)
    parts = [order[at : at + recipe.answer_batch] for at in range(0, len(order), recipe.answer_batch)]
    for part in ProgressBar(len(parts), f"answers {name}", "batch", shown=progress, leave=False).over(parts):
        pictures = [
            [model.view(picture_of(asked.images, row)) for row in (asked.questions[at].row, *asked.questions[at].more)]
            for at in part
        ]
        said = model.answer([texts[at] for at in part], pictures, longest)
        for at, reply in zip(part, said, strict=True):
            replies[at] = reply
    return replies
