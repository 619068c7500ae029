"""The teachers of the FeatSharp, RADIO and C-RADIO papers by short name: one explicit table, nothing inferred.

A short name stands for its node: `spec: dfn_clip_h` is `{spec: open_clip:ViT-H-14-378-quickgelu:dfn5b}`; options
given beside it win. Sizes and widths repeat what the libraries' own configurations say, and a test compares them.
Licences are those of the weights, as their publishers state them; read them yourself before you publish a student.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownTeacher:
    """One row. `native` is the (square) size in pixels the papers run it at; `summary_dim` None: no summary is used."""

    short: str
    spec: str
    role: str
    native: int
    patch: int
    spatial_dim: int
    summary_dim: int | None
    licence: str
    gated: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def node(self) -> dict[str, Any]:
        """The recipe node that loads it."""
        return {"spec": self.spec, **self.options}


_APPLE = "Apple Sample Code License"
_DINOV3 = "DINOv3 License"
_APACHE = "Apache-2.0"
_SAM = {"summary": "none"}
_SIGLIP_378 = {"image_size": 378}

KNOWN: dict[str, KnownTeacher] = {
    row.short: row
    for row in (
        KnownTeacher(
            "dfn_clip_h", "open_clip:ViT-H-14-378-quickgelu:dfn5b", "CLIP, sharpened", 378, 14, 1280, 1024, _APPLE
        ),
        KnownTeacher(
            "siglip_so400m",
            "open_clip:ViT-SO400M-14-SigLIP-384:webli",
            "CLIP, sharpened",
            378,
            14,
            1152,
            1152,
            _APACHE,
            options=_SIGLIP_378,
        ),
        KnownTeacher(
            "siglip2_so400m_512", "open_clip:ViT-SO400M-16-SigLIP2-512:webli", "CLIP", 512, 16, 1152, 1152, _APACHE
        ),
        KnownTeacher(
            "siglip2_g_384", "open_clip:ViT-gopt-16-SigLIP2-384:webli", "CLIP, sharpened", 384, 16, 1536, 1536, _APACHE
        ),
        KnownTeacher("openai_clip_l_336", "open_clip:ViT-L-14-336-quickgelu:openai", "CLIP", 336, 14, 1024, 768, "MIT"),
        KnownTeacher("dinov2_s_reg", "timm:vit_small_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 384, 384, _APACHE),
        KnownTeacher("dinov2_b_reg", "timm:vit_base_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 768, 768, _APACHE),
        KnownTeacher(
            "dinov2_l_reg", "timm:vit_large_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 1024, 1024, _APACHE
        ),
        KnownTeacher(
            "dinov2_g_reg", "timm:vit_giant_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 1536, 1536, _APACHE
        ),
        KnownTeacher("dinov3_s", "timm:vit_small_patch16_dinov3.lvd1689m", "dense", 256, 16, 384, 384, _DINOV3),
        KnownTeacher("dinov3_l", "timm:vit_large_patch16_dinov3.lvd1689m", "dense", 256, 16, 1024, 1024, _DINOV3),
        KnownTeacher("dinov3_7b", "timm:vit_7b_patch16_dinov3.lvd1689m", "dense", 256, 16, 4096, 4096, _DINOV3),
        KnownTeacher("sam_b", "timm:samvit_base_patch16.sa1b", "SAM", 1024, 16, 256, None, _APACHE, options=_SAM),
        KnownTeacher("sam_l", "timm:samvit_large_patch16.sa1b", "SAM", 1024, 16, 256, None, _APACHE, options=_SAM),
        KnownTeacher("sam_h", "timm:samvit_huge_patch16.sa1b", "SAM", 1024, 16, 256, None, _APACHE, options=_SAM),
        KnownTeacher(
            "sam_h_hf", "transformers:facebook/sam-vit-huge", "SAM", 1024, 16, 256, None, _APACHE, options=_SAM
        ),
        KnownTeacher(
            "dinov3_7b_hf",
            "transformers:facebook/dinov3-vit7b16-pretrain-lvd1689m",
            "dense",
            224,
            16,
            4096,
            4096,
            _DINOV3,
            gated=True,
        ),
        KnownTeacher("vit_s", "timm:vit_small_patch16_224.augreg_in21k", "ViT", 224, 16, 384, 384, _APACHE),
    )
}


def licence_of(spec: str) -> str:
    """The licence of the weights that the short form `spec` names, "unknown" when the table has no such row."""
    return next((row.licence for row in KNOWN.values() if row.spec == spec), "unknown")
