"""The contract of an upsampler: a pure function of a teacher's features and the image; it never calls a teacher.

Shapes: B batch, C feature width, g x g' the low-resolution grid, k the factor, n a tile grid, H x W the image.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class Upsampler(nn.Module, ABC):
    """low [B, C, g, g'], tiles {n: [B, C, n*g, n*g']}, guidance [B, 3, H, W] in [0, 1] -> [B, C, k*g, k*g'].

    `tile_grids` says which tile maps it needs; others may be there and are ignored, so that one teacher pass can feed
    several upsamplers. Subclasses take their options as named arguments (see `table.py`) and implement `upsample`.
    """

    factor: int
    tile_grids: tuple[int, ...]
    #: rows of the output that are made at a time, None for all at once: where memory is short (`max_memory.py`)
    strip_rows: int | None = None
    #: whether it claims to be bilinear interpolation before it is trained (`conformance.py` checks the claim)
    starts_as_bilinear: bool = False
    #: whether its weights are solved and not trained (`training/closed_form.py`)
    closed_form: bool = False
    #: whether it can do without some tiles of its one grid, and says which are worth a pass (`gains`)
    budgeted: bool = False

    def __init__(self, *, dim: int, factor: int, grid: tuple[int, int], tile_grids: tuple[int, ...] = ()) -> None:
        """dim: C. grid: the teacher's native (g, g'); forward takes other grids too, but learned it is on this one."""
        super().__init__()
        self.dim, self.factor, self.grid, self.tile_grids = dim, factor, grid, tile_grids

    def forward(
        self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor, chosen: Tensor | None = None
    ) -> Tensor:
        """Check the shapes, then `upsample`. ValueError when a map is missing or does not fit the others.

        chosen: bool [B, n, n], the tiles that there are, of a `budgeted` one; None: all.
        """
        batch, channels, height, width = low.shape
        if channels != self.dim:
            raise ValueError(f"features are {channels} wide, this upsampler was built for {self.dim}")
        for n in self.tile_grids:
            if n not in tiles:
                raise ValueError(f"the features of the {n}x{n} tiles are missing (there are: {sorted(tiles)})")
            expected = (batch, channels, n * height, n * width)
            if tuple(tiles[n].shape) != expected:
                raise ValueError(f"the {n}x{n} tiles give {tuple(tiles[n].shape)}, expected {expected}")
        if chosen is None:
            return self.upsample(low, tiles, guidance)
        if not self.budgeted:
            raise ValueError("this upsampler needs all of its tiles")
        return self.upsample_partly(low, tiles, guidance, chosen)

    @abstractmethod
    def upsample(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor) -> Tensor:
        """`forward` after its checks."""

    def upsample_partly(self, low: Tensor, tiles: Mapping[int, Tensor], guidance: Tensor, chosen: Tensor) -> Tensor:
        """`upsample` where the tiles of `chosen` [B, n, n] are there alone; of a `budgeted` one."""
        raise NotImplementedError

    def gains(self, low: Tensor, guidance: Tensor) -> Tensor:
        """[B, n, n]: what each tile is predicted to change, before any is encoded; of a `budgeted` one."""
        raise NotImplementedError

    @property
    def local(self) -> bool:
        """Whether it honours `strip_rows`: a row of the output depends on the rows around it alone."""
        return False

    @property
    def reach(self) -> int:
        """Of a `local` one: rows of the output that are needed on either side to make one, before any filter."""
        return 0

    def fitted_parameters(self) -> list[nn.Parameter]:
        """Parameters that a closed form has solved before training starts; none by default."""
        return []

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters of the image-guided kernel; they have a learning rate of their own (none by default)."""
        return []
