"""A small vision-language model on frozen features: two-layer projector, causal language model, word vocabulary.

LLaVA's shape (projector `mlp2x_gelu`, visual tokens before the question) with VILA's 2x2 token merging. Several
questions about one image share its visual tokens: each sees the image and itself only, so an image costs one pass.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eval_suite.maps import resize_map
from eval_suite.probes.heads import Standardise
from eval_suite.readers.contracts import AskedQuestion

PAD, UNKNOWN, ANSWER, END = 0, 1, 2, 3
SPECIAL = ("<pad>", "<unk>", "<answer>", "<end>")
NO_TARGET = -100


def words(text: str) -> list[str]:
    """Lower-case words, digits and marks of a sentence."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


class Vocabulary:
    """Words of the training questions and answers, in alphabetical order."""

    def __init__(self, texts: Iterable[str]) -> None:
        known = sorted({word for text in texts for word in words(text)})
        self.words = (*SPECIAL, *known)
        self._ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Word numbers; words never seen in training are `<unk>`."""
        return [self._ids.get(word, UNKNOWN) for word in words(text)]


@dataclass(frozen=True)
class Prompts:
    """Questions of a batch of images: tokens and targets int64 [B, Q, L], `NO_TARGET` where nothing is asked."""

    tokens: Tensor
    targets: Tensor


def encode_questions(vocabulary: Vocabulary, questions: Sequence[tuple[str, str]]) -> Prompts:
    """(question, answer) pairs -> tokens [Q, L] `question <answer> answer` and the words to predict after each."""
    tokens: list[list[int]] = []
    targets: list[list[int]] = []
    for question, answer in questions:
        asked, told = [*vocabulary.encode(question), ANSWER], vocabulary.encode(answer)
        tokens.append(asked + told)
        targets.append([NO_TARGET] * (len(asked) - 1) + [*told, END])
    length = max(len(row) for row in tokens)
    return Prompts(
        torch.tensor([row + [PAD] * (length - len(row)) for row in tokens]),
        torch.tensor([row + [NO_TARGET] * (length - len(row)) for row in targets]),
    )


def prompt_of(item: AskedQuestion) -> str:
    """The question, and the options it may be answered with, a letter each."""
    letters = (chr(ord("A") + at) for at in range(len(item.options)))
    return "\n".join(
        [item.question, *(f"{letter}. {text}" for letter, text in zip(letters, item.options, strict=False))]
    )


class VisionLanguageModel(nn.Module):
    """Frozen maps [B, C, h, w] and questions [B, Q, L] -> logits over the vocabulary at every question position."""

    def __init__(
        self, spatial: Tensor, vocabulary: int, *, side: int, merge: int, width: int, layers: int, longest: int
    ) -> None:
        super().__init__()
        self.normalise = Standardise(spatial)
        self.grid = (side * merge, side * merge)
        self.merge = nn.PixelUnshuffle(merge)
        self.projector = nn.Sequential(
            nn.Linear(spatial.shape[1] * merge * merge, width), nn.GELU(), nn.Linear(width, width)
        )
        self.places = nn.Parameter(0.02 * torch.randn(side * side, width))
        from transformers import LlamaConfig, LlamaForCausalLM  # seconds, that other probes need not wait

        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=side * side + longest,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=END,
            # The library's 0.02 suits widths in the thousands. At this one it makes attention a whisper: the image
            # never reached the answer, and every backbone scored the most common answers.
            initializer_range=width**-0.5,
            attn_implementation="sdpa",  # type: ignore[call-arg]  # the base class takes it
        )
        self.language = LlamaForCausalLM(config)

    def forward(self, spatial: Tensor, prompts: Prompts) -> Tensor:
        """-> logits [B, Q, L, V]; the logits at position i say what follows token i. They are 0 at padding."""
        visual = self.merge(resize_map(self.normalise(spatial), self.grid)).flatten(2).transpose(1, 2)
        visual = self.projector(visual) + self.places
        count, (asked, length) = visual.shape[1], prompts.tokens.shape[1:]
        flat = prompts.tokens.flatten(1)
        used = used_first(flat)  # short questions are half padding, which costs as much as words
        block = torch.where(flat.gather(1, used) == PAD, asked, used // length)  # padding left over is a question apart
        hidden = self.language.model(
            inputs_embeds=torch.cat([visual, self.language.get_input_embeddings()(flat.gather(1, used))], 1),
            attention_mask=block_mask(count, block),
            position_ids=positions(count, used % length),
            use_cache=False,
        ).last_hidden_state
        logits = self.language.lm_head(hidden[:, count:])
        logits = logits * (block < asked)[..., None]
        out = logits.new_zeros(*flat.shape, logits.shape[-1])
        return out.scatter(1, used[..., None].expand_as(logits), logits).unflatten(1, (asked, length))


def used_first(tokens: Tensor) -> Tensor:
    """Tokens [B, N] -> int64 [B, n], the places of those that are not padding, in order; n is the most of an image.

    Images with fewer have places of padding at the end.
    """
    padding = tokens == PAD
    return padding.int().argsort(dim=1, stable=True)[:, : int((~padding).sum(1).max())]


def block_mask(visual: int, block: Tensor) -> Tensor:
    """Each token's number of its question [B, n] -> additive mask [B, 1, T, T] over the image's tokens and them.

    Causal, and no question sees another one.
    """
    block = torch.nn.functional.pad(block, (visual, 0), value=-1)
    allowed = (block[:, None] == -1) | (block[:, None] == block[:, :, None])
    allowed &= torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def positions(visual: int, place: Tensor) -> Tensor:
    """Places in their question [B, n] -> position numbers [B, T]: every question begins right after the image."""
    return torch.cat([torch.arange(visual).expand(len(place), -1), visual + place], 1)


@torch.no_grad()
def decode_replies(
    model: VisionLanguageModel,
    spatial: Tensor,
    questions: Sequence[AskedQuestion],
    vocabulary: Vocabulary,
    *,
    longest: int,
    batch: int,
) -> list[str]:
    """Greedy replies of at most `longest` words; an option's letter in capitals."""
    replies: list[list[int]] = [[] for _ in questions]
    for numbers in torch.arange(len(questions)).split(batch):
        going = numbers.tolist()
        while going and len(replies[going[0]]) < longest:
            asked = [[*vocabulary.encode(prompt_of(questions[n])), ANSWER, *replies[n]] for n in going]
            length = max(len(tokens) for tokens in asked)
            tokens = torch.tensor([row + [PAD] * (length - len(row)) for row in asked])[:, None]
            rows = torch.tensor([questions[n].row for n in going])
            logits = model(spatial[rows], Prompts(tokens, torch.full_like(tokens, NO_TARGET)))[:, 0]
            ends = torch.tensor([len(row) - 1 for row in asked])
            words_next = logits[torch.arange(len(going)), ends].argmax(-1).tolist()
            for number, word in zip(going, words_next, strict=True):
                replies[number].append(word)
            going = [number for number, word in zip(going, words_next, strict=True) if word != END]
    texts = [" ".join(vocabulary.words[word] for word in reply if word != END) for reply in replies]
    return [text.upper() if item.options else text for text, item in zip(texts, questions, strict=True)]


def right_answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether greedy decoding gives exactly the answer: bool [B, Q].

    Greedy text equals the answer if and only if the best word after every true prefix is the true next word, the end
    mark included, so one pass with the true prefixes decides it. A word never seen in training is always wrong.
    """
    asked = targets != NO_TARGET
    return (((logits.argmax(-1) == targets) & (targets != UNKNOWN)) | ~asked).all(-1)
