"""What is in one picture: a character with its lasting traits, and the shot that shows it.

Scenes are sampled from a seeded generator, and `attributes` tells which of their facts a viewer can see:
that is what captions may mention and what the attribute reader is trained and scored on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mini_world.character import Character, sample_character
from mini_world.names import CHARACTERS, NAMES
from mini_world.vocabulary import ATTRIBUTES, SHOT, TRAITS

NAMED_SHARE = 0.12

SHOT_WEIGHTS: dict[str, tuple[float, ...]] = {
    "view": (0.45, 0.17, 0.15, 0.23),
    "framing": (0.38, 0.22, 0.22, 0.18),
    "lighting": (0.4, 0.2, 0.2, 0.2),
}

_ARM_POSES = ("arms crossed", "reaching up", "jumping", "dancing", "fighting stance")
VISIBLE_POSES: dict[str, tuple[str, ...]] = {
    "full body shot": SHOT["pose"],
    "cowboy shot": SHOT["pose"],
    "upper body shot": _ARM_POSES,
    "close-up portrait": (),
}


@dataclass(frozen=True)
class Scene:
    """One picture of a character, who may have a name; the other fields hold values from `SHOT`."""

    character: Character
    pose: str
    expression: str
    view: str
    framing: str
    lighting: str
    background: str
    name: str | None = None


def sample_scene(
    rng: np.random.Generator, character: Character | None = None, name: str | None = None
) -> Scene:
    """A random shot of `character`, or of a random one, who is a named person in NAMED_SHARE of all cases."""
    if character is None:
        if rng.random() < NAMED_SHARE:
            name = NAMES[int(rng.random() * len(NAMES))]
            character = CHARACTERS[name]
        else:
            character = sample_character(rng)
    shot = {attribute: _pick(rng, attribute) for attribute in SHOT}
    return Scene(character=character, name=name, **shot)


def _pick(rng: np.random.Generator, attribute: str) -> str:
    values = SHOT[attribute]
    weights = SHOT_WEIGHTS.get(attribute, (1 / len(values),) * len(values))
    threshold, total = rng.random(), 0.0
    for value, weight in zip(values, weights, strict=True):
        total += weight
        if threshold < total:
            return value
    return values[-1]


def value_of(scene: Scene, attribute: str) -> str:
    """The word for one attribute of the scene, visible or not."""
    value: str = getattr(scene.character if attribute in TRAITS else scene, attribute)
    return value


def is_visible(scene: Scene, attribute: str) -> bool:
    """Whether a viewer of the picture can tell this attribute."""
    rule = _RULES.get(attribute)
    return rule is None or rule(scene)


def _from_behind(scene: Scene) -> bool:
    return scene.view == "back view"


def _is_close(scene: Scene) -> bool:
    return scene.framing in ("upper body shot", "close-up portrait")


def _skin_shows(scene: Scene) -> bool:
    return not (_from_behind(scene) and _is_close(scene))


def _gender_shows(scene: Scene) -> bool:
    hiding = scene.character.outfit in ("armor", "robe")
    return not (_from_behind(scene) and (hiding or _is_close(scene)))


def _cloth_shows(scene: Scene) -> bool:
    """A close-up shows the collar only, which a scarf covers; long hair covers most of the back."""
    under_hair = _from_behind(scene) and scene.character.hair_style == "long hair"
    under_scarf = scene.character.accessory == "scarf" and scene.framing == "close-up portrait"
    return not (under_scarf or (under_hair and _is_close(scene)))


def _eyes_show(scene: Scene) -> bool:
    """Laughing closes both eyes, a wink the only one that a profile shows."""
    winking_profile = scene.view == "side view" and scene.expression == "playful expression"
    return not (_from_behind(scene) or winking_profile or scene.expression == "laughing happily")


def _pose_shows(scene: Scene) -> bool:
    before_the_chest = scene.pose in ("arms crossed", "fighting stance")
    hidden = before_the_chest and _from_behind(scene) and scene.framing == "upper body shot"
    return scene.pose in VISIBLE_POSES[scene.framing] and not hidden


_RULES: dict[str, Callable[[Scene], bool]] = {
    "gender": _gender_shows,
    "skin": _skin_shows,
    "eye_color": _eyes_show,
    "expression": lambda scene: not _from_behind(scene),
    "outfit": lambda scene: _skin_shows(scene) and _cloth_shows(scene),
    "outfit_color": _cloth_shows,
    "accessory": lambda scene: not (_from_behind(scene) and scene.character.accessory == "glasses"),
    "pose": _pose_shows,
}


def attributes(scene: Scene) -> dict[str, int]:
    """Index of each attribute's value in its vocabulary, or -1 where the picture does not show it."""
    return {
        attribute: values.index(value_of(scene, attribute)) if is_visible(scene, attribute) else -1
        for attribute, values in ATTRIBUTES.items()
    }
