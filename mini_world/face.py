"""The miniature people's faces: large eyes, six strong expressions, and the colours of a head."""

from dataclasses import dataclass

from mini_world.body import SKIN
from mini_world.pen import Color, Pen, shade
from mini_world.scene import Scene

HAIR: dict[str, Color] = {
    "black": (44, 42, 56),
    "brown": (106, 54, 22),
    "blonde": (252, 218, 96),
    "red": (204, 26, 36),
    "orange": (250, 128, 22),
    "pink": (255, 142, 194),
    "purple": (144, 66, 200),
    "blue": (44, 104, 226),
    "green": (48, 164, 76),
    "white": (238, 241, 248),
}
EYES: dict[str, Color] = {
    "blue": (40, 120, 250),
    "green": (30, 176, 72),
    "brown": (140, 72, 20),
    "red": (232, 24, 40),
    "purple": (160, 60, 224),
    "yellow": (255, 208, 20),
}
DARK: Color = (34, 22, 34)
WHITE: Color = (255, 255, 255)


@dataclass(frozen=True)
class Head:
    """Colours and options of one head."""

    pen: Pen
    scene: Scene
    hair: Color
    ink: Color
    skin: Color
    view: str
    style: str
    boy: bool
    sway: float


def head(pen: Pen, scene: Scene, sway: float, hair_shift: float) -> Head:
    """Collect colours; `sway` moves loose hair sideways and `hair_shift` changes the hair's brightness."""
    character = scene.character
    hair = shade(HAIR[character.hair_color], 1 + hair_shift)
    ink = {"black": (14, 12, 22), "white": (112, 120, 146)}.get(character.hair_color) or shade(hair, 0.45)
    skin = SKIN[character.skin]
    boy = character.gender == "1boy"
    return Head(pen, scene, hair, ink, skin, scene.view.split()[0], character.hair_style, boy, sway)


def eye_spots(view: str) -> list[tuple[float, float, float]]:
    """Centre and horizontal scale of each eye in a view."""
    if view == "side":
        return [(7.4, 16.8, 0.86)]
    if view == "three-quarter":
        return [(-1.4, 16.8, 1.0), (8.6, 16.8, 0.8)]
    return [(-5.6, 16.8, 1.0), (5.6, 16.8, 1.0)]


def mouth_spot(view: str) -> tuple[float, float]:
    """Centre of the mouth in a view."""
    return {"three-quarter": (4.0, 22.6), "side": (9.0, 22.6)}.get(view, (0.0, 22.6))


def draw_features(h: Head) -> None:
    expression = h.scene.expression
    for index, (x, y, narrow) in enumerate(eye_spots(h.view)):
        winks = expression == "playful expression" and index == 0
        if expression == "laughing happily":
            h.pen.arc(x, y + 1.6, 3 * narrow, 3.6, 185, 355, 1.5, DARK)
        elif winks:
            h.pen.line([(x - 2.8, y - 1.6), (x + 1.6, y + 0.4), (x - 2.8, y + 2.2)], 1.2, DARK)
        else:
            _eye(h, x, y, narrow, expression)
        _brow(h, x, y, narrow, index)
    _cheeks(h, expression)
    _mouth(h, expression)


def _eye(h: Head, x: float, y: float, narrow: float, expression: str) -> None:
    pen, iris = h.pen, EYES[h.scene.character.eye_color]
    wide = expression == "surprised expression"
    rx, ry = (3.4 * narrow, 4.4) if wide else (3.0 * narrow, 3.8)
    pen.ellipse(x, y, rx, ry, WHITE, DARK)
    if wide:
        pen.ellipse(x, y, rx * 0.74, ry * 0.7, iris)
        pen.ellipse(x, y, 0.7, 0.9, DARK)
    else:
        pen.ellipse(x, y + 0.2, rx * 0.88, ry * 0.98, iris)
        pen.ellipse(x, y - 0.6, 1.15 * narrow, 1.6, shade(iris, 0.35))
        pen.ellipse(x, y + 2.1, 1.5 * narrow, 1.0, shade(iris, 1.35))
        pen.ellipse(x + 1.0 * narrow, y - 1.8, 1.2 * narrow, 1.25, WHITE)
    if expression == "serious expression":
        pen.polygon(
            [
                (x - 3.9 * narrow, y - 5),
                (x + 3.9 * narrow, y - 5),
                (x + 3.9 * narrow, y - 1.1),
                (x - 3.9 * narrow, y - 1.1),
            ],
            h.skin,
        )
        pen.line([(x - 3.3 * narrow, y - 1.1), (x + 3.3 * narrow, y - 1.1)], 1.2, DARK)
    elif not h.boy:
        pen.arc(x, y, rx + 0.9, ry + 0.9, 190, 350, 1.5, DARK)
        out = -1 if x < mouth_spot(h.view)[0] and h.view != "side" else 1
        if h.view == "side":
            out = -1
        pen.line([(x + out * rx, y - 2), (x + out * (rx + 1.7), y - 3.6)], 0.9, DARK)


def _brow(h: Head, x: float, y: float, narrow: float, index: int) -> None:
    expression = h.scene.expression
    inner = 1 if (x < mouth_spot(h.view)[0]) else -1
    thick = 1.5 if h.boy else 0.9
    colour = shade(h.ink, 0.8)
    near, far = (x + inner * 2.8 * narrow, y - 5.3), (x - inner * 2.8 * narrow, y - 5.3)
    if expression == "serious expression":
        near, far, thick = (near[0], y - 2.6), (far[0], y - 5.6), thick + 0.6
        colour = DARK
    elif expression == "surprised expression":
        near, far = (near[0], y - 7.4), (far[0], y - 6.6)
    elif expression in ("smiling warmly", "laughing happily"):
        near, far = (near[0], y - 5.8), (far[0], y - 5.0)
    elif expression == "playful expression":
        lift = 1.6 if index else -1.6
        near, far = (near[0], near[1] - lift), (far[0], far[1] - lift)
    h.pen.line([far, near], thick, colour)


def _cheeks(h: Head, expression: str) -> None:
    strength = {"smiling warmly": 2.3, "laughing happily": 2.5, "playful expression": 2.0}.get(
        expression, 0.0
    )
    if not h.boy:
        strength = max(strength, 1.5)
    if strength:
        blush = tuple(int(a * 0.55 + b * 0.45) for a, b in zip(h.skin, (255, 70, 90), strict=True))
        spots = {"three-quarter": (-3.6, 9.8), "side": (4.4,)}.get(h.view, (-8.2, 8.2))
        for x in spots:
            h.pen.ellipse(x, 21.6, strength * 0.85, strength * 0.5, blush)  # type: ignore[arg-type]


def _mouth(h: Head, expression: str) -> None:
    pen = h.pen
    x, y = mouth_spot(h.view)
    k = 0.72 if h.view == "side" else 1.0
    red: Color = (190, 30, 48)
    if expression == "neutral expression":
        pen.line([(x - 1.7 * k, y), (x + 1.7 * k, y)], 0.95, DARK)
    elif expression == "smiling warmly":
        pen.arc(x, y - 1.8, 4.2 * k, 3.3, 15, 165, 1.3, DARK)
    elif expression == "serious expression":
        pen.arc(x, y + 2.4, 3.3 * k, 2.8, 200, 340, 1.3, DARK)
    elif expression == "laughing happily":
        pen.pie(x, y - 1.9, 5.2 * k, 5.4, 0, 180, DARK)
        pen.pie(x, y - 1.5, 4.4 * k, 4.4, 0, 180, red)
        pen.polygon(
            [(x - 4 * k, y - 1.5), (x + 4 * k, y - 1.5), (x + 3.6 * k, y - 0.2), (x - 3.6 * k, y - 0.2)],
            WHITE,
        )
    elif expression == "surprised expression":
        pen.ellipse(x, y + 0.3, 1.9 * k, 2.4, red, DARK)
    else:
        pen.arc(x, y - 1.6, 3.6 * k, 2.6, 10, 170, 1.2, DARK)
        pen.ellipse(x + 1.2 * k, y + 1.7, 1.7 * k, 1.9, (255, 96, 130), DARK)
