"""A frozen backbone, a projector and a causal language model that reads the backbone's tokens in place of `<image>`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from eval_suite.vlm.language import add_lora, load_language
from eval_suite.vlm.projector import Projector
from eval_suite.vlm.prompts import IMAGE, NO_TARGET, Encoded
from eval_suite.vlm.recipe import VlmRecipe
from eval_suite.vlm.views import Views, anyres_views, single_view
from teachers.contracts import Backbone, capability, check_size

CHUNK = 64  #: views in a pass of the backbone


@dataclass(frozen=True)
class Sequences:
    """A padded batch: embeddings [B, T, D], mask and targets int64 [B, T]."""

    embeds: Tensor
    mask: Tensor
    targets: Tensor


class Llava(nn.Module):
    """Vision-language model in LLaVA's shape. The backbone never learns; what learns is set by `learn`."""

    def __init__(self, backbone: Backbone, recipe: VlmRecipe, device: torch.device, seed: int) -> None:
        """Loads the language model; the projector's and the adapters' first weights depend on the seed alone."""
        super().__init__()
        self.recipe, self.device = recipe, device
        self.dtype = compute_dtype(recipe, device)
        self.backbone = backbone.eval().to(device).requires_grad_(False)
        self.size = view_size(backbone, recipe)
        # Weights that learn stay in float32 and are cast as they are used; frozen ones may lie in 16 bits.
        language = load_language(recipe, torch.float32 if recipe.tune == "full" else self.dtype)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            channels, grid = self._measure()
            self.projector = Projector(channels, grid, language.width, recipe)
            model = add_lora(language.model, recipe) if recipe.tune == "lora" else language.model
        self.projector.to(device)
        self.language = model.to(device)
        self.tokenizer = language.tokenizer
        if recipe.gradient_checkpointing:
            self.language.gradient_checkpointing_enable({"use_reentrant": False})
        self.learn("none")

    def learn(self, stage: str) -> None:
        """What gets gradients: `none`, the projector (`stage1`), and what `tune` names too (`stage2`)."""
        tuned = self.recipe.tune if stage == "stage2" else "none"
        self.projector.requires_grad_(stage != "none").train(stage != "none")
        # Recomputing activations happens in training mode only; LLaVA trains stage 1 in it, too.
        self.language.train(tuned != "none" or (stage != "none" and self.recipe.gradient_checkpointing))
        for name, weight in self.language.named_parameters():
            weight.requires_grad_(tuned == "full" or (tuned == "lora" and "lora_" in name))

    def learned(self) -> dict[str, nn.Parameter]:
        """Every weight that some stage trains, by name: the projector's, and the tuned ones of the language model."""
        out = {f"projector.{name}": weight for name, weight in self.projector.named_parameters()}
        if self.recipe.tune != "none" and self.recipe.stage2 is not None:
            out |= {
                f"language.{name}": weight
                for name, weight in self.language.named_parameters()
                if self.recipe.tune == "full" or "lora_" in name
            }
        return out

    def view(self, pixels: Tensor) -> Views:
        """A picture uint8 [3, H, W] as the backbone sees it."""
        if self.recipe.views == "anyres":
            return anyres_views(pixels, self.size, self.recipe.grids)
        return single_view(pixels, self.size, self.backbone.spec.mean)

    def loss(self, texts: Sequence[Encoded], pictures: Sequence[Sequence[Views]]) -> Tensor:
        """Summed cross-entropy of the answer tokens of a batch."""
        with self._autocast():
            batch = self.splice(texts, pictures)
            logits = self.language(inputs_embeds=batch.embeds, attention_mask=batch.mask, use_cache=False).logits
        asked = batch.targets[:, 1:] != NO_TARGET
        return F.cross_entropy(logits[:, :-1][asked].float(), batch.targets[:, 1:][asked], reduction="sum")

    @torch.no_grad()
    def answer(self, texts: Sequence[Encoded], pictures: Sequence[Sequence[Views]], longest: int) -> list[str]:
        """Greedy replies of at most `longest` tokens, one to each prompt."""
        from transformers import GenerationConfig

        tokenizer = self.tokenizer
        plan = GenerationConfig(
            max_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
        with self._autocast():
            batch = self.splice(texts, pictures, left=True)
            ids = self.language.generate(inputs_embeds=batch.embeds, attention_mask=batch.mask, generation_config=plan)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def likelihood(self, text: Encoded, pictures: Sequence[Views]) -> tuple[float, bool]:
        """Log-likelihood of the answer tokens, and whether greedy decoding gives them."""
        with self._autocast():
            batch = self.splice([text], [pictures])
            logits = self.language(inputs_embeds=batch.embeds, attention_mask=batch.mask, use_cache=False).logits
        asked = batch.targets[0, 1:] != NO_TARGET
        said, true = logits[0, :-1][asked].float(), batch.targets[0, 1:][asked]
        score = -F.cross_entropy(said, true, reduction="sum")
        return float(score), bool((said.argmax(-1) == true).all())

    def splice(self, texts: Sequence[Encoded], pictures: Sequence[Sequence[Views]], left: bool = False) -> Sequences:
        """Token embeddings with each picture's tokens in place of its mark, padded right (or left, to be continued)."""
        shown = iter(self.tokens([picture for some in pictures for picture in some]))
        table = self.language.get_input_embeddings()
        rows = []
        for text, some in zip(texts, pictures, strict=True):
            if text.images != len(some):
                raise ValueError(f"{text.images} image marks for {len(some)} pictures")
            ids = torch.tensor(text.ids, device=self.device)
            embeds = table(ids.clamp(min=0))
            marks = (ids == IMAGE).nonzero().flatten().tolist()
            rows.append(self._row(embeds, torch.tensor(text.targets, device=self.device), marks, shown))
        return _padded(rows, self.recipe.longest, left)

    def tokens(self, pictures: Sequence[Views]) -> list[Tensor]:
        """Pictures -> tokens [T, D] of each, in the language model's space."""
        if not pictures:
            return []
        views = torch.cat([picture.images for picture in pictures])
        with torch.no_grad():
            maps = torch.cat([self._map(part) for part in views.split(CHUNK)])
        return self.projector(maps.float(), pictures)

    def _row(self, embeds: Tensor, targets: Tensor, marks: list[int], shown: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        parts, aims, start = [], [], 0
        for mark in marks:
            picture = next(shown).to(embeds.dtype)
            parts += [embeds[start:mark], picture]
            aims += [targets[start:mark], targets.new_full((len(picture),), NO_TARGET)]
            start = mark + 1
        return torch.cat([*parts, embeds[start:]]), torch.cat([*aims, targets[start:]])

    def _map(self, views: Tensor) -> Tensor:
        """uint8 [V, 3, s, s] -> the map the projector reads, [V, C, h, w]."""
        images = views.to(self.device).float() / 255
        with self._autocast():
            if self.recipe.layer == -1:
                found = self.backbone(images).spatial
            else:
                intermediate = capability(self.backbone, "intermediate")
                if intermediate is None:
                    raise UserError(f"{self.backbone.spec.name} has no inner layers to show; set layer: -1")
                total = int(self.backbone.num_blocks)
                block = self.recipe.layer + total if self.recipe.layer < 0 else self.recipe.layer
                if not 0 <= block < total:
                    raise UserError(
                        f"{self.backbone.spec.name} has {total} blocks; layer {self.recipe.layer} is none of them"
                    )
                found = intermediate(images, [block])[0]
        if not found.isfinite().all():
            raise UserError(f"{self.backbone.spec.name} gives NaN or infinite features; run it with dtype: float32")
        return found

    @torch.no_grad()
    def _measure(self) -> tuple[int, tuple[int, int]]:
        found = self._map(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8))
        return found.shape[1], (found.shape[2], found.shape[3])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def compute_dtype(recipe: VlmRecipe, device: torch.device) -> torch.dtype:
    """What `dtype` stands for on a device."""
    if recipe.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32


def view_size(backbone: Backbone, recipe: VlmRecipe) -> int:
    """Side of a view: the recipe's, else the larger native side; UserError where the backbone cannot take it."""
    size = recipe.size or max(backbone.spec.native_size)
    check_size(backbone.spec, torch.empty(1, 3, size, size, device="meta"))
    return size


def _padded(rows: Sequence[tuple[Tensor, Tensor]], longest: int, left: bool) -> Sequences:
    """Rows cut to `longest` (a prompt loses its front, a conversation its end) and filled up with zeros."""
    cut = [(e[-longest:], t[-longest:]) if left else (e[:longest], t[:longest]) for e, t in rows]
    width = max(len(embeds) for embeds, _ in cut)
    embeds, masks, targets = [], [], []
    for row, aims in cut:
        gap = width - len(row)
        sides = (gap, 0) if left else (0, gap)
        embeds.append(F.pad(row, (0, 0, *sides)))
        masks.append(F.pad(torch.ones(len(row), dtype=torch.long, device=row.device), sides))
        targets.append(F.pad(aims, sides, value=NO_TARGET))
    return Sequences(torch.stack(embeds), torch.stack(masks), torch.stack(targets))
