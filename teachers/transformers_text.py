"""`encode_text` of an image-text model of transformers."""

from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from teachers.weights import loading


class HubText:
    """Texts to the space of the image summary; the tokenizer is read at the first call."""

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model = model
        self.path = path
        self.tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Tensor:
        """N texts -> [N, S], as the library's get_text_features gives them."""
        if self.tokenizer is None:
            with loading(f"the tokenizer of {self.path}", fetch=not Path(self.path).is_dir()):
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        text = self.model.config.text_config
        # SigLIP reads the last position, so it must be padded to the length it was trained with.
        padding = "max_length" if self.model.config.model_type in ("siglip", "siglip2") else "longest"
        tokens = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=text.max_position_embeddings, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        found = self.model.get_text_features(**{key: value.to(device) for key, value in tokens.items()})
        return found if isinstance(found, Tensor) else found.pooler_output  # transformers 4 and 5
