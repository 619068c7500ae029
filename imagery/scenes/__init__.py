"""A procedural 3D world with complete ground truth: small scenes drawn by vectorised ray casting, in numpy alone."""

from imagery.scenes import vocab
from imagery.scenes.render import render_scene
from imagery.scenes.scene import Keypoint, ObjectFacts, Question, Scene, SecondView
from imagery.scenes.scene_set import SceneSet
from imagery.scenes.settings import PRESETS, SceneSettings

__all__ = [
    "PRESETS", "Keypoint", "ObjectFacts", "Question", "Scene", "SceneSet", "SceneSettings", "SecondView",
    "render_scene", "vocab",
]  # fmt: skip
