"""Tiny causal language models of the real classes with tokenizers built here, saved as the Hub's folders are."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval_suite.vlm.benchmarks import LETTER, SHORT
from eval_suite.vlm.prompts import SYSTEM

COLOURS = ("red", "green", "blue", "white")
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tiny_tokenizer(texts: Iterable[str] = (), **changes: object) -> PreTrainedTokenizerFast:
    """Words and marks of Vicuna's prompt, of the benchmarks' and of `texts`."""
    split = pre_tokenizers.Whitespace()
    said = [SYSTEM, SHORT, LETTER, "USER: ASSISTANT: [user] [assistant]", *COLOURS, *texts]
    words = sorted({word for text in said for word, _ in split.pre_tokenize_str(text)})
    special = ["<unk>", "<s>", "</s>"]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*special, *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = split
    inner.decoder = decoders.WordPiece(prefix="##")  # words with spaces between them
    options = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT, **changes}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{k: v for k, v in options.items() if v is not None})


def tiny_language(
    folder: Path, texts: Iterable[str] = (), *, width: int = 48, layers: int = 2, **changes: object
) -> Path:
    """A LLaMA of a few thousand weights and its tokenizer in a folder."""
    tokenizer = tiny_tokenizer(texts, **changes)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=width**-0.5,  # the library's 0.02 is for widths in the thousands
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
