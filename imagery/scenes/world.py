"""Draws a random world: the camera, the room or the open ground, the light, and what stands where. Knows no pixels."""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from imagery.scenes.camera import Camera, look
from imagery.scenes.palette import GROUND_RGB, WALL_RGB, jitter
from imagery.scenes.placement import Spot, place_objects
from imagery.scenes.settings import SceneSettings
from imagery.scenes.shapes import Thing
from imagery.scenes.surfaces import Finish, SurfaceTable, build_table
from imagery.scenes.vocab import GROUND_COLOURS, MATERIALS, scene_class_id

GROUND_RADIUS = 50.0  # metres; beyond it there is haze, labelled sky


@dataclass(frozen=True)
class Room:
    """Axis-aligned walls of a room, metres; the floor is z = 0."""

    left: float
    right: float
    back: float
    front: float
    height: float


@dataclass(frozen=True)
class World:
    """Everything about a scene that does not depend on pixels. `light` [3] points towards the light, world axes."""

    camera: Camera
    room: Room | None
    light: np.ndarray
    light_rgb: np.ndarray
    ambient: float
    sky: np.ndarray
    ground_colour: str
    ground_pattern: str
    main: int
    things: list[Thing]
    table: SurfaceTable

    @property
    def scene_class(self) -> int:
        """Id in vocab.SCENE_CLASSES."""
        return scene_class_id(self.things[self.main].kind, self.room is not None)


def build_world(seed: int, index: int, settings: SceneSettings) -> World:
    """The world of scene `index` of stream `seed`: the same for every picture size."""
    rng = np.random.default_rng((seed, index, 0))
    indoor = bool(rng.random() < settings.indoor_share)
    heading = rng.uniform(-0.5, 0.5) if indoor else rng.uniform(-pi, pi)
    camera = _camera(rng, heading)
    room = _room(rng) if indoor else None
    ground_colour = GROUND_COLOURS[rng.integers(len(GROUND_COLOURS))]
    ground_pattern = MATERIALS[rng.integers(1, len(MATERIALS))]
    backgrounds = _backgrounds(rng, ground_colour, ground_pattern)
    things = place_objects(rng, settings, Spot(camera.focal, heading, _inside(room)))
    light_rgb = np.array([1.0, rng.uniform(0.94, 1.0), rng.uniform(0.86, 1.0)], np.float32)
    return World(
        camera=camera,
        room=room,
        light=_light(rng, heading),
        light_rgb=light_rgb,
        ambient=float(rng.uniform(0.46, 0.58)),
        sky=np.array([rng.uniform(0.35, 0.55), rng.uniform(0.55, 0.70), rng.uniform(0.82, 0.95)], np.float32),
        ground_colour=ground_colour,
        ground_pattern=ground_pattern,
        main=0,
        things=things,
        table=build_table(backgrounds, [thing.pieces for thing in things]),
    )


def _camera(rng: np.random.Generator, heading: float) -> Camera:
    centre = np.array([0.0, 0.0, rng.uniform(1.4, 2.3)])
    reach = rng.uniform(4.5, 6.0)
    target = np.array([-sin(heading) * reach, cos(heading) * reach, rng.uniform(0.3, 0.7)])
    return look(centre, target, focal=rng.uniform(0.95, 1.2), roll=rng.uniform(-0.04, 0.04))


def _room(rng: np.random.Generator) -> Room:
    width, share = rng.uniform(5.5, 9.0), rng.uniform(0.38, 0.62)
    return Room(-width * share, width * (1 - share), -1.5, rng.uniform(6.5, 10.0), rng.uniform(2.7, 3.5))


def _inside(room: Room | None) -> tuple[float, float, float, float] | None:
    return None if room is None else (room.left, room.right, room.back, room.front)


def _light(rng: np.random.Generator, heading: float) -> np.ndarray:
    azimuth, elevation = heading + rng.uniform(-pi, pi), rng.uniform(0.6, 1.15)
    return np.array([cos(elevation) * cos(azimuth), cos(elevation) * sin(azimuth), sin(elevation)])


def _backgrounds(rng: np.random.Generator, ground_colour: str, ground_pattern: str) -> list[Finish]:
    """Finishes of the eight background codes; ground and floor share one, and so do the four walls."""
    tone = jitter(GROUND_RGB[ground_colour], rng, 0.04)
    shift = rng.uniform(0.12, 0.22) * (-1 if tone.mean() > 0.6 else 1 if rng.random() < 0.5 else -1)
    angle = rng.uniform(0, pi)
    stripe = np.array([cos(angle), sin(angle), 0.0])
    ground = Finish(ground_pattern, tone, tone + np.float32(shift), rng.uniform(0.9, 2.2), rng.uniform(0, 1, 3), stripe)
    wall_tone = jitter(WALL_RGB[rng.integers(len(WALL_RGB))], rng, 0.03)
    wall_material = ("solid", "solid", "stripes", "checker")[rng.integers(4)]
    diagonal = np.array([0.71, 0.70, 0.0])
    wall = Finish(
        wall_material, wall_tone, wall_tone - np.float32(0.07), rng.uniform(1.2, 2.5), rng.uniform(0, 1, 3), diagonal
    )
    ceiling = Finish("solid", jitter((0.93, 0.93, 0.91), rng, 0.02), np.ones(3), 1.0, np.zeros(3), diagonal)
    sky = Finish("none", np.ones(3), np.ones(3), 1.0, np.zeros(3), diagonal)
    return [sky, ground, ground, wall, wall, wall, wall, ceiling]
