"""Conversations as token ids: which template, where the image goes, which tokens are answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from eval_suite.vlm.recipe import Prompt

IMAGE_MARK = "<image>"
IMAGE = -200  #: stands in the ids where a picture's tokens are spliced in
NO_TARGET = -100
#: Vicuna v1's opening, which LLaVA-1.5 keeps
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
Turns = Sequence[tuple[str, str | None]]  #: (question, answer); the last answer is None where one is asked for


@dataclass(frozen=True)
class Encoded:
    """Ids with `IMAGE` for each picture; targets are the ids of answer tokens and `NO_TARGET` elsewhere."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many pictures it has."""
        return self.ids.count(IMAGE)


def encode(tokenizer: Any, prompt: Prompt, turns: Turns, images: int) -> Encoded:
    """One conversation. Only what the assistant says, its end mark included, has targets.

    A token belongs to the answer if any character of it does. UserError where `<image>` does not stand as often as
    there are pictures; where it stands nowhere it is put in front of the first question.
    """
    pieces = PIECES[prompt](tokenizer, mark_images(turns, images))
    text = "".join(piece for piece, _ in pieces)
    spans, at = [], 0
    for piece, answer in pieces:
        if answer:
            spans.append((at, at + len(piece)))
        at += len(piece)
    ids: list[int] = []
    targets: list[int] = []
    if prompt != "tokenizer" and tokenizer.bos_token_id is not None:
        ids, targets = [tokenizer.bos_token_id], [NO_TARGET]
    start = 0
    for number, chunk in enumerate(text.split(IMAGE_MARK)):
        if number:
            ids.append(IMAGE)
            targets.append(NO_TARGET)
            start += len(IMAGE_MARK)
        found = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
        for token, (begin, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            said = any(start + begin < last and start + end > first for first, last in spans)
            ids.append(token)
            targets.append(token if said else NO_TARGET)
        start += len(chunk)
    return Encoded(tuple(ids), tuple(targets))


def mark_images(turns: Turns, images: int) -> list[tuple[str, str | None]]:
    """The turns with exactly one `<image>` a picture, on a line before the first question where they had none."""
    marked = [(question, answer if answer is None else answer.replace(IMAGE_MARK, "")) for question, answer in turns]
    found = sum(question.count(IMAGE_MARK) for question, _ in marked)
    if found not in (0, images):
        raise UserError(
            f'a conversation shows {images} pictures but has {IMAGE_MARK} {found} times: "{marked[0][0][:60]}"'
        )
    if found == images == 1:  # LLaVA moves a lone mark to the front of its turn
        marked = [
            (
                f"{IMAGE_MARK}\n{question.replace(IMAGE_MARK, '').strip()}".strip()
                if IMAGE_MARK in question
                else question,
                answer,
            )
            for question, answer in marked
        ]
    elif not found and images:
        marks = " ".join([IMAGE_MARK] * images)
        marked[0] = (f"{marks}\n{marked[0][0]}".strip(), marked[0][1])
    return marked


def _plain(tokenizer: Any, turns: Turns) -> list[tuple[str, bool]]:
    """LLaVA's stage 1: the picture, the caption, a line end; the instruction is thrown away."""
    question, answer = turns[0]
    marks = IMAGE_MARK * question.count(IMAGE_MARK)
    return [(marks, False)] + ([] if answer is None else [(f"{answer}\n", True)])


def _v1(tokenizer: Any, turns: Turns) -> list[tuple[str, bool]]:
    """Vicuna v1: `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`."""
    pieces = [(f"{SYSTEM} ", False)]
    for question, answer in turns:
        pieces.append((f"USER: {question} ASSISTANT:", False))
        if answer is not None:
            pieces += [(" ", False), (f"{answer}{tokenizer.eos_token}", True)]
    return pieces


def _own(tokenizer: Any, turns: Turns) -> list[tuple[str, bool]]:
    """The tokenizer's own chat template; an answer is what its message adds to the text before it."""
    messages: list[dict[str, str]] = []
    pieces: list[tuple[str, bool]] = []
    said = ""
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pieces.append((_added(said, asked), False))
        said = asked
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
            told = tokenizer.apply_chat_template(messages, tokenize=False)
            pieces.append((_added(said, told), True))
            said = told
    return pieces


def _added(before: str, after: str) -> str:
    if not after.startswith(before):
        raise UserError(
            "the tokenizer's chat template rewrites earlier turns, so answers cannot be told apart; use prompt: v1"
        )
    return after[len(before) :]


PIECES = {"plain": _plain, "v1": _v1, "tokenizer": _own}
