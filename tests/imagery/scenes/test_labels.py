"""Label maps agree with each other and with the names in vocab."""

import numpy as np

from imagery.scenes import Scene, vocab
from imagery.scenes.glyphs import glyph_plates


def test_names_are_unique_and_enough() -> None:
    for names in (vocab.SEMANTIC_CLASSES, vocab.COARSE_CLASSES, vocab.PARTS, vocab.SCENE_CLASSES):
        assert len(set(names)) == len(names)
    assert vocab.NUM_CLASSES == len(vocab.BACKGROUNDS) + len(vocab.KINDS) * len(vocab.MATERIAL_GROUPS) == 32
    assert len(vocab.SCENE_CLASSES) == 16


def test_maps_agree(many: list[Scene]) -> None:
    for scene in many[:40]:
        is_object = scene.instance > 0
        assert np.array_equal(is_object, scene.semantic >= len(vocab.BACKGROUNDS))
        assert np.array_equal(is_object, scene.part > 0)
        assert not scene.saliency[~is_object].any()
        for fact in scene.objects:
            mine = scene.instance == fact.instance
            group = vocab.GROUP_OF_MATERIAL[fact.material]
            assert {vocab.SEMANTIC_CLASSES[k] for k in np.unique(scene.semantic[mine])} == {f"{group} {fact.kind}"}
            assert {vocab.COARSE_CLASSES[k] for k in np.unique(scene.kind[mine])} == {fact.kind}
            assert all(vocab.PARTS[k].startswith(f"{fact.kind} ") for k in np.unique(scene.part[mine]))
            assert fact.pixels == mine.sum()
        assert {fact.instance for fact in scene.objects} == set(np.unique(scene.instance)) - {0}


def test_boundaries_are_where_neighbours_differ(many: list[Scene]) -> None:
    scene = many[3]
    ids = scene.instance.astype(int) * 100 + scene.semantic
    edges = np.pad(ids, 1, mode="edge")
    differs = np.zeros(ids.shape, dtype=bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        differs |= edges[dy : dy + ids.shape[0], dx : dx + ids.shape[1]] != ids
    assert not (differs & (scene.boundary == 0)).any()
    if not scene.attributes["indoor"]:  # in a room two walls meet in an edge but share a class
        assert np.array_equal(differs, scene.boundary > 0)


def test_every_class_occurs(many: list[Scene]) -> None:
    for name, count in (
        ("semantic", vocab.NUM_CLASSES),
        ("kind", len(vocab.COARSE_CLASSES)),
        ("part", len(vocab.PARTS)),
    ):
        seen = np.unique(np.concatenate([np.unique(getattr(scene, name)) for scene in many]))
        assert len(seen) == count, name


def test_small_things_are_common(many: list[Scene]) -> None:
    """Half of the visible objects are narrower than a patch of 16 pixels of a 112-pixel teacher, by area."""
    areas = [fact.pixels / 112**2 for scene in many for fact in scene.objects]
    assert np.median(areas) < (16 / 112) ** 2
    assert np.mean([len(scene.objects) for scene in many]) > 12


def test_scene_class_is_the_largest_object_and_balanced(many: list[Scene]) -> None:
    largest = [max(scene.objects, key=lambda fact: fact.pixels) for scene in many]
    right = [
        vocab.SCENE_CLASSES[scene.scene_class] == f"{fact.kind} {vocab.ENVIRONMENTS[scene.attributes['indoor']]}"
        for scene, fact in zip(many, largest, strict=True)
    ]
    assert np.mean(right) > 0.98
    counts = np.bincount([scene.scene_class for scene in many], minlength=len(vocab.SCENE_CLASSES))
    assert counts.min() >= 3
    assert counts.max() < 0.15 * len(many)


def test_glyphs_differ_from_each_other() -> None:
    plates = glyph_plates()
    assert plates.shape == (len(vocab.GLYPHS), 72, 56)
    for index, plate in enumerate(plates):
        apart = (plates != plate).mean(axis=(1, 2))
        apart[index] = 1
        assert apart.min() > 0.04, vocab.GLYPHS[index]
