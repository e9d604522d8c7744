"""What tags mean to one another: the words of the shots in a tagger's language, which tags speak of the same thing and so
exclude each other, and which ones describe who somebody is. Plain data, for captions and for adherence."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Shot words of the recipes, as booru taggers say them. What is the same in both is not listed.
_BOORU = {
    "standing confidently": "standing", "sitting casually": "sitting", "walking forward": "walking",
    "arms crossed": "crossed arms", "reaching up": "arm up", "looking back over shoulder": "looking back",
    "leaning against wall": "against wall", "profile view": "profile", "smiling warmly": "smile",
    "gentle smile": "light smile", "confident smirk": "smirk", "serious expression": "serious",
    "laughing happily": "laughing", "surprised expression": "surprised", "neutral expression": "expressionless",
    "back view": "from behind", "side view": "from side", "slightly from below": "from below",
    "slightly from above": "from above", "close-up portrait": "portrait", "full body shot": "full body",
    "upper body shot": "upper body", "cowboy shot": "cowboy shot", "indoor setting": "indoors",
    "outdoor setting": "outdoors", "urban environment": "city", "natural environment": "nature",
    "blurred background": "blurry background", "abstract background": "abstract background",
    "golden hour": "sunset", "rim lighting": "backlighting",
}  # fmt: skip

# Tags of one group cannot stand together; the first one said of a picture stays.
GROUPS: tuple[frozenset[str], ...] = (
    frozenset({"front view", "side view", "back view", "three-quarter view", "from behind", "from side", "profile",
               "profile view"}),
    frozenset({"from below", "from above", "slightly from below", "slightly from above"}),
    frozenset({"close-up portrait", "portrait", "close-up", "upper body shot", "upper body", "cowboy shot",
               "full body shot", "full body"}),
    frozenset({"smile", "smiling warmly", "gentle smile", "light smile", "smirk", "confident smirk", "frown", "serious",
               "serious expression", "expressionless", "neutral expression", "laughing", "laughing happily", "surprised",
               "surprised expression", "crying", "angry", "playful expression"}),
    frozenset({"standing", "standing confidently", "sitting", "sitting casually", "kneeling", "running", "jumping",
               "walking", "walking forward", "lying", "squatting"}),
    frozenset({"indoors", "indoor setting", "outdoors", "outdoor setting", "simple background", "white background",
               "gradient background", "abstract background", "urban environment", "natural environment"}),
)  # fmt: skip
_EXPRESSIONS = GROUPS[3] | {
    "determined look", "thoughtful expression", "focused gaze", "intense stare", "open mouth", "closed eyes",
    "blush", "looking at viewer",
}  # fmt: skip
_BEHIND = frozenset({"back view", "from behind"})
_ENDINGS = (
    " hair", " eyes", " skin", " ears", " tail", " horns", " wings", "bangs", "ponytail", "twintails", "braid",
    "bun", " breasts", "freckles", " mark", "mole", "scar", "beard", "mustache",
)  # fmt: skip
_WORDS = frozenset(
    {"1girl", "1boy", "solo", "male focus", "ahoge", "short hair", "long hair", "very long hair"}
)
_CLOTHES = (
    "dress", "armor", "robe", "suit", "hoodie", "uniform", "shirt", "jacket", "skirt", "coat", "cape", "kimono",
    "sweater", "pants", "shorts", "boots", "gloves",
)  # fmt: skip
_ACCESSORIES = (
    "glasses", "hat", "crown", "scarf", "bow", "ribbon", "headphones", "tiara", "earrings", "necklace", "choker",
    "hairband", "mask", "eyepatch",
)  # fmt: skip
_COLORS = frozenset(
    {"black", "brown", "blonde", "red", "orange", "pink", "purple", "blue", "green", "white", "grey", "gray", "silver",
     "yellow", "aqua", "golden", "auburn"}
)  # fmt: skip
_PEOPLE = frozenset({"1girl", "1boy", "girl", "boy", "woman", "man", "female", "male"})
_HAIRSTYLES = ("ponytail", "twintails", "braid", "bun", "bob cut", "bangs", "ahoge")
_CUTS = frozenset(
    {"short", "medium", "long", "curly", "wavy", "straight", "spiky", "messy", "shaved", "braided"}
)
# Each word by itself that a base was certainly taught.
_TAUGHT = frozenset(
    word
    for text in (*_BOORU, *_BOORU.values(), *_EXPRESSIONS, *_ENDINGS, *_WORDS, *_CLOTHES, *_ACCESSORIES, *_COLORS, *_PEOPLE,
                 *_HAIRSTYLES, *_CUTS, *(tag for group in GROUPS for tag in group))
    for word in text.split()
)  # fmt: skip
_LONGEST_TAG = 3
CLOTHES = frozenset({"clothes", "clothes color"})
_EVERYBODYS = {"hair color", "haircut", "eyes", "skin", "gender", *CLOTHES}


def booru(word: str) -> str:
    """A word of a shot or a description as booru taggers say it."""
    plain = " ".join(word.lower().replace("_", " ").split())
    return _BOORU.get(plain, plain)


def same(first: str, second: str) -> bool:
    """Whether two words say the same thing."""
    return booru(first) == booru(second)


def is_taught(text: str, shots: Iterable[str] = ()) -> bool:
    """Whether a text has only words that tags and a recipe's shots are made of, such as "girl" or "red dress"."""
    known = _TAUGHT.union(*(shot.lower().split() for shot in shots))
    words = text.lower().replace("_", " ").split()
    return bool(words) and all(word in known for word in words)


def describes_identity(tag: str) -> bool:
    """Whether a tag says who somebody is (hair, eyes, body, clothes) and not what is going on."""
    plain = booru(tag)
    return plain in _WORDS or plain.endswith(_ENDINGS) or plain.split(" ")[-1] in _CLOTHES


def without_contradictions(tags: Iterable[str]) -> list[str]:
    """The tags in their order, without later ones that contradict earlier ones or say the same again; from behind no
    face is seen."""
    kept: list[str] = []
    listed = list(tags)
    behind = next((tag for tag in listed if tag in GROUPS[0]), "") in _BEHIND
    for tag in listed:
        rivals = [group for group in GROUPS if tag in group]
        if any(same(tag, other) for other in kept) or (behind and tag in _EXPRESSIONS):
            continue
        if any(other in group for group in rivals for other in kept):
            continue
        kept.append(tag)
    return kept


def topics(tag: str) -> set[str]:
    """What of a character a tag settles, so that no other tag may say otherwise: "long blue hair" the colour and the
    cut of the hair, "glasses" only itself; nothing where it is no feature."""
    plain = booru(tag)
    words = plain.split(" ")
    last, colored = words[-1], any(word in _COLORS for word in words)
    if last == "hair":
        cut = any(word in _CUTS for word in words)
        return ({"hair color"} if colored else set()) | ({"haircut"} if cut else set())
    if plain.endswith(_HAIRSTYLES):
        return {"haircut"}
    if last in {"eyes", "skin"}:
        return {last}
    if words[0] in _PEOPLE and len(words) == 1:
        return {"gender"}
    if last in _CLOTHES:
        return set(CLOTHES) if colored else {"clothes"}
    return {last} if last in _ACCESSORIES or plain.endswith(_ENDINGS) else set()


def without_color(tag: str) -> tuple[str, ...]:
    """Clothes of one colour as those clothes alone: "red dress" as "dress"; nothing for any other tag."""
    first, _, rest = booru(tag).partition(" ")
    return (rest,) if rest and first in _COLORS and topics(tag) == CLOTHES else ()


def is_extra(tag: str) -> bool:
    """Whether a tag is of something that not everybody has: glasses, a hat, cat ears."""
    return bool(topics(tag) - _EVERYBODYS)


def topics_of(text: str) -> set[str]:
    """What a description settles, tags or prose. Words that a comma or a full stop parts say nothing together."""
    found: set[str] = set()
    for part in re.split(r"[,.;\n]", text.lower()):
        words = re.findall(r"\w+", part)
        runs = (
            words[start : start + size] for size in range(1, _LONGEST_TAG + 1) for start in range(len(words))
        )
        found |= {topic for run in runs for topic in topics(" ".join(run))}
    return found
