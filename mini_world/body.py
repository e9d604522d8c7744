"""Bodies, clothes and poses of the miniature people.

Joints have a sideways, a downward and a forward coordinate and are turned by the view, so one table of poses
serves all four views.
"""

import math
from dataclasses import dataclass

from mini_world.pen import Color, Pen, Points, shade
from mini_world.scene import Scene

SKIN: dict[str, Color] = {
    "pale skin": (255, 226, 208),
    "tan skin": (224, 164, 110),
    "dark skin": (150, 94, 60),
}
CLOTH: dict[str, Color] = {
    "red": (208, 36, 44),
    "blue": (40, 92, 214),
    "green": (38, 150, 70),
    "yellow": (252, 206, 48),
    "purple": (132, 60, 186),
    "white": (244, 245, 250),
    "black": (46, 46, 56),
    "pink": (252, 148, 192),
}
SILVER: Color = (206, 212, 224)
GOLD: Color = (255, 206, 70)
BOOT: Color = (92, 60, 44)
YAW = {"front view": 0.0, "three-quarter view": 38.0, "side view": 90.0, "back view": 180.0}
TURNED_WIDTH = {"front view": 1.0, "three-quarter view": 0.9, "side view": 0.68, "back view": 1.0}
RAISED_ARMS = ("reaching up", "jumping", "dancing")
DROP = {"sitting casually": 5.0, "kneeling": 8.5, "jumping": -4.0, "fighting stance": 1.0}

Joint = tuple[float, float, float]


def _both(*joints: Joint) -> tuple[list[Joint], list[Joint]]:
    return list(joints), [(-x, y, z) for x, y, z in joints]


@dataclass(frozen=True)
class Pose:
    """Elbow and hand, knee and foot, for the right-hand and the left-hand side as seen from the front."""

    arms: tuple[list[Joint], list[Joint]]
    legs: tuple[list[Joint], list[Joint]]
    lean: float = 0.0


POSES: dict[str, Pose] = {
    "standing confidently": Pose(
        _both((8.6, 33, 0), (9.8, 38.5, 0.4)), _both((3.4, 49, 0), (4.2, 56.5, 0.5))
    ),
    "sitting casually": Pose(_both((9, 34.5, 1), (6, 41, 6)), _both((5, 44, 7), (5.4, 51.5, 7.5))),
    "walking forward": Pose(
        ([(9.4, 33, 3), (7, 35.5, 8)], [(-9, 33, -4), (-11, 37.5, -7.5)]),
        ([(3, 48, -2), (3.8, 53, -7)], [(-3, 48.5, 5), (-3.4, 57.5, 7)]),
        0.6,
    ),
    "arms crossed": Pose(
        ([(9, 34.5, 2), (-3.6, 34.2, 6)], [(-9, 34.5, 2), (3.6, 32.4, 6.4)]),
        _both((3, 49, 0), (3.2, 56.5, 0.5)),
    ),
    "hands on hips": Pose(_both((13.4, 34.5, -6), (6.4, 39.5, 1)), _both((4.4, 49, 0), (5.8, 56.5, 0.5))),
    "reaching up": Pose(
        ([(14, 21, 1), (16.8, 9, 1)], [(-8.6, 33, -1), (-9.8, 38.5, -1)]),
        _both((3, 49, 0), (3.2, 56.5, 0.5)),
    ),
    "kneeling": Pose(_both((8, 34.5, 2), (1.6, 40, 5)), _both((4.6, 48, 5), (5.6, 48.4, -7))),
    "running": Pose(
        ([(11.5, 33, -2), (13.4, 27.6, 6)], [(-11.5, 32.5, -4), (-15.5, 36, -8)]),
        ([(5.6, 46, 7), (6.4, 51.5, 4)], [(-5, 48.5, -3), (-10.5, 55, -10)]),
        2.2,
    ),
    "jumping": Pose(_both((13.5, 24.5, 0), (19, 16.5, 0)), _both((8, 46.5, 3), (6, 52, -3.5))),
    "dancing": Pose(
        ([(12, 30, 1), (19, 29, 1)], [(-14.5, 22, 0), (-15.5, 9.5, 0)]),
        ([(7.6, 46, 3), (14.5, 50, 5)], [(-1.5, 49, 0), (-1.5, 56.5, 0)]),
        -1.2,
    ),
    "fighting stance": Pose(
        ([(11.5, 35, 4), (8.6, 29.5, 10)], [(-10.5, 36, 3), (-3.4, 32.5, 10)]),
        _both((7.4, 48.5, 2), (10, 55.5, -3)),
    ),
}


@dataclass(frozen=True)
class Figure:
    """Everything the body's parts need to know about one drawing."""

    pen: Pen
    scene: Scene
    skin: Color
    cloth: Color
    ink: Color
    width: float
    boy: bool
    swing: float


def figure(pen: Pen, scene: Scene, swing: float, cloth_shift: float) -> Figure:
    """Colours and proportions; `swing` moves hands a little and `cloth_shift` how bright the cloth is."""
    character = scene.character
    cloth = shade(CLOTH[character.outfit_color], 1 + cloth_shift)
    ink = shade(cloth, 0.42) if character.outfit_color not in ("white", "black") else (70, 74, 92)
    if character.outfit_color == "black":
        ink = (16, 16, 22)
    boy = character.gender == "1boy"
    width = TURNED_WIDTH[scene.view] * (1.2 if boy else 1.0)
    return Figure(pen, scene, SKIN[character.skin], cloth, ink, width, boy, swing)


def _project(joint: Joint, yaw: float) -> tuple[float, float, float]:
    x, y, z = joint
    turn = math.radians(yaw)
    return x * math.cos(turn) + z * math.sin(turn), y, z * math.cos(turn) - x * math.sin(turn)


def limbs(parts: tuple[list[Joint], list[Joint]], root: Joint, yaw: float) -> list[tuple[float, Points]]:
    """Depth and screen points of both limbs, the far one first."""
    found = []
    for side, joints in zip((1, -1), parts, strict=True):
        chain = [_project(joint, yaw) for joint in [(root[0] * side, root[1], root[2]), *joints]]
        found.append((sum(joint[2] for joint in chain[1:]), [(x, y) for x, y, _ in chain]))
    return sorted(found, key=lambda limb: limb[0])


def draw_legs(fig: Figure) -> None:
    """Legs, shoes and what somebody sits on."""
    outfit, pen, scene = fig.scene.character.outfit, fig.pen, fig.scene
    if scene.pose == "sitting casually":
        pen.polygon([(-10, 42.5), (10, 42.5), (9, 52.5), (-9, 52.5)], (150, 100, 60), (70, 42, 24))
        pen.polygon([(-11, 41), (11, 41), (11, 44.5), (-11, 44.5)], (196, 140, 88), (70, 42, 24))
    leg, shoe = _leg_colors(fig)
    ink = shade(leg, 0.42)
    width = 5.2 if fig.boy or outfit == "armor" else 4.2
    for _, points in limbs(POSES[scene.pose].legs, (2.7, 41.5, 0), YAW[scene.view]):
        pen.line(points, width, leg, ink)
        foot = points[-1]
        toe = {"side view": 1.6, "three-quarter view": 0.9}.get(scene.view, 0.0)
        if outfit == "school uniform" and not fig.boy:
            pen.line([_between(points[1], foot, 0.45), foot], width, (250, 250, 252))
        if outfit == "armor":
            pen.line([_between(points[1], foot, 0.3), foot], width, SILVER)
        pen.ellipse(foot[0] + toe, foot[1] - 0.2, 3.3, 2.1, shoe, shade(shoe, 0.4))


def _between(start: tuple[float, float], end: tuple[float, float], share: float) -> tuple[float, float]:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _leg_colors(fig: Figure) -> tuple[Color, Color]:
    """Colour of leg and shoe for the outfit."""
    outfit = fig.scene.character.outfit
    jeans: Color = (72, 92, 140)
    if outfit == "armor":
        return shade(fig.cloth, 0.9), shade(SILVER, 0.8)
    if outfit == "suit":
        return (shade(fig.cloth, 0.88) if fig.boy else fig.skin), (40, 32, 34)
    if outfit == "hoodie":
        return (jeans if fig.boy else fig.skin), (240, 240, 244)
    if outfit == "school uniform":
        return (shade(fig.cloth, 0.72) if fig.boy else fig.skin), BOOT
    if outfit == "robe":
        return shade(fig.cloth, 0.7), BOOT
    return (shade(fig.cloth, 0.6) if fig.boy else fig.skin), BOOT


def draw_torso(fig: Figure) -> None:
    """Neck, trunk, and the clothes that cover it."""
    pen, w = fig.pen, fig.width
    pen.line([(0, 24), (0, 28)], 4.4, fig.skin, shade(fig.skin, 0.55))
    trunk = [
        (-5.8 * w, 28.2),
        (-3.6 * w, 26.6),
        (3.6 * w, 26.6),
        (5.8 * w, 28.2),
        (4.9 * w, 36),
        (5.4 * w, 43),
    ]
    trunk += [(-5.4 * w, 43), (-4.9 * w, 36)]
    pen.polygon(trunk, fig.cloth, fig.ink)
    {
        "dress": _dress,
        "armor": _armor,
        "robe": _robe,
        "suit": _suit,
        "hoodie": _hoodie,
        "school uniform": _uniform,
    }[fig.scene.character.outfit](fig)


def _centre(fig: Figure) -> float:
    """Where the middle of the chest is on the picture."""
    return {"three-quarter view": 2.2, "side view": 4.0}.get(fig.scene.view, 0.0)


def _skirt(fig: Figure, top: float, bottom: float, spread: float, pleats: bool) -> None:
    w, pen = fig.width, fig.pen
    if fig.scene.pose in ("kneeling", "sitting casually"):
        bottom = min(bottom, 49)
        spread *= 1.15
    wave = [
        (spread * w * share, bottom + (0.9 if index % 2 else 0))
        for index, share in enumerate((1, 0.5, 0, -0.5, -1))
    ]
    pen.polygon([(-5 * w, top), (5 * w, top), *wave], fig.cloth, fig.ink)
    if pleats:
        for share in (-0.55, 0, 0.55):
            pen.line(
                [(share * 5 * w, top + 2), (share * spread * w, bottom - 0.6)], 0.7, shade(fig.cloth, 0.62)
            )


def _dress(fig: Figure) -> None:
    w, pen, middle = fig.width, fig.pen, _centre(fig)
    _skirt(fig, 36, 46 if fig.boy else 50.5, 9.5 if fig.boy else 11.5, False)
    trim = (255, 255, 255) if fig.scene.character.outfit_color != "white" else (240, 170, 196)
    low, wide = (46, 9.5) if fig.boy else (50.5, 11.5)
    if fig.scene.pose not in ("kneeling", "sitting casually"):
        for share in (-0.8, -0.4, 0, 0.4, 0.8):
            pen.ellipse(share * wide * w, low, 2.1, 1.2, trim)
    pen.polygon([(-5 * w, 35), (5 * w, 35), (5.2 * w, 37.6), (-5.2 * w, 37.6)], trim)
    if fig.scene.view == "back view":
        for side in (-1, 1):
            pen.ellipse(side * 3.2, 37.5, 2.9, 2.2, trim, fig.ink)
    else:
        pen.polygon([(middle - 3.4 * w, 26.2), (middle + 3.4 * w, 26.2), (middle, 31)], fig.skin)
        pen.line([(middle - 3.6 * w, 26.6), (middle, 31.2), (middle + 3.6 * w, 26.6)], 1.2, trim)


def _armor(fig: Figure) -> None:
    w, pen, middle = fig.width, fig.pen, _centre(fig)
    for side in (-1, 0, 1):
        x = side * 4.6 * w
        pen.polygon(
            [(x - 2.8 * w, 39), (x + 2.8 * w, 39), (x + 2.2 * w, 46), (x, 47.4), (x - 2.2 * w, 46)],
            fig.cloth,
            fig.ink,
        )
    pen.polygon([(-5.2 * w, 36.6), (5.2 * w, 36.6), (5.4 * w, 39.4), (-5.4 * w, 39.4)], SILVER, fig.ink)
    pen.polygon([(-3.8 * w, 25.8), (3.8 * w, 25.8), (3 * w, 28.6), (-3 * w, 28.6)], SILVER, (84, 90, 108))
    if fig.scene.view != "back view":
        pen.line([(middle, 29.5), (middle, 36)], 1.3, SILVER)
        pen.ellipse(middle, 32, 1.9, 1.9, GOLD, fig.ink)


def _robe(fig: Figure) -> None:
    w, pen, middle = fig.width, fig.pen, _centre(fig)
    low = {"kneeling": 49.5, "sitting casually": 51}.get(fig.scene.pose, 55.5)
    pen.polygon(
        [(-5 * w, 34), (5 * w, 34), (9.6 * w, low), (4, low + 1), (-4, low + 1), (-9.6 * w, low)],
        fig.cloth,
        fig.ink,
    )
    trim = GOLD if fig.scene.character.outfit_color != "yellow" else (150, 84, 30)
    pen.line([(-9 * w, low - 0.6), (9 * w, low - 0.6)], 1.6, trim)
    if fig.scene.view == "back view":
        pen.polygon([(-6 * w, 26.5), (6 * w, 26.5), (0, 36)], shade(fig.cloth, 0.75), trim)
    else:
        pen.polygon([(middle - 3.4 * w, 26), (middle + 3.4 * w, 26), (middle, 32.5)], (250, 246, 236))
        pen.line([(middle - 4 * w, 26.6), (middle + 0.6, 34), (middle + 0.6, low)], 1.7, trim)
        pen.line([(middle + 4 * w, 26.6), (middle - 0.4, 33)], 1.7, trim)
    sash = shade(fig.cloth, 0.55) if fig.scene.character.outfit_color != "black" else (110, 110, 130)
    pen.polygon([(-5 * w, 36), (5 * w, 36), (5.3 * w, 39.4), (-5.3 * w, 39.4)], sash)


def _suit(fig: Figure) -> None:
    w, pen, middle = fig.width, fig.pen, _centre(fig)
    if not fig.boy:
        _skirt(fig, 40, 48.5, 6.2, False)
    pen.polygon([(-5 * w, 35), (5 * w, 35), (6.4 * w, 43.5), (-6.4 * w, 43.5)], fig.cloth, fig.ink)
    if fig.scene.view == "back view":
        pen.line([(0, 37), (0, 44)], 0.9, fig.ink)
        pen.line([(-3.6 * w, 26.8), (3.6 * w, 26.8)], 1.6, (252, 252, 255))
        return
    pen.polygon([(middle - 3.8 * w, 26), (middle + 3.8 * w, 26), (middle, 37)], (252, 252, 255))
    tie = (204, 30, 50) if fig.scene.character.outfit_color not in ("red", "pink") else (34, 40, 84)
    pen.polygon(
        [(middle - 1.3, 27), (middle + 1.3, 27), (middle + 1.5, 33), (middle, 35.4), (middle - 1.5, 33)], tie
    )
    lapel = shade(fig.cloth, 0.6) if fig.scene.character.outfit_color != "black" else (92, 92, 108)
    for side in (-1, 1):
        pen.polygon(
            [(middle + side * 3.4 * w, 25.8), (middle + side * 5.4 * w, 29.5), (middle + side * 0.3, 37.5)],
            lapel,
        )
    pen.line([(middle, 37), (middle, 43.5)], 0.8, fig.ink)


def _hoodie(fig: Figure) -> None:
    w, pen, middle = fig.width, fig.pen, _centre(fig)
    pen.polygon(
        [(-6 * w, 34), (6 * w, 34), (7 * w, 43), (6 * w, 46), (-6 * w, 46), (-7 * w, 43)], fig.cloth, fig.ink
    )
    pen.line([(-5.6 * w, 45.2), (5.6 * w, 45.2)], 2, shade(fig.cloth, 0.7))
    if fig.scene.view == "back view":
        pen.ellipse(0, 30.6, 6.6 * w, 5, shade(fig.cloth, 0.82), fig.ink)
        return
    pen.ellipse(middle * 0.4, 28, 8.2 * w, 3.4, shade(fig.cloth, 0.78), fig.ink)
    pen.ellipse(middle * 0.7, 27, 5 * w, 2.2, shade(fig.cloth, 0.5))
    cord = (255, 255, 255) if fig.scene.character.outfit_color != "white" else (90, 100, 130)
    for side in (-1, 1):
        pen.line([(middle + side * 2, 30.4), (middle + side * 2.2, 35.4)], 1.2, cord)
    pen.polygon(
        [(middle - 3 * w, 38.5), (middle + 3 * w, 38.5), (middle + 4.4 * w, 43.4), (middle - 4.4 * w, 43.4)],
        shade(fig.cloth, 0.8),
        fig.ink,
    )


def _uniform(fig: Figure) -> None:
    w, pen, middle = fig.width, fig.pen, _centre(fig)
    if not fig.boy:
        _skirt(fig, 38, 47.5, 9.4, True)
    collar = (255, 255, 255) if fig.scene.character.outfit_color != "white" else (44, 62, 130)
    edge = fig.ink if fig.scene.character.outfit_color != "white" else (240, 240, 250)
    if fig.scene.view == "back view":
        pen.polygon([(-6 * w, 26.4), (6 * w, 26.4), (6 * w, 34), (-6 * w, 34)], collar, fig.ink)
        pen.line([(-4.4 * w, 32.4), (4.4 * w, 32.4)], 0.9, edge)
        return
    for side in (-1, 1):
        pen.polygon(
            [
                (middle + side * 2.2, 25.8),
                (middle + side * 6.4 * w, 28.4),
                (middle + side * 5.8 * w, 31.6),
                (middle, 34),
            ],
            collar,
            fig.ink,
        )
    ribbon = (226, 40, 60) if fig.scene.character.outfit_color not in ("red", "pink") else (40, 70, 190)
    for side in (-1, 1):
        pen.polygon(
            [(middle, 33.4), (middle + side * 4, 31.6), (middle + side * 3.6, 36.8)],
            ribbon,
            shade(ribbon, 0.45),
        )
    pen.ellipse(middle, 33.8, 1.2, 1.2, ribbon)


def draw_arms(fig: Figure, front: bool) -> None:
    """The arms in front of the trunk, or those behind it."""
    scene = fig.scene
    yaw = YAW[scene.view]
    if scene.view == "side view" and scene.pose in RAISED_ARMS:
        yaw = 0.0
    half = {"side view": 1.0}.get(scene.view, 5.4 * fig.width)
    for depth, points in limbs(POSES[scene.pose].arms, (half, 29.4, 0), yaw):
        raised = points[-1][1] < 26
        near = depth > (0.5 if scene.view != "side view" else -1) and not raised
        if scene.view == "back view":
            near = near or scene.pose in ("standing confidently", "hands on hips")
        if near == front:
            _arm(fig, points)


def _arm(fig: Figure, points: Points) -> None:
    outfit, pen = fig.scene.character.outfit, fig.pen
    shoulder, elbow, hand = points
    hand = (hand[0] + fig.swing, hand[1] - abs(fig.swing) * 0.5)
    fist = 2.9 if fig.scene.pose == "fighting stance" else 2.3
    skin_ink = shade(fig.skin, 0.5)
    if outfit in ("dress", "school uniform"):
        pen.line([shoulder, elbow, hand], 3.4, fig.skin, skin_ink)
        pen.ellipse(*hand, fist, fist, fig.skin, skin_ink)
        if outfit == "dress":
            pen.ellipse(shoulder[0], shoulder[1] + 0.6, 3.6, 3.2, fig.cloth, fig.ink)
        else:
            pen.line([shoulder, _between(shoulder, elbow, 0.75)], 4.2, fig.cloth, fig.ink)
            pen.ellipse(*_between(shoulder, elbow, 0.95), 1.9, 1.9, (252, 252, 255))
        return
    width = {"robe": 5.0, "hoodie": 5.0}.get(outfit, 4.0)
    wrist = _between(elbow, hand, 0.82)
    pen.ellipse(*hand, fist, fist, fig.skin, skin_ink)
    pen.line([shoulder, elbow, wrist], width, fig.cloth, fig.ink)
    if outfit == "robe":
        pen.ellipse(*wrist, 3.7, 3.7, fig.cloth, fig.ink)
        pen.ellipse(*_between(elbow, hand, 0.95), 2.4, 2.4, fig.skin, GOLD)
    elif outfit == "suit":
        pen.ellipse(*_between(elbow, hand, 0.85), 1.8, 1.8, (252, 252, 255))
        pen.ellipse(*hand, fist * 0.9, fist * 0.9, fig.skin)
    elif outfit == "hoodie":
        pen.ellipse(*wrist, 2.4, 2.4, shade(fig.cloth, 0.7))
        pen.ellipse(*hand, fist * 0.9, fist * 0.9, fig.skin)
    else:
        pen.line([_between(elbow, hand, 0.25), _between(elbow, hand, 0.8)], 4.4, SILVER, (84, 90, 108))
        pen.ellipse(*hand, fist * 0.9, fist * 0.9, shade(SILVER, 0.8), (84, 90, 108))
        pen.ellipse(shoulder[0], shoulder[1], 4.3, 3.7, fig.cloth, fig.ink)
        pen.arc(shoulder[0], shoulder[1], 3.4, 2.8, 190, 350, 1.0, SILVER)
