"""SAM without its image encoder: the neck, the prompt encoder and the mask decoder, fed with other features."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from teachers.weights import loading

Entry = Literal["neck", "decoder"]


class SamDecoder(nn.Module):
    """A transformers `SamModel` whose encoder has no blocks left.

    Features come in at the neck's input (what agglomerative students learn of SAM: 1280 channels for ViT-H) or at its
    output (`decoder`, 256 channels); any grid is resized bilinearly to the decoder's own (64x64).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        vision = self.model.config.vision_config
        self.canvas = int(self.model.config.prompt_encoder_config.image_size)  #: pixels of its square image, 1024
        self.grid = int(self.model.config.prompt_encoder_config.image_embedding_size)  #: cells of a side, 64
        self.widths: dict[Entry, int] = {"neck": int(vision.hidden_size), "decoder": int(vision.output_channels)}

    @torch.no_grad()
    def embed(self, spatial: Tensor, enters: Entry) -> Tensor:
        """Features [B, C, h, w] of whole (padded) square images -> image embeddings [B, 256, 64, 64]."""
        if spatial.shape[1] != self.widths[enters]:
            raise UserError(
                f"SAM's {enters} reads {self.widths[enters]} channels and the features have {spatial.shape[1]}; "
                f"set `enters` ({', '.join(f'{name}: {width}' for name, width in self.widths.items())}) or the adaptor"
            )
        size = (self.grid, self.grid)
        if tuple(spatial.shape[-2:]) != size:
            spatial = F.interpolate(spatial, size=size, mode="bilinear", align_corners=False)
        return self.model.vision_encoder.neck(spatial.movedim(1, -1)) if enters == "neck" else spatial

    @torch.no_grad()
    def masks(self, embedding: Tensor, *, boxes: Tensor | None = None, points: Tensor | None = None) -> Tensor:
        """One image's embedding [1, 256, 64, 64] and boxes [n, 4] or points [n, 2], in pixels of the canvas -> logits
        [n, 256, 256]: of the three masks of each prompt the one whose predicted IoU is highest."""
        prompts: dict[str, Tensor] = {}
        if boxes is not None:
            prompts["input_boxes"] = boxes[None]
        if points is not None:
            prompts["input_points"] = points[None, :, None]
        out = self.model(image_embeddings=embedding, multimask_output=True, **prompts)
        best = out.iou_scores[0].argmax(1)
        return out.pred_masks[0][torch.arange(len(best), device=best.device), best]


def load_sam_decoder(name: str) -> SamDecoder:
    """From a hub name or a local folder; UserError where a part of it is missing there."""
    from transformers import SamConfig, SamModel

    where = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    with loading(name, fetch=True):
        config: Any = SamConfig.from_pretrained(where)
        if config.model_type != "sam":
            raise UserError(f"{name} is a {config.model_type} model; give SAM's, e.g. facebook/sam-vit-huge")
        config.vision_config.num_hidden_layers = 0  # the blocks of the image encoder are not needed
        loaded: Any = SamModel.from_pretrained(where, config=config, output_loading_info=True)
        model, report = loaded  # what the library's types do not say
    if report["missing_keys"]:
        raise UserError(
            f"{name} lacks {sorted(report['missing_keys'])[0]} and others; it is not a whole SAM checkpoint"
        )
    return SamDecoder(model)


@dataclass(frozen=True)
class Canvas:
    """How a photograph lies on a square: long side to the square's, the rest below and to the right left empty."""

    height: int  #: of the photograph
    width: int
    side: int  #: of the square

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) that the photograph takes up, rounded as SAM's own transform does."""
        scale = self.side / max(self.height, self.width)
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def image(self, picture: Tensor, mean: tuple[float, ...]) -> Tensor:
        """[3, H, W] in [0, 1] -> [1, 3, side, side]; empty places have the colour the backbone normalises to zero."""
        small = F.interpolate(picture[None], size=self.inner, mode="bilinear", align_corners=False, antialias=True)
        out = picture.new_tensor(mean).view(1, 3, 1, 1).repeat(1, 1, self.side, self.side)
        out[..., : self.inner[0], : self.inner[1]] = small
        return out

    def points(self, points: Tensor) -> Tensor:
        """(x, y) [..., 2] or (x0, y0, x1, y1) [..., 4] of the photograph -> of the square."""
        scale = points.new_tensor([self.inner[1] / self.width, self.inner[0] / self.height])
        return points * scale.repeat(points.shape[-1] // 2)

    def back(self, masks: Tensor) -> Tensor:
        """Logits [n, h, w] of the square -> [n, H, W] of the photograph, by way of the square as SAM does."""
        whole = F.interpolate(masks[:, None], size=(self.side, self.side), mode="bilinear", align_corners=False)
        part = whole[..., : self.inner[0], : self.inner[1]]
        return F.interpolate(part, size=(self.height, self.width), mode="bilinear", align_corners=False)[:, 0]
