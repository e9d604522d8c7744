"""Every attribute value of the miniature world, as plain data, so that drawing, captions, networks and
prompts agree on the same words.

`TRAITS` belong to a character and stay with it; `SHOT` changes from picture to picture.
"""

TRAITS: dict[str, tuple[str, ...]] = {
    "gender": ("1girl", "1boy"),
    "hair_color": ("black", "brown", "blonde", "red", "orange", "pink", "purple", "blue", "green", "white"),
    "hair_style": (
        "short hair",
        "long hair",
        "ponytail",
        "twintails",
        "bob cut",
        "spiky hair",
        "hair bun",
        "braid",
        "curly hair",
    ),
    "eye_color": ("blue", "green", "brown", "red", "purple", "yellow"),
    "skin": ("pale skin", "tan skin", "dark skin"),
    "outfit": ("dress", "armor", "robe", "suit", "hoodie", "school uniform"),
    "outfit_color": ("red", "blue", "green", "yellow", "purple", "white", "black", "pink"),
    "accessory": ("glasses", "hat", "crown", "scarf", "hair bow", "headphones", "horns", "cat ears"),
}

SHOT: dict[str, tuple[str, ...]] = {
    "pose": (
        "standing confidently",
        "sitting casually",
        "walking forward",
        "arms crossed",
        "hands on hips",
        "reaching up",
        "kneeling",
        "running",
        "jumping",
        "dancing",
        "fighting stance",
    ),
    "expression": (
        "neutral expression",
        "smiling warmly",
        "serious expression",
        "laughing happily",
        "surprised expression",
        "playful expression",
    ),
    "view": ("front view", "side view", "back view", "three-quarter view"),
    "framing": ("full body shot", "cowboy shot", "upper body shot", "close-up portrait"),
    "lighting": ("natural lighting", "dramatic lighting", "golden hour", "rim lighting"),
    "background": (
        "simple background",
        "white background",
        "gradient background",
        "indoor setting",
        "outdoor setting",
        "urban environment",
        "natural environment",
        "abstract background",
    ),
}

ATTRIBUTES: dict[str, tuple[str, ...]] = {**TRAITS, **SHOT}

QUALITY_TAGS: tuple[str, ...] = ("high quality", "detailed", "best quality")


def tag(attribute: str, value: str) -> str:
    """The caption tag of one attribute value; the outfit's colour needs `outfit_tag` instead."""
    if attribute == "hair_color":
        return f"{value} hair"
    if attribute == "eye_color":
        return f"{value} eyes"
    return value


def outfit_tag(outfit: str, color: str) -> str:
    """Outfit and colour always appear as one tag, such as "red dress"."""
    return f"{color} {outfit}"
