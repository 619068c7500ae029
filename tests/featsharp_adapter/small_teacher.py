"""A small random vision transformer as teacher: what is tested here never needs trained weights."""

import torch
from torch import Tensor, nn

from teachers.contracts import Backbone, BackboneSpec, Features, check_size, state_digest


class SmallTeacher(Backbone):
    """Patches of 8 px, width 8, one attention layer, learned positions: it has context, and a position bias."""

    def __init__(self, size: tuple[int, int] = (32, 24), seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(3, 8, 8, stride=8)
            self.position = nn.Parameter(torch.randn(1, 8, size[0] // 8, size[1] // 8) * 0.3)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.seen = 0
        self.spec = BackboneSpec(
            name=f"test:small{seed}",
            library="test",
            patch_size=8,
            spatial_dim=8,
            summary_dim=8,
            native_size=size,
            resizable=False,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            licence="none",
            source="random",
            digest=state_digest(self),
        )
        self.eval()

    def forward(self, images: Tensor) -> Features:
        check_size(self.spec, images)
        self.seen += len(images)
        maps = self.patches((images - 0.5) / 0.25) + self.position
        tokens = self.block(maps.flatten(2).transpose(1, 2))
        return Features(tokens.mean(dim=1), tokens.transpose(1, 2).unflatten(2, maps.shape[-2:]))

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 8)
