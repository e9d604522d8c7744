"""What the miniature people wear on head, face or neck, drawn so that it shows in every view."""

from mini_world.body import GOLD
from mini_world.face import Head, eye_spots
from mini_world.pen import Color, shade


def draw_accessory(h: Head) -> None:
    """What the person wears on head, face or neck, above everything else."""
    _ACCESSORIES[h.scene.character.accessory](h)


def _glasses(h: Head) -> None:
    if h.view == "back":
        return
    frame: Color = (24, 22, 30)
    spots = eye_spots(h.view)
    for x, y, narrow in spots:
        h.pen.arc(x, y + 0.3, 5.1 * narrow, 5.3, 0, 360, 1.15, frame)
    if len(spots) == 2:
        h.pen.line(
            [(spots[0][0] + 4.4 * spots[0][2], 16.4), (spots[1][0] - 4.4 * spots[1][2], 16.4)], 1.2, frame
        )
        h.pen.line([(spots[0][0] - 4.6, 16), (-11.5, 15)], 1.1, frame)
        if h.view == "front":
            h.pen.line([(10.2, 16), (11.5, 15)], 1.1, frame)
    else:
        h.pen.line([(3, 16.2), (-3, 15.4)], 1.2, frame)


def _hat(h: Head) -> None:
    cloth, ink, band = (62, 52, 110), (20, 16, 44), GOLD
    lean = {"side": -2.5, "three-quarter": -1.0}.get(h.view, 0.0)
    h.pen.ellipse(lean * 0.3, 5.2, 17.4, 3.5, cloth, ink)
    h.pen.polygon(
        [(-9.4, 4.6), (-5.5, -4), (2 + lean, -9), (7 + lean, -6.5), (4.5, -3.5), (9.4, 4.6)], cloth, ink
    )
    h.pen.polygon([(-9.4, 3.4), (-8, 0.2), (8, 0.2), (9.4, 3.4), (0, 5)], band, ink)


def _crown(h: Head) -> None:
    x = {"three-quarter": 0.6, "side": -1.0}.get(h.view, 0.0)
    points = [(-8, 4.6), (-9.4, -5), (-4.6, -1), (0, -6.6), (4.6, -1), (9.4, -5), (8, 4.6), (0, 6)]
    h.pen.polygon([(x + px, py) for px, py in points], GOLD, (128, 76, 10))
    for px, colour in ((-4.8, (60, 130, 250)), (0, (226, 30, 60)), (4.8, (60, 130, 250))):
        h.pen.ellipse(x + px, 2.2, 1.4, 1.5, colour)


def _scarf(h: Head) -> None:
    cloth, ink, stripe = (30, 186, 190), (8, 78, 88), (240, 250, 250)
    h.pen.line([(-7.5, 27), (0, 28.4), (7.5, 27)], 5, cloth, ink)
    for x in (-5.5, 0, 5.5):
        h.pen.line([(x, 25.6), (x, 29)], 1.5, stripe)
    x = {"side": -6.5, "three-quarter": -4.5, "back": -4.0}.get(h.view, 5.0)
    h.pen.polygon([(x - 2.6, 29), (x + 2.6, 29), (x + 3 + h.sway, 40), (x - 2.6 + h.sway, 40)], cloth, ink)
    h.pen.line([(x - 1.5 + h.sway, 37), (x + 1.8 + h.sway, 37)], 1.5, stripe)


def _bow(h: Head) -> None:
    cloth, ink = (236, 30, 74), (96, 4, 30)
    x = {"three-quarter": -3.0, "side": -6.0}.get(h.view, 0.0)
    for side in (-1, 1):
        h.pen.polygon([(x, 1.5), (x + side * 10.5, -5), (x + side * 10, 6.4)], cloth, ink)
        h.pen.line([(x + side * 3, 1.2), (x + side * 7, 0.4)], 1, shade(cloth, 1.5))
    h.pen.ellipse(x, 1.4, 2.6, 2.8, shade(cloth, 0.8), ink)


def _headphones(h: Head) -> None:
    band, cup, ink = (235, 238, 244), (0, 208, 220), (30, 34, 46)
    h.pen.arc(0 if h.view != "side" else -1, 14.5, 15.3, 16, 184, 356, 3.6, ink)
    h.pen.arc(0 if h.view != "side" else -1, 14.5, 14.6, 15.3, 184, 356, 2.1, band)
    if h.view == "side":
        h.pen.ellipse(-3.6, 17, 4.8, 5.4, band, ink)
        h.pen.ellipse(-3.6, 17, 3.6, 4.2, cup)
        return
    for x in (-13.4, 13.4):
        h.pen.ellipse(x, 17, 3.0, 5.2, cup, ink)


def _horns(h: Head) -> None:
    bone, ink = (250, 236, 200), (90, 60, 40)
    bases = {"side": (-4.0, 3.0), "three-quarter": (-8.0, 7.0)}.get(h.view, (-8.5, 8.5))
    sides = (-1, -1) if h.view == "side" else (-1, 1)
    for side, x in zip(sides, bases, strict=True):
        outer = [(x + side * 3.6, 5), (x + side * 7.4, 1), (x + side * 8.4, -3.4), (x + side * 6, -8.6)]
        inner = [(x + side * 4.2, -3), (x + side * 1.6, -0.6), (x - side * 3.6, 2.6)]
        h.pen.polygon([*outer, *inner], bone, ink)
        h.pen.line([(x + side * 1.4, 0.6), (x + side * 5, 2.8)], 1.1, (196, 140, 84))
        h.pen.line([(x + side * 4.6, -2.2), (x + side * 7.6, -1.2)], 1.1, (196, 140, 84))


def _cat_ears(h: Head) -> None:
    bases = {"side": (-6.0, 3.0), "three-quarter": (-8.6, 7.4)}.get(h.view, (-8.8, 8.8))
    for side, x in zip((-1, 1), bases, strict=True):
        h.pen.polygon(
            [(x - 5, 5.6 if side < 0 else 2.4), (x + side * 2.6, -8.2), (x + 5, 2.4 if side < 0 else 5.6)],
            h.hair,
            h.ink,
        )
        if h.view != "back":
            h.pen.polygon([(x - 2.5, 2.6), (x + side * 2, -4.6), (x + 2.5, 2.6)], (255, 150, 176))


_ACCESSORIES = {
    "glasses": _glasses,
    "hat": _hat,
    "crown": _crown,
    "scarf": _scarf,
    "hair bow": _bow,
    "headphones": _headphones,
    "horns": _horns,
    "cat ears": _cat_ears,
}
