"""Draws a scene as a picture of 64 by 64 pixels; the same scene and seed always give the same bytes.

The figure is drawn at four times the size on a transparent canvas and then set before its background under
the scene's light. Light works mostly on the surroundings and the figure's rim, so that colours stay
recognisable.
"""

import random

import numpy as np
import numpy.typing as npt

from mini_world.accessories import draw_accessory
from mini_world.backdrop import draw_backdrop
from mini_world.body import DROP, POSES, YAW, draw_arms, draw_legs, draw_torso, figure
from mini_world.face import Head, eye_spots, head, mouth_spot
from mini_world.hair import draw_back_hair, draw_face_and_hair
from mini_world.pen import SIZE, SUPERSAMPLING, Pen
from mini_world.scene import Scene

Array = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

SCALES = {"full body shot": 0.92, "cowboy shot": 1.1, "upper body shot": 1.32, "close-up portrait": 1.64}
TOPS = {"full body shot": 8.6, "cowboy shot": 9.5, "upper body shot": 10.5, "close-up portrait": 11.5}
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
_BEAM = np.clip(1 - np.abs(_COLUMNS - (8 + _ROWS * 0.62)) / (7 + _ROWS * 0.36), 0, 1)[..., None]
_SUN = np.clip(1 - np.hypot(_COLUMNS - 6, _ROWS - 8) / 34, 0, 1)[..., None]
_SIDE = np.clip((_COLUMNS - 26) / 26, 0, 1)[..., None]


def render(scene: Scene, seed: int) -> Picture:
    """The picture as bytes of shape (64, 64, 3)."""
    picture, _ = _draw(scene, seed)
    return picture


def render_with_weight(scene: Scene, seed: int) -> tuple[Picture, Array]:
    """The picture and how much each pixel matters: more than one on eyes, mouth and accessory."""
    picture, pen = _draw(scene, seed)
    weight = np.ones((SIZE, SIZE), dtype=np.float32)
    view = scene.view.split()[0]
    if view != "back":
        for x, y, _ in eye_spots(view):
            _raise_weight(weight, pen, (x, y, 4.4, 5.6), 4.0)
        x, y = mouth_spot(view)
        _raise_weight(weight, pen, (x, y + 0.6, 5.2, 3.6), 4.0)
    boxes = {
        "scarf": (0.0, 31.0, 9.0, 8.0),
        "glasses": (2.0, 16.8, 12.0, 5.0),
        "headphones": (0.0, 11.0, 16.0, 12.0),
    }
    x, y, rx, ry = boxes.get(scene.character.accessory, (0.0, -1.0, 14.0, 8.0))
    _raise_weight(weight, pen, (x, y, rx, ry), 2.0)
    return picture, weight


def _raise_weight(weight: Array, pen: Pen, box: tuple[float, float, float, float], value: float) -> None:
    x, y, rx, ry = box
    left, top = pen.place(x - rx, y - ry)
    right, bottom = pen.place(x + rx, y + ry)
    rows = slice(max(0, int(top / SUPERSAMPLING)), max(0, round(bottom / SUPERSAMPLING)))
    columns = slice(max(0, int(left / SUPERSAMPLING)), max(0, round(right / SUPERSAMPLING)))
    weight[rows, columns] = np.maximum(weight[rows, columns], value)


def _draw(scene: Scene, seed: int) -> tuple[Picture, Pen]:
    source = random.Random(seed)
    jitter = [source.random() * 2 - 1 for _ in range(7)]
    scale = SCALES[scene.framing] * (1 + 0.025 * jitter[0])
    pen = Pen(scale, SIZE / 2 + 1.3 * jitter[1], TOPS[scene.framing] + 0.8 * jitter[2])
    drop = DROP.get(scene.pose, 0.0) if scene.framing == "full body shot" else 0.0
    pen.y += drop * pen.scale
    backdrop = draw_backdrop(scene.background, source)
    if scene.framing == "full body shot":
        _shadow(backdrop, pen, drop)
    _draw_figure(pen, scene, jitter)
    layer = np.asarray(pen.canvas.reduce(SUPERSAMPLING), dtype=np.float32)
    cover = layer[..., 3:] * (1 / 255)
    lit = _light(scene.lighting, layer[..., :3], cover, backdrop)
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8), pen


def _shadow(backdrop: Array, pen: Pen, drop: float) -> None:
    x, y = pen.place(0, 57.6 - drop)
    distance = ((_COLUMNS - x / SUPERSAMPLING) / 13) ** 2 + ((_ROWS - y / SUPERSAMPLING) / 2.6) ** 2
    backdrop[distance < 1] *= 0.72


def _draw_figure(pen: Pen, scene: Scene, jitter: list[float]) -> None:
    body = figure(pen, scene, 0.7 * jitter[3], 0.05 * jitter[4])
    top: Head = head(pen, scene, 0.9 * jitter[5], 0.06 * jitter[6])
    lean = POSES[scene.pose].lean * (1.3 if YAW[scene.view] == 90 else 1.0)
    if scene.view == "back view":
        lean = -lean
    behind = scene.view == "back view"
    anchor = pen.x
    pen.x = anchor + lean * pen.scale
    if not behind:
        draw_back_hair(top)
    pen.x = anchor
    draw_arms(body, front=False)
    draw_legs(body)
    draw_torso(body)
    if behind:
        draw_arms(body, front=True)
    pen.x = anchor + lean * pen.scale
    if scene.character.accessory == "scarf" and not behind:
        draw_accessory(top)
    draw_face_and_hair(top)
    if scene.character.accessory != "scarf" or behind:
        draw_accessory(top)
    pen.x = anchor
    if not behind:
        draw_arms(body, front=True)


def _light(kind: str, layer: Array, cover: Array, backdrop: Array) -> Array:
    """Set the figure before its background under one of the four lights."""
    if kind == "dramatic lighting":
        backdrop = backdrop * (0.3 + 0.75 * _BEAM) * _tint(0.96, 0.98, 1.06)
        shaded: Array = layer * (1 - 0.42 * _SIDE)
        return backdrop * (1 - cover) + shaded
    if kind == "golden hour":
        backdrop = backdrop * _tint(1.0, 0.74, 0.46) + _SUN * _tint(120, 110, 50) + _tint(26, 4, 0)
        figure_light = layer * _tint(1.0, 0.96, 0.88) + _edge(cover) * _tint(120, 80, 0)
        return backdrop * (1 - cover) + figure_light
    if kind == "rim lighting":
        backdrop = backdrop * _tint(0.3, 0.33, 0.42)
        glow = _tint(150, 236, 255)
        halo = _halo(cover)
        out = backdrop * (1 - cover) + layer * 0.9
        return out + (glow - out) * halo
    return backdrop * (1 - cover) + layer


def _tint(red: float, green: float, blue: float) -> Array:
    return np.array((red, green, blue), dtype=np.float32)


def _edge(cover: Array) -> Array:
    """Where the figure ends towards the sun."""
    moved = np.zeros_like(cover)
    moved[:, 2:] = cover[:, :-2]
    return np.clip(cover - moved, 0, 1)


def _halo(cover: Array) -> Array:
    """A line of light just outside the figure."""
    grown = cover.copy()
    for near, far in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        np.maximum(grown[near], cover[far], out=grown[near])
        np.maximum(grown[far], cover[near], out=grown[far])
    return grown * (1 - cover)
