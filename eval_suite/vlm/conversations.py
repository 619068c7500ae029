"""What a stage trains on: pictures and turns, out of data that have conversations, questions or captions."""

from collections.abc import Sequence

from eval_suite.readers.contracts import (
    TRAIN,
    Conversation,
    ConversationImages,
    LabelledData,
)
from eval_suite.vlm.benchmarks import prompt_of
from eval_suite.vlm.recipe import Stage


def training_data(data: LabelledData, stage: Stage) -> ConversationImages:
    """The stage's conversations; a question or a caption is a conversation of one turn."""
    if stage.use == "conversations":
        return data.conversations(TRAIN)
    if stage.use == "questions":
        asked = data.questions(TRAIN)
        turns = [
            ((item.row, *item.more), ((prompt_of(item, asked.benchmark), item.answer),)) for item in asked.questions
        ]
        return ConversationImages(asked.images, _conversations(turns))
    told = data.captions(TRAIN)
    pairs = [
        ((row,), (("", caption),))
        for row, captions in zip(told.rows.tolist(), told.captions, strict=True)
        for caption in captions
    ]
    return ConversationImages(told.images, _conversations(pairs))


def _conversations(pairs: Sequence[tuple[tuple[int, ...], tuple[tuple[str, str], ...]]]) -> list[Conversation]:
    return [Conversation(rows, turns) for rows, turns in pairs]
