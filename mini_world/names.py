"""Two hundred invented people, who teach the text encoder that an unknown word can stand for a whole look.

Names and looks come from Python's `random.Random`, whose `random()` never changes between versions.
"""

import random

from mini_world.character import Character
from mini_world.vocabulary import TRAITS

COUNT = 200
_STARTS: tuple[str, ...] = (
    "Ak",
    "Bel",
    "Cor",
    "Dra",
    "El",
    "Fen",
    "Gwi",
    "Hal",
    "Il",
    "Jor",
    "Kes",
    "Lun",
    "Mir",
    "Nov",
    "Or",
    "Pel",
)
_STARTS += ("Quin", "Ros", "Syl", "Tam", "Ul", "Ver", "Wyn", "Xan", "Yor", "Zel")
_MIDDLES = ("a", "e", "i", "o", "u", "ari", "eni", "ola", "umi", "ira")
_ENDS = ("na", "th", "ra", "lia", "ko", "ss", "nor", "del", "ven", "mi", "rik", "sha")
_FAMILY: tuple[str, ...] = (
    "Ashvale",
    "Brightmoor",
    "Coppergate",
    "Duskwell",
    "Emberlin",
    "Frosthollow",
    "Greymantle",
    "Ivywick",
)
_FAMILY += (
    "Lanternby",
    "Moonbarrow",
    "Nightbrook",
    "Oakenshade",
    "Pinecrest",
    "Ravenmere",
    "Starling",
    "Thornby",
)


def _invent_names() -> tuple[str, ...]:
    source = random.Random("miniature world names")
    found: list[str] = []
    while len(found) < COUNT:
        parts = [options[int(source.random() * len(options))] for options in (_STARTS, _MIDDLES, _ENDS)]
        name = "".join(parts)
        if source.random() < 0.4:
            name += " " + _FAMILY[int(source.random() * len(_FAMILY))]
        if name.split()[0] not in {other.split()[0] for other in found}:
            found.append(name)
    return tuple(found)


def _look_of(name: str) -> Character:
    source = random.Random(f"look of {name}")
    return Character(
        **{trait: values[int(source.random() * len(values))] for trait, values in TRAITS.items()}
    )


NAMES: tuple[str, ...] = _invent_names()
CHARACTERS: dict[str, Character] = {name: _look_of(name) for name in NAMES}
