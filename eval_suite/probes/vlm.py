"""Can a language model read the features? Questions about images, exact answers, one score per kind of question."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from common.errors import unknown
from common.recipes import Norm, Rate
from eval_suite.features import ProbedBackbone
from eval_suite.metrics.answer_rules import score_replies
from eval_suite.metrics.answers import mean_answer
from eval_suite.probes.base import Need, ProbeNode
from eval_suite.probes.heads import batches, seeded, train
from eval_suite.probes.vlm_model import (
    NO_TARGET,
    Prompts,
    VisionLanguageModel,
    Vocabulary,
    decode_replies,
    encode_questions,
    prompt_of,
    right_answers,
    words,
)
from eval_suite.readers.contracts import TEST, TRAIN, AskedQuestion, ImageSource, LabelledData, QuestionImages
from eval_suite.results import Result


class VlmProbe(ProbeNode):
    """Frozen backbone, two-layer projector and a small causal language model trained on the questions from nothing.

    The group's numbers are exact-match accuracies in percent, one per question kind, of greedy decoding; data whose
    questions come with a rule of their own (a benchmark's) is scored by that rule on the decoded replies.
    """

    probe: Literal["vlm"]
    group: str = "vlm"
    kinds: tuple[str, ...] | None = Field(default=None, min_length=1)  #: which questions are asked; None: all
    side: int = Field(default=7, gt=0)  #: visual tokens per side
    merge: int = Field(default=2, gt=0)  #: cells per side folded into one visual token
    width: int = Field(default=96, gt=0)  #: channels of the language model
    layers: int = Field(default=2, gt=0)  #: its blocks
    steps: int = Field(default=300, gt=0)  #: updates
    batch: int = Field(default=16, gt=0)  #: images in a step
    asked: int = Field(default=8, gt=0)  #: questions about each of them
    learning_rate: Rate = 2e-3  #: peak rate
    weight_decay: float = Field(default=0.01, ge=0)  #: of projector and language model
    #: largest norm of the gradient; without it one early step can end with the most common answers, whatever the image
    clip: Norm = 1.0

    def needs(self) -> list[Need]:
        return [Need("questions", TRAIN), Need("questions", TEST)]

    def run(self, backbone: ProbedBackbone, data: LabelledData, seed: int) -> list[Result]:
        learn, judge = self._asked(data, TRAIN), self._asked(data, TEST)
        vocabulary = Vocabulary(text for item in learn.questions for text in (prompt_of(item), item.answer))
        spatial = backbone.features(learn.images).spatial
        prompts = encode_questions(vocabulary, [(prompt_of(item), item.answer) for item in learn.questions])
        model = self._model(spatial, vocabulary, prompts.tokens.shape[1], seed)
        self._fit(model, spatial, learn, prompts, seed)
        shown = backbone.features(judge.images).spatial
        if judge.rule == "exact":
            right = self._judge(model, shown, judge, vocabulary).double()
            if backbone.predictions is None:
                return self._results(judge.questions, right, seed)
        longest = max(len(vocabulary.encode(item.answer)) for item in learn.questions) + 1
        replies = decode_replies(model, shown, judge.questions, vocabulary, longest=longest, batch=8 * self.batch)
        if judge.rule == "exact":
            spelt = [replace(item, answer=" ".join(words(item.answer)), options=()) for item in judge.questions]
            replies = [reply.lower() for reply in replies]
            keep_replies(self, backbone, judge.images, "words", spelt, replies)
            return self._results(judge.questions, right, seed)
        keep_replies(self, backbone, judge.images, judge.rule, judge.questions, replies)
        scores = score_replies(judge.rule, replies, judge.questions)
        return [self.result(name, score, seed, protocol=f"rule {judge.rule}") for name, score in scores.items()]

    def _asked(self, data: LabelledData, split: str) -> QuestionImages:
        """The questions of the chosen kinds; UserError for a kind the data does not have."""
        found = data.questions(split)
        if self.kinds is None:
            return found
        known = {item.kind for item in found.questions}
        for kind in self.kinds:
            if kind not in known:
                raise unknown(f"kind of question (probe {self.name}, {split})", kind, known)
        return replace(found, questions=[item for item in found.questions if item.kind in self.kinds])

    def _model(self, spatial: Tensor, vocabulary: Vocabulary, longest: int, seed: int) -> VisionLanguageModel:
        with seeded(seed):
            return VisionLanguageModel(
                spatial,
                len(vocabulary.words),
                side=self.side,
                merge=self.merge,
                width=self.width,
                layers=self.layers,
                longest=longest,
            )

    def _fit(
        self, model: VisionLanguageModel, spatial: Tensor, learn: QuestionImages, prompts: Prompts, seed: int
    ) -> None:
        asked_of = questions_by_image(learn.questions)
        images = torch.tensor(sorted(asked_of))
        generator = torch.Generator().manual_seed(seed)

        def loss_of(batch: Tensor) -> Tensor:
            rows = images[batch]
            chosen = torch.stack([_some(asked_of[int(row)], self.asked, generator) for row in rows])
            some = Prompts(prompts.tokens[chosen], prompts.targets[chosen])
            logits = model(spatial[rows], some)
            return F.cross_entropy(logits.flatten(0, 2), some.targets.flatten(), ignore_index=NO_TARGET)

        train(
            model,
            loss_of,
            batches(len(images), self.batch, self.steps, generator),
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )

    @torch.no_grad()
    def _judge(
        self, model: VisionLanguageModel, spatial: Tensor, judge: QuestionImages, vocabulary: Vocabulary
    ) -> Tensor:
        """Whether each question was answered exactly: bool [number of questions]."""
        right = torch.zeros(len(judge.questions), dtype=torch.bool)
        prompts = encode_questions(vocabulary, [(prompt_of(item), item.answer) for item in judge.questions])
        by_count: dict[int, list[Tensor]] = {}
        for numbers in questions_by_image(judge.questions).values():
            by_count.setdefault(len(numbers), []).append(numbers)
        for groups in by_count.values():
            for numbers in torch.stack(groups).split(self.batch):
                rows = torch.tensor([judge.questions[int(row[0])].row for row in numbers])
                some = Prompts(prompts.tokens[numbers], prompts.targets[numbers])
                right[numbers] = right_answers(model(spatial[rows], some), some.targets)
        return right

    def _results(self, questions: Sequence[AskedQuestion], right: Tensor, seed: int) -> list[Result]:
        results = []
        for kind in sorted({item.kind for item in questions}):
            numbers = [number for number, item in enumerate(questions) if item.kind == kind]
            score = mean_answer(right[numbers], torch.tensor([questions[number].row for number in numbers]))
            answers = Counter(questions[number].answer for number in numbers)
            blind = 100.0 * answers.most_common(1)[0][1] / len(numbers)
            results.append(self.result(kind, score.with_floor(blind), seed))
        return results


def keep_replies(
    probe: ProbeNode,
    backbone: ProbedBackbone,
    images: ImageSource,
    rule: str,
    questions: Sequence[AskedQuestion],
    replies: Sequence[str],
) -> None:
    """Keep what was asked and said, where predictions are kept."""
    asked = [asdict(item) for item in questions]
    probe.keep(backbone, "replies", images, torch.arange(0), dict, rule=rule, questions=asked, replies=list(replies))


def questions_by_image(questions: Sequence[AskedQuestion]) -> dict[int, Tensor]:
    """Image row -> numbers of its questions, int64 [n]."""
    numbers: dict[int, list[int]] = {}
    for number, item in enumerate(questions):
        numbers.setdefault(item.row, []).append(number)
    return {row: torch.tensor(values) for row, values in numbers.items()}


def _some(numbers: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the numbers in random order, going round again where there are fewer."""
    shuffled = numbers[torch.randperm(len(numbers), generator=generator)]
    return shuffled.repeat(-(-count // len(numbers)))[:count]
