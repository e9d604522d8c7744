"""The lasting traits of one person, apart from any picture of that person."""

from dataclasses import dataclass

import numpy as np

from mini_world.vocabulary import TRAITS


@dataclass(frozen=True)
class Character:
    """The lasting traits of one person; every field holds a value from `TRAITS`."""

    gender: str
    hair_color: str
    hair_style: str
    eye_color: str
    skin: str
    outfit: str
    outfit_color: str
    accessory: str


def sample_character(rng: np.random.Generator) -> Character:
    """A character with every trait drawn uniformly and independently."""
    return Character(**{trait: values[int(rng.random() * len(values))] for trait, values in TRAITS.items()})
