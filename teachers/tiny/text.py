"""A word-level tokenizer and a small text transformer, for the captions of the scenes and for any other string."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

PAD, UNKNOWN = "<pad>", "<unk>"
# A single capital is a glyph ("the letter A"), which must not become the article "a".
_WORD = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]")


def split_words(text: str) -> list[str]:
    """Lower-case words, single digits and single signs; a lone capital inside a sentence stays a capital."""
    words = _WORD.findall(text)
    return [word if index and len(word) == 1 and word.isupper() else word.lower() for index, word in enumerate(words)]


class Tokenizer:
    """Words to ids by a fixed vocabulary; id 0 pads, id 1 stands for every unknown word."""

    def __init__(self, vocabulary: Iterable[str], length: int = 64) -> None:
        self.vocabulary = tuple(vocabulary)
        if self.vocabulary[:2] != (PAD, UNKNOWN):
            raise ValueError(f"a vocabulary begins with {PAD} and {UNKNOWN}")
        self.length = length
        self._ids = {word: index for index, word in enumerate(self.vocabulary)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], length: int = 64) -> "Tokenizer":
        words = sorted({word for text in texts for word in split_words(text)})
        return cls((PAD, UNKNOWN, *words), length)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __call__(self, texts: list[str]) -> Tensor:
        """Strings -> ids [N, L], L the longest of them (at least 1, at most `length`: the rest is cut off)."""
        rows = [[self._ids.get(word, 1) for word in split_words(text)[: self.length]] or [1] for text in texts]
        widest = max((len(row) for row in rows), default=1)
        return torch.tensor([row + [0] * (widest - len(row)) for row in rows], dtype=torch.long).reshape(-1, widest)


class TextTower(nn.Module):
    """Token embedding, a pre-norm transformer, the mean over words, one linear map into the shared space."""

    def __init__(self, tokenizer: Tokenizer, dim: int, depth: int, embedding: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.words = nn.Embedding(len(tokenizer), dim, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(tokenizer.length, dim))
        layer = nn.TransformerEncoderLayer(
            dim, max(1, dim // 32), 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, embedding, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [N, L], 0 = padding -> [N, embedding]."""
        padding = ids == 0
        states = self.words(ids) + self.positions[: ids.shape[1]]
        states = self.norm(self.blocks(states, src_key_padding_mask=padding))
        kept = (~padding).unsqueeze(-1).to(states.dtype)
        return self.projection((states * kept).sum(1) / kept.sum(1).clamp_min(1))

    def encode(self, texts: list[str]) -> Tensor:
        """Strings -> [N, embedding] on the tower's own device."""
        return self(self.tokenizer(texts).to(self.positions.device))
