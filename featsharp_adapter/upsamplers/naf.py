"""NAF (valeoai, November 2025): neighbourhood attention filtering, one upsampler for every encoder's features.

Code and weights: valeoai/NAF, Apache-2.0; its code needs the package `natten`. Not part of this package; see
`checkout.py` for how a user's own checkout is run.
"""

from featsharp_adapter.upsamplers.checkout import CheckoutUpsampler


class NafUpsampler(CheckoutUpsampler):
    """Any factor; grids of 9 tokens a side or more, and feature widths that its 4 heads divide.

    Its entry point is `naf(pretrained, device)` and its model takes (image, features, output_size), as read in its
    repository at f63aadff. natten from 0.20 on runs it on a GPU only, before that on the CPU too.
    """

    repository, licence = "valeoai/NAF", "Apache-2.0"
    limits = " (NAF needs 9 tokens a side, a width that 4 divides, and a GPU with natten 0.20 or newer)"

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        checkout: str | None = None,
        trust_remote_code: bool = False,
        entry: str = "naf",
        weights: str | None = None,
        finetune: bool = False,
    ) -> None:
        super().__init__(
            dim=dim,
            factor=factor,
            grid=grid,
            entry=entry,
            checkout=checkout,
            trust_remote_code=trust_remote_code,
            weights=weights,
            finetune=finetune,
        )
