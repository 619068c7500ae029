"""`encode_text` of an image-text model of transformers."""

from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from teachers.text_cleaning import cleaned
from teachers.weights import loading


class HubText:
    """Texts to the space of the image summary; the tokenizer is read at the first call."""

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model: Any = model
        self.path = path
        self.tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Tensor:
        """N texts -> [N, S], as the library's get_text_features gives them."""
        if self.tokenizer is None:
            with loading(f"the tokenizer of {self.path}", fetch=not Path(self.path).is_dir()):
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        # SigLIP reads the last position of a text of the length it was trained with, and was trained without a mask.
        siglip = self.model.config.model_type in ("siglip", "siglip2")
        tokens = self.tokenizer(
            cleaned(texts, self.tokenizer),
            padding="max_length" if siglip else "longest",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        given = {key: value.to(device) for key, value in tokens.items() if not (siglip and key == "attention_mask")}
        found = self.model.get_text_features(**given)
        return found if isinstance(found, Tensor) else found.pooler_output  # transformers 4 and 5
