"""Captions and answers follow from what is in the picture, and the answers are spread."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from imagery.scenes import ObjectFacts, Scene, render_scene, vocab
from imagery.scenes.facts import plate_corners
from imagery.scenes.glyphs import glyph_plates
from imagery.scenes.settings import DEFAULT
from imagery.scenes.world import build_world

MATERIAL_OF_WORD = {word: material for material, word in vocab.MATERIAL_WORDS.items()}
NUMBERS = ("zero", "one", "two", "three", "four")


def fitting(phrase: str, objects: list[ObjectFacts]) -> list[ObjectFacts]:
    """Objects that every word of "red striped box(es)" fits."""
    for word in phrase.split():
        singular = re.sub("(?<=x)es$|(?<!s)s$", "", word)
        if word in vocab.COLOURS:
            objects = [fact for fact in objects if fact.colour == word]
        elif word in MATERIAL_OF_WORD:
            objects = [fact for fact in objects if fact.material == MATERIAL_OF_WORD[word]]
        elif singular != "object":
            assert singular in vocab.KINDS, word
            objects = [fact for fact in objects if fact.kind == singular]
    return objects


def answer(question: str, objects: list[ObjectFacts]) -> str:
    """Answers by reading the question and looking at the objects in sight."""
    if found := re.fullmatch(r"is there an? (.+)\?", question):
        return "yes" if fitting(found[1], objects) else "no"
    if found := re.fullmatch(r"how many (.+) are there\?", question):
        return NUMBERS[len(fitting(found[1], objects))]
    if question.endswith("the closest object?"):
        closest = min(objects, key=lambda fact: fact.distance)
        return closest.kind if question.startswith("what is") else closest.colour
    if found := re.fullmatch(r"what colour is the (.+)\?", question):
        return only(found[1], objects).colour
    if found := re.fullmatch(r"which character is on the (.+)\?", question):
        return only(found[1], objects).glyph
    if found := re.fullmatch(r"is the (.+) left or right of the (.+)\?", question):
        return "left" if only(found[1], objects).x < only(found[2], objects).x else "right"
    found = re.fullmatch(r"is the (.+) in front of or behind the (.+)\?", question)
    assert found, question
    return "front" if only(found[1], objects).distance < only(found[2], objects).distance else "behind"


def only(phrase: str, objects: list[ObjectFacts]) -> ObjectFacts:
    fits = fitting(phrase, objects)
    assert len(fits) == 1, phrase
    return fits[0]


def test_answers_follow_from_the_objects_in_sight(many: list[Scene]) -> None:
    for scene in many:
        for question in scene.questions:
            assert answer(question.question, scene.objects) == question.answer, question


def test_answers_are_one_word_and_every_kind_is_asked(many: list[Scene]) -> None:
    asked = Counter(question.kind for scene in many for question in scene.questions)
    assert set(asked) == set(vocab.QUESTION_KINDS)
    assert min(asked.values()) > 60
    assert all(" " not in question.answer for scene in many for question in scene.questions)


@pytest.mark.parametrize(
    ("kind", "limit"), [("existence", 0.6), ("count", 0.42), ("colour", 0.22), ("relation", 0.38), ("glyph", 0.16)]
)
def test_the_usual_answer_is_seldom_right(many: list[Scene], kind: str, limit: float) -> None:
    answers = Counter(question.answer for scene in many for question in scene.questions if question.kind == kind)
    assert max(answers.values()) / answers.total() < limit, answers


def test_the_words_of_a_question_do_not_give_the_answer_away(many: list[Scene]) -> None:
    """Guessing existence from the colour, pattern or kind in the question alone stays near chance."""
    by_word = defaultdict(Counter)
    questions = [question for scene in many for question in scene.questions if question.kind == "existence"]
    for question in questions:
        by_word[question.question.rstrip("?").split()[-1]][question.answer] += 1
    guessed = sum(max(answers.values()) for answers in by_word.values())
    assert guessed / len(questions) < 0.66


def test_captions_are_true(many: list[Scene]) -> None:
    """Every phrase "a large red striped box with the letter K on the left" fits an object in the picture."""
    colours, kinds = "|".join(vocab.COLOURS), "|".join(vocab.KINDS)
    pattern = re.compile(
        rf"an? (?:large )?((?:{colours}) (?:[a-z]+ )?(?:{kinds}))\b(?: with the (?:letter|digit) (\w))?"
    )
    for scene in many:
        for caption in scene.captions:
            assert ("indoors" in caption) <= scene.attributes["indoor"]
            assert ("outdoors" in caption) <= (not scene.attributes["indoor"])
            named = pattern.findall(caption)
            assert named, caption
            for phrase, glyph in named:
                fits = fitting(phrase, scene.objects)
                assert any(glyph in ("", fact.glyph) for fact in fits), caption


def test_captions_tell_scenes_apart(many: list[Scene]) -> None:
    assert all(len(scene.captions) >= 3 for scene in many)
    assert len({scene.captions[0] for scene in many}) == len(many)
    assert len({caption for scene in many for caption in scene.captions}) > 0.98 * 5 * len(many)


def test_readable_glyphs_can_be_read_at_224_pixels() -> None:
    """Rectify each plate from the picture alone and find the most similar glyph."""
    right, total = 0, 0
    plates = glyph_plates().astype(float)
    plates -= plates.mean(axis=(1, 2), keepdims=True)
    plates /= np.linalg.norm(plates, axis=(1, 2), keepdims=True)
    for index in range(18):
        scene, world = render_scene(40, index, 224, 224), build_world(40, index, DEFAULT)
        for fact in (fact for fact in scene.objects if fact.glyph_readable):
            row = int(np.flatnonzero((world.table.owner == fact.instance) & (world.table.glyph >= 0))[0])
            ink = -rectify(scene.rgb.mean(-1), plate_corners(world, row), scene, plates.shape[1:])
            likeness = (plates * ink).sum(axis=(1, 2))
            right += vocab.GLYPHS[int(likeness.argmax())] == fact.glyph
            total += 1
    assert total >= 8
    assert right / total > 0.95


def rectify(grey: np.ndarray, corners: np.ndarray, scene: Scene, shape: tuple[int, int]) -> np.ndarray:
    """Look up the picture at the projections of a grid over the plate."""
    v, u = (np.mgrid[: shape[0], : shape[1]] + 0.5) / np.array(shape)[:, None, None]
    top_left, top_right, _, bottom_left = corners.T
    points = top_left + u[..., None] * (top_right - top_left) + v[..., None] * (bottom_left - top_left)
    local = (points - scene.pose[:3, 3]) @ scene.pose[:3, :3] @ scene.intrinsics.T
    x, y = (np.clip(local[..., k] / local[..., 2], 0, 223).astype(int) for k in (0, 1))
    return grey[y, x]
