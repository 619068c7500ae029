"""A causal language model and its tokenizer, from the Hub or a folder, checked before hours are spent on it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.digests import digest_file, digest_value
from common.errors import UserError
from eval_suite.vlm.recipe import VlmRecipe


@dataclass(frozen=True)
class Language:
    """A language model with its tokenizer; `width` is that of its token embeddings."""

    model: Any
    tokenizer: Any
    width: int


def load_language(recipe: VlmRecipe, dtype: torch.dtype) -> Language:
    """The recipe's language model, weights in `dtype`; UserError in a line for what cannot be used. No remote code."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name, options = recipe.language_model, {"revision": recipe.revision} if recipe.revision else {}
    config = _loaded(AutoConfig, name, "language model", options)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name} is an encoder-decoder, not a causal language model; name a decoder, e.g. a LLaMA")
    tokenizer = _loaded(AutoTokenizer, name, "tokenizer of language model", options)
    check_tokenizer(tokenizer, recipe)
    model = _loaded(AutoModelForCausalLM, name, "causal language model", {**options, "dtype": dtype})
    table = model.get_input_embeddings()
    if len(tokenizer) > table.num_embeddings:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {table.num_embeddings}; "
            "they do not belong together"
        )
    check_causal(model, name)
    places = getattr(config, "max_position_embeddings", None)
    if places is not None and recipe.longest > places:
        raise UserError(f"{name} has {places} positions; set vlm.longest to at most that (it is {recipe.longest})")
    return Language(model, tokenizer, table.embedding_dim)


def language_digest(recipe: VlmRecipe) -> str:
    """Of the language model and its tokenizer: a folder's files by content, a Hub repository's commit."""
    from transformers import AutoConfig

    folder = Path(recipe.language_model)
    if folder.is_dir():
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in (".md", ".lock")]
        return digest_value({path.name: digest_file(path) for path in files})
    options = {"revision": recipe.revision} if recipe.revision else {}
    commit = getattr(_loaded(AutoConfig, recipe.language_model, "language model", options), "_commit_hash", None)
    if not commit:
        raise UserError(f"{recipe.language_model}: which of its commits this is cannot be told; name a folder instead")
    return digest_value([recipe.language_model, commit])


def check_tokenizer(tokenizer: Any, recipe: VlmRecipe) -> None:
    """UserError unless answers can be found in it and ended with it. A padding token is not needed."""
    name = recipe.language_model
    if not tokenizer.is_fast:
        raise UserError(
            f"{name}: only a slow tokenizer, which cannot say where its tokens stand; add its tokenizer.json"
        )
    if tokenizer.eos_token is None:
        raise UserError(f"{name}: the tokenizer has no end-of-sequence token, so no answer would end; set eos_token")
    prompts = {stage.prompt for stage in recipe.stages.values()}
    if "tokenizer" in prompts and not tokenizer.chat_template:
        raise UserError(f"{name}: the tokenizer has no chat template; use prompt: v1")
    if tokenizer.pad_token is None:  # generation fills finished rows with it; attention never sees it
        tokenizer.pad_token = tokenizer.eos_token


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """UserError if a later token changes what the model says at an earlier one: BERT loads without a word."""
    was = model.training
    model.eval()
    table = model.get_input_embeddings().weight
    first = table[:4][None]
    # Another last token, in a direction of its own: a shift of all channels would not get past a layer norm.
    other = torch.cat([first[:, :3], first[:, 3:].roll(1, -1) * -1.0], 1)

    def says(embeds: Tensor) -> Tensor:
        return model(inputs_embeds=embeds, use_cache=False).logits[:, :3].float()

    before, after = says(first), says(other)
    same = bool((before - after).abs().max() <= before.std() * (1e-4 if table.dtype == torch.float32 else 1e-2))
    model.train(was)
    if not same:
        raise UserError(f"{name} is not causal: a later token changes an earlier answer; name a decoder, e.g. a LLaMA")


def add_lora(model: Any, recipe: VlmRecipe) -> Any:
    """The model with low-rank adapters on every linear layer but its head, everything else frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("tune: lora needs the package peft: pip install 'peft>=0.15'") from error
    node = recipe.lora
    config = LoraConfig(
        r=node.rank,
        lora_alpha=node.alpha,  # type: ignore[arg-type]  # said to be an int, and only multiplied with
        lora_dropout=node.dropout,
        bias="none",
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _loaded(kind: Any, name: str, what: str, options: dict[str, Any]) -> Any:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    try:
        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # the library raises many kinds: no such name, no network, a file missing, another task
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load the {what} {name}: {reason}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
