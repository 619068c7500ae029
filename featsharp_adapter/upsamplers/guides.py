"""Upsamplers of low-resolution features alone: without tiles, so that FeatSharp can take each as an input."""

from featsharp_adapter.upsamplers.anyup import AnyUpUpsampler
from featsharp_adapter.upsamplers.base import Upsampler
from featsharp_adapter.upsamplers.carafe import CarafeUpsampler
from featsharp_adapter.upsamplers.dysample import DySampleUpsampler
from featsharp_adapter.upsamplers.featup_implicit import ImplicitUpsampler
from featsharp_adapter.upsamplers.featup_published import FeatUpPublishedUpsampler
from featsharp_adapter.upsamplers.jafar import JafarUpsampler
from featsharp_adapter.upsamplers.lift import LiftUpsampler
from featsharp_adapter.upsamplers.loftup import LoftUpUpsampler
from featsharp_adapter.upsamplers.naf import NafUpsampler
from featsharp_adapter.upsamplers.resfu import ResfuUpsampler
from featsharp_adapter.upsamplers.sapa import SapaUpsampler

GUIDES: dict[str, type[Upsampler]] = {
    "featup_published": FeatUpPublishedUpsampler,
    "carafe": CarafeUpsampler,
    "sapa": SapaUpsampler,
    "dysample": DySampleUpsampler,
    "lift": LiftUpsampler,
    "jafar": JafarUpsampler,
    "loftup": LoftUpUpsampler,
    "resfu": ResfuUpsampler,
    "anyup": AnyUpUpsampler,
    "naf": NafUpsampler,
    "featup_implicit": ImplicitUpsampler,
}
