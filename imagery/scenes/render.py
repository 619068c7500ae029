"""`render_scene`: one scene of the endless world (seed, index), at any size."""

import numpy as np

from common.errors import UserError
from imagery.scenes.captions import captions
from imagery.scenes.facts import object_facts
from imagery.scenes.geometry import surfels
from imagery.scenes.keypoints import scene_keypoints
from imagery.scenes.labels import SALIENT_OBJECTS, label_maps
from imagery.scenes.questions import questions
from imagery.scenes.scene import ObjectFacts, Scene
from imagery.scenes.second_view import second_view as render_second_view
from imagery.scenes.settings import DEFAULT, SceneSettings
from imagery.scenes.shading import shade
from imagery.scenes.visibility import trace
from imagery.scenes.world import World, build_world


def render_scene(
    seed: int,
    index: int,
    height: int,
    width: int,
    *,
    settings: SceneSettings = DEFAULT,
    labels: bool = True,
    second_view: bool = False,
) -> Scene:
    """Draw scene `index` of stream `seed` at `height` x `width` pixels.

    The world behind it is the same for every size and aspect (the shorter side spans the same angle). Without `labels`
    only the picture and the camera are filled in, at about half the cost.
    """
    if min(height, width) < 16:
        raise UserError(f"a scene of {height} x {width} pixels is too small; the shorter side needs at least 16")
    world = build_world(seed, index, settings)
    camera = world.camera
    hits = trace(world, camera, height, width)
    seen = surfels(world.table, hits, camera.centre)
    rgb = shade(world, hits, seen, 1 / (camera.focal * min(height, width)), settings.shadows)
    intrinsics, pose = camera.intrinsics(height, width), camera.pose()
    second = render_second_view(world, seed, index, seen, (height, width), settings) if second_view else None
    if not labels:
        return Scene(rgb=rgb, intrinsics=intrinsics, pose=pose, second=second)
    words = np.random.default_rng((seed, index, 1))
    facts = object_facts(world, hits, seen)
    maps = label_maps(world, camera, hits, seen, salient_instances(facts))
    return Scene(
        rgb=rgb,
        intrinsics=intrinsics,
        pose=pose,
        scene_class=world.scene_class,
        keypoints=scene_keypoints(world, camera, height, width),
        captions=captions(world, facts, words),
        questions=questions(facts, words),
        objects=facts,
        attributes=attributes(world, facts),
        second=second,
        **maps,
    )


def salient_instances(facts: list[ObjectFacts]) -> list[int]:
    """The objects that strike first: most visible pixels, weighted down towards the border of the picture."""

    def weight(fact: ObjectFacts) -> float:
        return fact.pixels * (1.2 - 2 * ((fact.x - 0.5) ** 2 + (fact.y - 0.5) ** 2))

    return [fact.instance for fact in sorted(facts, key=weight, reverse=True)[:SALIENT_OBJECTS]]


def attributes(world: World, facts: list[ObjectFacts]) -> dict[str, object]:
    """Labels of the whole picture; `light_direction` [3] points towards the light in camera axes."""
    return {
        "indoor": world.room is not None,
        "light_direction": (world.camera.axes @ world.light).astype(np.float32),
        "object_count": sum(fact.clear for fact in facts),
        "dominant_kind": world.things[world.main].kind,
        "dominant_colour": world.things[world.main].colour,
        "ground_pattern": world.ground_pattern,
        "ground_colour": world.ground_colour,
        "scene_class": world.scene_class,
    }
