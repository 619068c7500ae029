"""Heads from the student's tokens to one teacher's space: two layers with LayerNorm and GELU between (RADIOv2.5)."""

from torch import Tensor, nn


class MlpHead(nn.Module):
    """tokens [..., D] -> [..., C]. The last bias starts at zero: in PHI-S space the mean of the targets is zero."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.act = nn.GELU()
        self.out = nn.Linear(hidden, out)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., C]."""
        return self.out(self.act(self.norm(self.hidden(tokens))))
