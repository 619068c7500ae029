"""The ablations of FeatSharp (arXiv 2502.16025, tables 6 to 10), as variants to compare (`variants.py`)."""

ABLATIONS: dict[str, tuple[str, ...]] = {
    # What is fused, and which of it is corrected (the first).
    "inputs": (
        "featsharp:inputs=jbu+tiles",
        "featsharp:inputs=tiles+jbu",
        "featsharp:inputs=bilinear+tiles",
        "featsharp:inputs=jbu+bilinear+tiles",
        "featsharp:inputs=jbu+tiles+rgb",
        "featsharp:inputs=jbu",
        "featsharp:inputs=tiles",
    ),
    "block": (
        "featsharp",
        "featsharp:block=no_attention",
        "featsharp:block=no_ffn",
        "featsharp:block=linear",
        "featsharp:norm=false",
    ),
    "window": ("featsharp:window=1", "featsharp:window=3", "featsharp:window=5", "featsharp:window=7"),
    "position": ("featsharp:position=alibi", "featsharp:position=rope", "featsharp:position=none"),
    # At a factor with several primes, e.g. --set factor=4; at a prime the two are the same.
    "tiling": ("featsharp", "featsharp:progressive=true"),
    "bias": ("featsharp", "featsharp/bias=false", "featup", "featup/bias=false"),
    # All but layer_norm can be undone, so that fidelity, in the teacher's units, compares them; errors do not.
    "normaliser": (
        "featsharp",
        "featsharp/normaliser=none",
        "featsharp/normaliser=global",
        "featsharp/normaliser=rotation",
        "featsharp/normaliser=standardise",
        "featsharp/normaliser=pca_whiten",
        "featsharp/normaliser=layer_norm",
    ),
    "training": (
        "featsharp",
        "featsharp/border_weight=2.0",
        "featsharp/spectral=true",
        "featsharp/uncertainty=true",
        "featsharp/conditional.heads=8",
        "featsharp/downsampler.name=average",
        "featsharp/losses.tv=0.1",
    ),
}
