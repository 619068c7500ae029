"""What kind of scenes to draw. The default is the embedded world that the shipped teachers were trained on."""

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class SceneSettings:
    """Ranges of the random world. Lengths in metres, `main_apparent` in radius over distance, counts inclusive."""

    objects: tuple[int, int] = (12, 24)
    radius: tuple[float, float] = (0.12, 0.7)
    distance: tuple[float, float] = (2.3, 9.0)
    indoor_share: float = 0.5
    main_apparent: tuple[float, float] = (0.17, 0.23)
    main_distance: tuple[float, float] = (3.0, 4.6)
    # The others may look at most this share of the main object's size, so that "the main object" is decidable.
    rival_share: float = 0.58
    patterned_share: float = 0.75
    glyph_share: float = 0.4
    on_table_share: float = 0.6
    shadows: bool = True
    baseline: tuple[float, float] = (0.35, 1.1)

    def __post_init__(self) -> None:
        for name in ("objects", "radius", "distance", "main_apparent", "main_distance", "baseline"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"scene setting {name} = ({low}, {high}) needs 0 < low <= high")
        for name in ("indoor_share", "rival_share", "patterned_share", "glyph_share", "on_table_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"scene setting {name} = {getattr(self, name)} must lie between 0 and 1")


DEFAULT = SceneSettings()
INDOOR = SceneSettings(indoor_share=1.0)
OUTDOOR = SceneSettings(indoor_share=0.0)
SPARSE = SceneSettings(objects=(3, 6))
PRESETS = {"default": DEFAULT, "indoor": INDOOR, "outdoor": OUTDOOR, "sparse": SPARSE}
