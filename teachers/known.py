"""The teachers of the FeatSharp, RADIO and C-RADIO papers by short name: one explicit table, nothing inferred.

A short name stands for its node: `spec: dfn_clip_h` is `{spec: open_clip:ViT-H-14-378-quickgelu:dfn5b}`; options
given beside it win. Sizes, widths, parameters and FLOPs repeat what the libraries' own configurations say, and tests
compare them; of RADIO's own code (`trust_remote_code`) they repeat its publisher, for nothing can be built without it.
Licences are those of the weights, as their publishers state them; read them yourself before you publish a student.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownTeacher:
    """One row. `native` is the (square) size in pixels the papers run it at; `summary_dim` None: no summary is used.

    `norm` is a name of NORMALISATIONS, `parameters` are millions of the image tower, `gflops` those of one image at the
    native size (a multiply-add is two; 0 where nobody says).
    """

    short: str
    spec: str
    role: str
    native: int
    patch: int
    spatial_dim: int
    summary_dim: int | None
    norm: str
    parameters: float
    gflops: float
    licence: str
    repository: str  #: on the Hugging Face hub
    gated: bool = False  #: its publisher asks for terms to be accepted first
    options: dict[str, Any] = field(default_factory=dict)
    own_code: bool = False  #: loads with `trust_remote_code: true` only

    def node(self) -> dict[str, Any]:
        """The recipe node that loads it."""
        return {"spec": self.spec, **self.options}


NORMALISATIONS = {  #: mean and std of RGB in [0, 1]
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "own code": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
APPLE = "Apple Sample Code License"
DINOV3 = "DINOv3 License"
APACHE = "Apache-2.0"
NVIDIA_OPEN = "NVIDIA Open Model License"
NVIDIA_NC = "NVIDIA Source Code License (non-commercial)"


def _timm(
    short: str,
    model: str,
    role: str,
    native: int,
    patch: int,
    width: int,
    parameters: float,
    gflops: float,
    licence: str = APACHE,
    norm: str = "imagenet",
) -> KnownTeacher:
    """A timm row whose pooled summary is as wide as its map."""
    return KnownTeacher(
        short, f"timm:{model}", role, native, patch, width, width, norm, parameters, gflops, licence, f"timm/{model}"
    )


def _sam(short: str, spec: str, repository: str, parameters: float, gflops: float) -> KnownTeacher:
    """A SAM or SAM2 row: 1024 px, a neck of 256 channels at stride 16, no summary."""
    none = {"summary": "none"}
    return KnownTeacher(
        short, spec, "SAM", 1024, 16, 256, None, "imagenet", parameters, gflops, APACHE, repository, options=none
    )


def _own_radio(short: str, repository: str, width: int, tokens: int, parameters: float, licence: str) -> KnownTeacher:
    """RADIO by its own code, which normalises for itself; its summary is `tokens` class tokens side by side."""
    mean, std = NORMALISATIONS["own code"]
    given = {"image_size": 512, "patch_size": 16, "mean": mean, "std": std}
    return KnownTeacher(
        short,
        f"transformers:{repository}",
        "RADIO",
        512,
        16,
        width,
        tokens * width,
        "own code",
        parameters,
        0.0,
        licence,
        repository,
        options=given,
        own_code=True,
    )


ROWS = (
    KnownTeacher(
        "dfn_clip_h", "open_clip:ViT-H-14-378-quickgelu:dfn5b", "CLIP, sharpened",
        378, 14, 1280, 1024, "clip", 632.7, 1007.0, APPLE, "apple/DFN5B-CLIP-ViT-H-14-378",
    ),
    KnownTeacher(
        "siglip_so400m", "open_clip:ViT-SO400M-14-SigLIP-384:webli", "CLIP, sharpened",
        378, 14, 1152, 1152, "half", 428.2, 670.3, APACHE, "timm/ViT-SO400M-14-SigLIP-384", options={"image_size": 378},
    ),
    KnownTeacher(
        "siglip2_so400m_512", "open_clip:ViT-SO400M-16-SigLIP2-512:webli", "CLIP",
        512, 16, 1152, 1152, "half", 428.8, 979.6, APACHE, "timm/ViT-SO400M-16-SigLIP2-512",
    ),
    KnownTeacher(
        "siglip2_g_384", "open_clip:ViT-gopt-16-SigLIP2-384:webli", "CLIP, sharpened",
        384, 16, 1536, 1536, "half", 1163.7, 1393.0, APACHE, "timm/ViT-gopt-16-SigLIP2-384",
    ),
    KnownTeacher(
        "siglip2_g_384_hf", "transformers:google/siglip2-giant-opt-patch16-384", "CLIP, sharpened",
        384, 16, 1536, 1536, "half", 1163.7, 1393.0, APACHE, "google/siglip2-giant-opt-patch16-384",
    ),
    KnownTeacher(
        "openai_clip_l_336", "open_clip:ViT-L-14-336-quickgelu:openai", "CLIP",
        336, 14, 1024, 768, "clip", 304.3, 381.9, "MIT", "timm/vit_large_patch14_clip_336.openai",
    ),
    KnownTeacher(
        "openai_clip_b", "open_clip:ViT-B-16-quickgelu:openai", "CLIP",
        224, 16, 768, 512, "clip", 86.2, 35.1, "MIT", "timm/vit_base_patch16_clip_224.openai",
    ),
    KnownTeacher(
        "paligemma_448", "transformers:google/paligemma-3b-pt-448", "VLM tower",
        448, 14, 1152, None, "half", 413.3, 973.7, "Gemma Terms of Use", "google/paligemma-3b-pt-448", gated=True,
    ),
    KnownTeacher(
        "llava_1_5_7b", "transformers:llava-hf/llava-1.5-7b-hf", "VLM tower",
        336, 14, 1024, 1024, "clip", 303.5, 381.9, "Llama 2 Community License", "llava-hf/llava-1.5-7b-hf",
    ),
    _timm("dinov2_s", "vit_small_patch14_dinov2.lvd142m", "dense", 518, 14, 384, 22.1, 93.4),
    _timm("dinov2_b", "vit_base_patch14_dinov2.lvd142m", "dense", 518, 14, 768, 86.6, 303.1),
    _timm("dinov2_l", "vit_large_patch14_dinov2.lvd142m", "dense", 518, 14, 1024, 304.4, 1013.6),
    _timm("dinov2_g", "vit_giant_patch14_dinov2.lvd142m", "dense", 518, 14, 1536, 1136.5, 3566.7),
    _timm("dinov2_s_reg", "vit_small_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 384, 22.1, 93.8),
    _timm("dinov2_b_reg", "vit_base_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 768, 86.6, 304.2),
    _timm("dinov2_l_reg", "vit_large_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 1024, 304.4, 1017.1),
    _timm("dinov2_g_reg", "vit_giant_patch14_reg4_dinov2.lvd142m", "dense", 518, 14, 1536, 1136.5, 3578.4),
    _timm("dinov3_s", "vit_small_patch16_dinov3.lvd1689m", "dense", 256, 16, 384, 21.6, 12.5, DINOV3),
    _timm("dinov3_s_plus", "vit_small_plus_patch16_dinov3.lvd1689m", "dense", 256, 16, 384, 28.7, 16.2, DINOV3),
    _timm("dinov3_b", "vit_base_patch16_dinov3.lvd1689m", "dense", 256, 16, 768, 85.6, 47.1, DINOV3),
    _timm("dinov3_l", "vit_large_patch16_dinov3.lvd1689m", "dense", 256, 16, 1024, 303.1, 164.7, DINOV3),
    _timm("dinov3_h_plus", "vit_huge_plus_patch16_dinov3.lvd1689m", "dense", 256, 16, 1280, 840.5, 449.5, DINOV3),
    _timm("dinov3_7b", "vit_7b_patch16_dinov3.lvd1689m", "dense", 256, 16, 4096, 6716.0, 3549.3, DINOV3),
    KnownTeacher(
        "dinov3_7b_hf", "transformers:facebook/dinov3-vit7b16-pretrain-lvd1689m", "dense",
        224, 16, 4096, 4096, "imagenet", 6716.0, 2725.5, DINOV3, "facebook/dinov3-vit7b16-pretrain-lvd1689m",
        gated=True,
    ),
    _sam("sam_b", "timm:samvit_base_patch16.sa1b", "timm/samvit_base_patch16.sa1b", 89.7, 972.1),
    _sam("sam_l", "timm:samvit_large_patch16.sa1b", "timm/samvit_large_patch16.sa1b", 308.3, 2985.7),
    _sam("sam_h", "timm:samvit_huge_patch16.sa1b", "timm/samvit_huge_patch16.sa1b", 637.0, 5961.1),
    _sam("sam_h_hf", "transformers:facebook/sam-vit-huge", "facebook/sam-vit-huge", 637.0, 5961.1),
    _sam("sam2_t", "transformers:facebook/sam2.1-hiera-tiny", "facebook/sam2.1-hiera-tiny", 27.2, 291.1),
    _sam("sam2_l", "transformers:facebook/sam2.1-hiera-large", "facebook/sam2.1-hiera-large", 212.7, 1823.4),
    KnownTeacher(
        "sam3", "transformers:facebook/sam3", "SAM",
        1008, 14, 1024, None, "half", 454.0, 5398.6, "SAM License", "facebook/sam3", gated=True,
        options={"summary": "none", "spatial": "last_block"},
    ),
    _timm("vit_s", "vit_small_patch16_224.augreg_in21k", "ViT", 224, 16, 384, 30.1, 9.2, norm="half"),
    _own_radio("radio_v25_b", "nvidia/RADIO-B", 768, 3, 98.0, NVIDIA_NC),
    _own_radio("radio_v25_l", "nvidia/RADIO-L", 1024, 3, 320.0, NVIDIA_NC),
    _own_radio("c_radio_v3_l", "nvidia/C-RADIOv3-L", 1024, 3, 320.0, NVIDIA_OPEN),
    _own_radio("c_radio_v3_h", "nvidia/C-RADIOv3-H", 1280, 3, 653.0, NVIDIA_OPEN),
    _own_radio("c_radio_v4_h", "nvidia/C-RADIOv4-H", 1280, 2, 653.0, NVIDIA_OPEN),
    _timm(
        "c_radio_v3_l_timm", "vit_large_patch16_radio_v3.c_radio", "RADIO", 512, 16, 1024, 304.2, 729.6, NVIDIA_OPEN,
        "clip",
    ),
    _timm(
        "c_radio_v4_h_timm", "vit_huge_patch16_radio_v4.c_radio", "RADIO", 512, 16, 1280, 632.0, 1478.3, NVIDIA_OPEN,
        "clip",
    ),
)  # fmt: skip
KNOWN: dict[str, KnownTeacher] = {row.short: row for row in ROWS}


def licence_of(spec: str) -> str:
    """The licence of the weights that the short form `spec` names, "unknown" when the table has no such row."""
    return next((row.licence for row in ROWS if row.spec == spec), "unknown")


def gating_of(spec: str) -> str:
    """What must be accepted before the weights of `spec` can be fetched, in words; "" where nothing must."""
    for row in ROWS:
        if row.gated and spec in (row.spec, row.short):
            return f"gated ({row.licence}): accept the terms at https://huggingface.co/{row.repository} first"
    return ""
