"""Tag captions for scenes, complete or with the gaps and shuffles that people's prompts have.

Dropping tags at random teaches the model that what a prompt leaves open may vary; a caption never names
something the picture does not show and never contradicts it.
"""

import numpy as np

from mini_world.scene import Scene, is_visible, value_of
from mini_world.vocabulary import QUALITY_TAGS, outfit_tag, tag

IDENTITY_ORDER = ("gender", "hair_color", "hair_style", "eye_color", "skin", "outfit", "accessory")
SHOT_ORDER = ("pose", "expression", "view", "framing", "lighting", "background")

KEEP = {
    **dict.fromkeys(IDENTITY_ORDER, 0.87),
    **dict.fromkeys(SHOT_ORDER, 0.78),
    "gender": 0.93,
    "view": 0.88,
    "framing": 0.7,
}
KEEP_FRONT_VIEW = 0.4
ALL_TAGS_SHARE = 0.12
NO_IDENTITY_SHARE = 0.04
NO_SHOT_SHARE = 0.06
FEW_TAGS_SHARE = 0.06
NAME_ALONE_SHARE = 0.45
CANONICAL_ORDER_SHARE = 0.35
QUALITY_SHARE = 0.75


def visible_tags(scene: Scene) -> dict[str, str]:
    """Tag of each visible attribute in canonical order; the outfit's tag carries its colour."""
    tags = {}
    for attribute in IDENTITY_ORDER + SHOT_ORDER:
        if not is_visible(scene, attribute):
            continue
        value = value_of(scene, attribute)
        if attribute == "outfit":
            tags[attribute] = outfit_tag(value, scene.character.outfit_color)
        else:
            tags[attribute] = tag(attribute, value)
    return tags


def full_caption(scene: Scene) -> str:
    """Every visible fact in canonical order, the name first where there is one, quality tags last."""
    parts = [scene.name] if scene.name else []
    return ", ".join([*parts, *visible_tags(scene).values(), *QUALITY_TAGS])


def _kept(scene: Scene, tags: dict[str, str], rng: np.random.Generator) -> list[str]:
    """Attributes that the caption mentions."""
    if scene.name and rng.random() < NAME_ALONE_SHARE:
        tags = {attribute: text for attribute, text in tags.items() if attribute in SHOT_ORDER}
    draw = rng.random()
    if draw < ALL_TAGS_SHARE:
        return list(tags)
    draw -= ALL_TAGS_SHARE
    if draw < FEW_TAGS_SHARE:
        count = 1 + int(rng.random() * 4)
        return [str(attribute) for attribute in rng.permutation(list(tags))[:count]]
    draw -= FEW_TAGS_SHARE
    dropped: tuple[str, ...] = ()
    if draw < NO_IDENTITY_SHARE:
        dropped = IDENTITY_ORDER
    elif draw < NO_IDENTITY_SHARE + NO_SHOT_SHARE:
        dropped = SHOT_ORDER
    kept = []
    for attribute, text in tags.items():
        share = KEEP_FRONT_VIEW if text == "front view" else KEEP[attribute]
        if attribute not in dropped and rng.random() < share:
            kept.append(attribute)
    return kept


def _quality(rng: np.random.Generator) -> list[str]:
    if rng.random() >= QUALITY_SHARE:
        return []
    if rng.random() < 0.7:
        return list(QUALITY_TAGS)
    return [text for text in QUALITY_TAGS if rng.random() < 0.5]


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption as a person might write it: some tags, often shuffled, a name first, quality tags last."""
    tags = visible_tags(scene)
    kept = _kept(scene, tags, rng)
    if rng.random() >= CANONICAL_ORDER_SHARE:
        kept = [kept[index] for index in rng.permutation(len(kept))]
        if "gender" in kept and rng.random() < 0.7:
            kept.remove("gender")
            kept.insert(0, "gender")
    name = [scene.name] if scene.name else []
    return ", ".join([*name, *(tags[attribute] for attribute in kept), *_quality(rng)])
