"""An exported student as a plain timm model: the same tokens without any code of ours.

    model = to_timm("runs/NAME/student", size=(448, 448))
    tokens = model.forward_features((images - mean) / std)      # [B, P + h*w, D], P = model.num_prefix_tokens

The first tokens are the summaries, one for each teacher in the order of config.json, then registers, then the patches
in reading order. `model.state_dict()` loads into `timm.create_model(NAME, **timm_options(...))`.
"""

from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from common.errors import UserError
from distill.exported import ExportedStudent, from_pretrained
from distill.student.cropped_positions import window
from distill.student.model import timm_options

Grid = tuple[int, int]


def to_timm(student: str | Path | ExportedStudent, size: Grid | None = None) -> nn.Module:
    """The ViT of an exported student as timm makes it, in evaluation mode.

    size: (height, width) in pixels at which its tokens equal the student's; None: the size it was trained at. Other
    sizes work too: without cropped positions they are the student's to the last bit, with them timm resamples positions
    its own way. UserError for a student that attends in windows at this size, which timm's ViT does not.
    """
    found = student if isinstance(student, ExportedStudent) else from_pretrained(student)
    node, vit = found.net.node, found.net.vit
    wanted = size or tuple(found.spec.native_size)
    patch = found.spec.patch_size
    if wanted[0] % patch or wanted[1] % patch:
        raise UserError(f"the student takes sizes that are multiples of {patch} px, got {wanted[0]}x{wanted[1]}")
    grid = (wanted[0] // patch, wanted[1] // patch)
    if (windows := found.net.vit.windows(grid, None)) is not None:
        raise UserError(
            f"the student attends in windows of {windows.size} tokens at {wanted[0]}x{wanted[1]} px, timm's does not"
        )
    state = dict(vit.state_dict())
    made_at = wanted
    if node.cpe is not None:
        state["pos_embed"] = laid_out(vit, grid)
    else:
        made_at = tuple(vit.patch_embed.img_size)
    made = timm.create_model(node.model, **timm_options(node, len(found.net.teachers), made_at))
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def laid_out(vit: Any, grid: Grid) -> Tensor:
    """Cropped positions as evaluation uses them at a grid, [1, h*w, D]."""
    square = vit.pos_embed.transpose(1, 2).unflatten(2, vit.patch_embed.grid_size)
    found = square if grid == tuple(square.shape[-2:]) else window(square, grid)
    return found.flatten(2).transpose(1, 2).contiguous()
