"""Exported students in the transformers library, by a class of ours and no code from the Hub.

import distill.hub_model                                  # registers "agglomerate"
model = transformers.AutoModel.from_pretrained(FOLDER)    # or ORGANISATION/NAME
out = model(images)                                       # [B, 3, H, W] in [0, 1]
"""

from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from common.errors import UserError
from distill.exported import ExportedStudent, from_pretrained
from distill.training.export import MODEL_TYPE


class AgglomerateConfig(PretrainedConfig):
    """The config.json of an exported student, as it is."""

    model_type = MODEL_TYPE


class AgglomerateModel(PreTrainedModel):
    """An exported student: `last_hidden_state` [B, h*w, D] are its patches, `pooler_output` [B, T*D] its summary.

    `student` is the whole of it: adaptors, intermediate maps, spec (`distill.exported.ExportedStudent`).
    """

    config_class = AgglomerateConfig
    main_input_name = "images"

    def __init__(self, config: AgglomerateConfig, student: ExportedStudent) -> None:
        super().__init__(config)
        self.student = student

    # It takes less than the library's two do: what it would leave unread is an error.
    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **options: Any) -> Self:  # type: ignore[override]
        """A run's folder, a student folder or a Hub repository. UserError for options that would be left unread."""
        dtype = options.pop("dtype", options.pop("torch_dtype", None))
        known = {"adapter_kwargs", "trust_remote_code", "_from_auto", "_commit_hash", "cache_dir", "code_revision"}
        if unread := sorted(key for key, value in options.items() if key not in known and value is not None):
            raise UserError(f"an exported student takes no {unread[0]}; it takes dtype")
        student = from_pretrained(name)
        model = cls(config or AgglomerateConfig(**student.config), student).eval()
        return model if dtype in (None, "auto") else model.to(dtype)

    def save_pretrained(self, folder: Any, *args: Any, **options: Any) -> None:  # type: ignore[override]
        """The student folder that `from_pretrained` reads."""
        if args or options:
            raise UserError("an exported student is saved as it is: save_pretrained(FOLDER)")
        self.student.save_pretrained(folder)

    def forward(self, images: Tensor) -> BaseModelOutputWithPooling:
        """[B, 3, H, W] in [0, 1], sides multiples of the patch."""
        summary, spatial = self.student(images)
        tokens: Any = spatial.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=summary)


class FeaturesOnly(torch.nn.Module):
    """images -> (summary, spatial) as a plain pair of tensors: what torch.export and ONNX take.

    A student whose positions are cropped from a larger square, or that attends in windows, is laid out for the size
    that it is exported at.
    """

    def __init__(self, student: ExportedStudent) -> None:
        super().__init__()
        if not student.summary_names:
            raise UserError(f"{student.spec.name} has no summary; export student.net instead")
        self.student = student

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in [0, 1] -> [B, T*D], [B, D, h, w]."""
        summary, spatial = self.student(images)
        assert summary is not None  # seen when it was made
        return summary, spatial


AutoConfig.register(MODEL_TYPE, AgglomerateConfig)
AutoModel.register(AgglomerateConfig, AgglomerateModel)
