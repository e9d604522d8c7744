"""Hair of the miniature people: nine styles that differ from the front, from the side and from behind."""

from mini_world.face import Head, draw_features
from mini_world.pen import Points, curve, shade

BANGS: dict[str, Points] = {
    "short hair": [
        (13, 17.5),
        (11, 13),
        (7, 12),
        (2, 9),
        (-2, 12.5),
        (-5, 10),
        (-9, 13.5),
        (-11, 12),
        (-13, 17.5),
    ],
    "long hair": [
        (13.4, 27),
        (10.6, 27),
        (10.6, 15),
        (5, 11),
        (0.5, 4.5),
        (-5, 11),
        (-10.6, 15),
        (-10.6, 27),
        (-13.4, 27),
    ],
    "ponytail": [
        (13, 18),
        (11, 12),
        (7, 7),
        (3, 12.5),
        (1, 7.5),
        (-3, 12.5),
        (-5, 7.5),
        (-11, 13),
        (-13, 18),
    ],
    "twintails": [
        (13, 15),
        (11, 12),
        (8, 9),
        (6, 12),
        (3.5, 9),
        (0, 12.4),
        (-3.5, 9),
        (-6, 12),
        (-8, 9),
        (-11, 12),
        (-13, 15),
    ],
    "bob cut": [(14.6, 26), (9.6, 26), (10, 12), (-10, 12), (-9.6, 26), (-14.6, 26)],
    "spiky hair": [
        (13, 16),
        (10, 10),
        (8, 13.5),
        (5, 8.5),
        (2, 13.5),
        (-1, 8.5),
        (-4, 13.5),
        (-7, 8.5),
        (-10, 13),
        (-13, 16),
    ],
    "hair bun": [(13, 16), (10.8, 12), (6, 7.5), (0, 5.6), (-6, 7.5), (-10.8, 12), (-13, 16)],
    "braid": [(13, 20), (11, 14), (8, 12.5), (0, 8), (-6, 4.5), (-8, 10), (-11, 13), (-13, 20)],
    "curly hair": [(13, 16), (11, 12), (-11, 12), (-13, 16)],
}


def _lock(h: Head, points: Points, width: float) -> None:
    """A tail of hair: a thick stroke ending in a point."""
    h.pen.line(points[:-1], width, h.hair, h.ink)
    (ax, ay), (bx, by) = points[-2], points[-1]
    half = width / 2
    h.pen.polygon([(ax - half, ay), (ax + half, ay), (bx, by)], h.hair, h.ink)
    h.pen.line(points[:-1], width - 0.4, h.hair)


def _tie(h: Head, x: float, y: float) -> None:
    h.pen.ellipse(x, y, 1.9, 1.9, (255, 250, 240), h.ink)


def _chain(h: Head, points: Points) -> None:
    for x, y in points:
        h.pen.ellipse(x, y, 3.1, 2.6, h.hair, h.ink)
    x, y = points[-1]
    _tie(h, x, y + 2.8)
    h.pen.polygon([(x - 1.8, y + 4.4), (x + 1.8, y + 4.4), (x, y + 8)], h.hair, h.ink)


def _curls(h: Head, points: Points, radius: float) -> None:
    for x, y in points:
        h.pen.ellipse(x, y, radius, radius, h.hair, h.ink)


def _spikes(h: Head, turn: float) -> None:
    outline: Points = []
    for index, angle in enumerate(range(140, 401, 20)):
        radius = 11.5 if index % 2 else 20.5
        outline += curve(turn, 13.5, radius, radius, angle, angle, 2)[:1]
    h.pen.polygon([*outline, (turn + 9, 22), (turn - 9, 22)], h.hair, h.ink)


def draw_back_hair(h: Head) -> None:
    """Hair that hangs behind the body in every view but the one from behind."""
    pen, s, turn = h.pen, h.sway, {"front": 0.0, "three-quarter": -2.0, "side": -3.5}.get(h.view, 0.0)
    side = h.view == "side"
    if h.style == "long hair":
        low = [
            (16 + s, 43),
            (12 + s, 45.5),
            (6 + s, 43),
            (s, 45),
            (-6 + s, 43),
            (-12 + s, 45.5),
            (-16 + s, 43),
        ]
        if side:
            low = [(1 + s, 42), (-5 + s, 44), (-10 + s, 42), (-15.5 + s, 44)]
        pen.polygon([*curve(turn, 14, 13.6, 13.6, 180, 360), *low], h.hair, h.ink)
    elif h.style == "bob cut":
        pen.polygon(
            [*curve(turn, 14, 14.4, 13.6, 180, 360), (turn + 14.6, 26), (turn - 14.6, 26)], h.hair, h.ink
        )
    elif h.style == "spiky hair":
        _spikes(h, turn * 0.5)
    elif h.style == "curly hair":
        pen.ellipse(turn, 14, 14, 14, h.hair, h.ink)
        _curls(h, curve(turn, 15, 13.5, 13, 130, 410, 11), 4.6)
        _curls(h, [(turn - 12, 26), (turn + 12 - 8 * side, 26)], 4.4)
        pen.ellipse(turn, 14, 13.6, 13.6, h.hair)
    elif h.style == "ponytail":
        if side:
            _lock(h, [(-10, 5), (-17, 9 + s), (-18.5 + s, 22), (-15 + s, 36)], 6.4)
        else:
            sign = -1 if h.view == "three-quarter" else 1
            _lock(h, [(sign * 8, 4), (sign * 16, 6 + s), (sign * 18, 18), (sign * 14.5 + s, 33)], 6)
    elif h.style == "twintails":
        for sign in (-1, 1):
            x = sign * 15.5 if not side else -3 + sign * 9.0
            _lock(h, [(x * 0.75, 8), (x, 11), (x * 1.18 + s, 24), (x * 1.05 + s, 40)], 5.6)
    elif h.style == "braid":
        pen.ellipse(turn, 14.5, 13, 12.6, h.hair, h.ink)
    elif h.style == "hair bun":
        _bun(h)


def _bun(h: Head) -> None:
    x, y = {"front": (8.5, -0.6), "three-quarter": (-8, -0.6), "side": (-11, 1.5)}.get(h.view, (-8.5, -0.6))
    h.pen.ellipse(x, y, 6.2, 5.8, h.hair, h.ink)
    h.pen.arc(x, y, 3.6, 3.2, 120, 400, 0.9, h.ink)


def draw_face_and_hair(h: Head) -> None:
    """Face with its expression, and the hair in front of it; or the back of the head."""
    if h.view == "back":
        _back_of_head(h)
        return
    turn = {"three-quarter": 2.6, "side": 4.5}.get(h.view, 0.0)
    _cap(h, 13.2)
    if h.view != "side":
        for x in (-11.6, 11.6) if h.view == "front" else (-10.5,):
            h.pen.ellipse(x, 18, 2, 2.6, h.skin, shade(h.skin, 0.5))
    rx = 11.2 if h.view != "side" else 10.2
    face_x = {"three-quarter": 1.2, "side": 2.0}.get(h.view, 0.0)
    h.pen.ellipse(face_x, 15.8, rx, 10, h.skin, shade(h.skin, 0.5))
    if h.view == "side":
        h.pen.ellipse(12.3, 19.4, 1.2, 1.1, h.skin, shade(h.skin, 0.5))
        h.pen.ellipse(10.8, 19.2, 1.8, 2, h.skin)
    _front_hair(h, turn)
    draw_features(h)


def _cap(h: Head, radius: float) -> None:
    x = {"three-quarter": -0.8, "side": -1.6}.get(h.view, 0.0)
    h.pen.ellipse(x, 13.4, radius, radius - 0.3, h.hair, h.ink)


def _front_hair(h: Head, turn: float) -> None:
    pen = h.pen
    bangs = BANGS[h.style]
    if h.view == "side":
        low = {"long hair": 27, "bob cut": 26, "braid": 22}.get(h.style, 19.5)
        edge: Points = [
            (11, 11),
            (9, 7.5 if h.style in ("hair bun", "long hair") else 11.5),
            (5, 9),
            (3, 12),
            (2, low - 2),
            (0, low),
        ]
        if h.style == "bob cut":
            edge = [(12.4, 12), (4.4, 12), (4, low), (-4, low)]
        if h.style == "spiky hair":
            edge = [(13, 13), (9, 9.5), (8, 14), (5, 9.5), (3, 15), (1, 11), (-1, 19)]
        points = [*curve(-1.2, 13.6, 13.4, 13.4, 130, 345), *edge, (-6, low + 1)]
        pen.polygon(points, h.hair, h.ink)
    else:
        scale = 0.88 if turn else 1.0
        low = bangs[-1][1]
        start = 180 if low < 18 else 168
        left = [(x * scale + turn * (1 - abs(x) / 26), y) for x, y in bangs]
        if turn:
            left[-1] = (-13, bangs[-1][1])
            left[0] = (12.6, bangs[0][1])
        pen.polygon([*curve(0, 14, 13.4, 13.6, start, 540 - start), *left], h.hair, h.ink)
    if h.style == "curly hair":
        x = turn * 0.6
        spots = (
            [(-9, 9.4), (-4.8, 8), (0, 9), (4.8, 8), (9, 9.4)]
            if h.view != "side"
            else [(8, 8), (3, 9), (-1.5, 13), (-4, 19)]
        )
        _curls(h, [(px + (x if h.view != "side" else 0), py) for px, py in spots], 3.6)
        pen.ellipse(x * 0.3 - (2 if h.view == "side" else 0), 6.2, 9, 4.6, h.hair)
        _curl_marks(h, -4 if h.view == "side" else 0, 3.5)
    else:
        shine = shade(h.hair, 1.42) if h.scene.character.hair_color != "white" else (205, 216, 240)
        pen.arc(turn - 1, 13, 9.4, 9.2, 215, 275, 1.5, shine)
    if h.style == "braid":
        _chain(h, [(x + h.sway, y) for x, y in _braid_spots(h.view)])
    if h.style == "twintails" and h.view == "side":
        _lock(h, [(-4, 8), (-8, 13), (-9 + h.sway, 26), (-7 + h.sway, 40)], 5.8)
        _tie(h, -4.5, 8.5)
    elif h.style == "twintails":
        for sign in (-1, 1):
            _tie(h, sign * 12.6, 8.5)
    elif h.style == "ponytail":
        _tie(h, *{"front": (9.5, 3.6), "three-quarter": (-9.5, 3.6)}.get(h.view, (-11.5, 5.6)))


def _braid_spots(view: str) -> Points:
    if view == "side":
        return [(-8, 25), (-8.6, 29.4), (-8.6, 33.8), (-8, 38)]
    x = -11 if view == "three-quarter" else 11
    return [(x, 22.5), (x, 27), (x * 0.94, 31.4), (x * 0.85, 35.8)]


def _curl_marks(h: Head, x: float, y: float) -> None:
    for dx, dy in ((-7, 2), (0, 0), (7, 2)):
        h.pen.arc(x + dx, y + dy, 2.2, 2.2, 20, 290, 0.9, h.ink)


def _back_of_head(h: Head) -> None:
    pen, s, style = h.pen, h.sway, h.style
    for x in (-12, 12):
        pen.ellipse(x, 18, 2, 2.6, h.skin, shade(h.skin, 0.5))
    if style == "spiky hair":
        _spikes(h, 0)
    if style == "hair bun":
        _bun(h)
    _back_cover(h)
    if style == "ponytail":
        _lock(h, [(0, 6), (0.5 * s, 14), (s, 28), (1.5 * s, 40)], 9)
        _tie(h, 0, 5)
    elif style == "twintails":
        pen.line([(0, 1), (0, 21)], 0.8, h.ink)
        for sign in (-1, 1):
            root = sign * 15.5
            _lock(h, [(root * 0.75, 8), (root, 11), (root * 1.18 + s, 24), (root * 1.05 + s, 40)], 5.6)
            _tie(h, sign * 12.6, 8.5)
    elif style == "braid":
        _chain(h, [(s * 0.3, 20), (s * 0.5, 25), (s * 0.7, 30), (s, 35)])
    if style != "curly hair":
        shine = shade(h.hair, 1.42) if h.scene.character.hair_color != "white" else (205, 216, 240)
        pen.arc(0, 12, 9.6, 8.6, 205, 265, 1.5, shine)


def _back_cover(h: Head) -> None:
    """The hair that covers the back of the head."""
    pen, s, style = h.pen, h.sway, h.style
    if style == "long hair":
        low = [(15 + s, 45), (7.5 + s, 43.5), (s, 46), (-7.5 + s, 43.5), (-15 + s, 45)]
        pen.polygon([*curve(0, 14, 13.6, 13.6, 180, 360), *low], h.hair, h.ink)
        for x in (-6, 0, 6):
            pen.line([(x, 20), (x + s, 40)], 0.8, h.ink)
    elif style == "bob cut":
        pen.polygon([*curve(0, 14, 14.4, 13.6, 180, 360), (14.8, 26.5), (-14.8, 26.5)], h.hair, h.ink)
    elif style == "curly hair":
        _curls(h, [*curve(0, 15, 13.5, 13, 130, 410, 11), (-8, 26), (0, 27.5), (8, 26)], 4.6)
        pen.ellipse(0, 14.5, 13.6, 13.4, h.hair)
        for y in (4.0, 11.0, 18.0, 24.0):
            _curl_marks(h, 0 if y == 11.0 else 2, y)
    else:
        nape = {"short hair": 23.5, "spiky hair": 24}.get(style, 22.5)
        notch = [
            (11, nape - 3),
            (7, nape),
            (4, nape - 1.2),
            (0, nape + 1.4),
            (-4, nape - 1.2),
            (-7, nape),
            (-11, nape - 3),
        ]
        pen.polygon([*curve(0, 13.6, 13.3, 13.2, 165, 375), *notch], h.hair, h.ink)
