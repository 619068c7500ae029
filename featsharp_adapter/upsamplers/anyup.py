"""AnyUp (arXiv 2510.12764): one upsampler for the features of every encoder, with weights of its own.

Code and weights: wimmerth/anyup, CC-BY-4.0 (credit Wimmer et al., ICLR 2026). Not part of this package; see
`checkout.py` for how a user's own checkout is run.
"""

from featsharp_adapter.upsamplers.checkout import CheckoutUpsampler


class AnyUpUpsampler(CheckoutUpsampler):
    """entry: `anyup_multi_backbone`, or `anyup` for the weights of the paper. Any factor.

    Both take (use_natten, pretrained, device), and the model (image, features, output_size), as read in the repository
    at 6f46da1b and 1551eaa1; without natten, which is what is asked for here, it needs torch alone.
    """

    repository, licence = "wimmerth/anyup", "CC-BY-4.0"

    def __init__(
        self,
        *,
        dim: int,
        factor: int,
        grid: tuple[int, int],
        checkout: str | None = None,
        trust_remote_code: bool = False,
        entry: str = "anyup_multi_backbone",
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
