"""A finite stretch of the endless world, indexable like a data set."""

from dataclasses import dataclass

from common.errors import UserError
from imagery.scenes.render import render_scene
from imagery.scenes.scene import Scene
from imagery.scenes.settings import DEFAULT, SceneSettings


@dataclass(frozen=True)
class SceneSet:
    """Scenes `start` .. `start + count - 1` of stream `seed`, drawn when asked for."""

    seed: int
    count: int
    height: int
    width: int
    settings: SceneSettings = DEFAULT
    labels: bool = True
    second_view: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"a scene set needs count >= 1, got {self.count}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not -self.count <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return render_scene(
            self.seed,
            self.start + index % self.count,
            self.height,
            self.width,
            settings=self.settings,
            labels=self.labels,
            second_view=self.second_view,
        )
