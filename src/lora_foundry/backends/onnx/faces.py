"""Real faces: YuNet finds them, SFace (or, for those who accept its licence, ArcFace) tells whose they are. A picture
without a face says nothing about identity, and gets a row of zeros."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from lora_foundry.backends.onnx.files import OnnxModel, unit
from lora_foundry.context import Context
from lora_foundry.files.download import Source
from lora_foundry.ports import Box, FloatArray

_SIDE = 640  # of the picture that YuNet's file was exported for
_STRIDES = (8, 16, 32)
_LEAST_SCORE, _MOST_OVERLAP = 0.7, 0.3
_CROP = 112
# Where eyes, nose and corners of the mouth lie in a 112 px crop: the places both recognisers were trained with.
_PLACES = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)


class Face(NamedTuple):
    """A face in the picture's own pixels: left, top, width, height; five points (x, y); a score from 0 to 1."""

    box: FloatArray
    points: FloatArray
    score: float


class YuNetDetector:
    """YuNet (2023mar, MIT), as OpenCV decodes it."""

    source = Source(
        "face_detection_yunet_2023mar.onnx",
        "MIT",
        "opencv/face_detection_yunet",
        "face_detection_yunet_2023mar.onnx",
    )
    sources = (source,)

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.instruments)

    def __init__(self, folder: Path | None = None) -> None:
        self._model = OnnxModel(self.source, folder)

    def find(self, images: Sequence[Image.Image]) -> list[list[Box]]:
        """See ports.Detector."""
        return [[Box(*map(float, face.box)) for face in self.faces(image)] for image in images]

    def faces(self, image: Image.Image) -> list[Face]:
        """Every face, the surest first."""
        picture = image.convert("RGB")
        scale = min(_SIDE / picture.width, _SIDE / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        sheet = Image.new("RGB", (_SIDE, _SIDE))
        sheet.paste(picture.resize(size, Image.Resampling.BILINEAR), (0, 0))
        bgr = np.asarray(sheet, np.float32)[:, :, ::-1].transpose(2, 0, 1)
        outputs = self._model.run(np.ascontiguousarray(bgr[None]))
        return [
            Face(face.box / scale, face.points / scale, face.score) for face in decode_faces(outputs, _SIDE)
        ]


def decode_faces(outputs: dict[str, FloatArray], side: int) -> list[Face]:
    """YuNet's twelve outputs as faces: on a grid of each stride, a class and an object score, a box around the cell
    and five points from it; the surest of overlapping ones are kept."""
    found: list[Face] = []
    for stride in _STRIDES:
        parts = (outputs[f"{name}_{stride}"] for name in ("cls", "obj", "bbox", "kps"))
        classes, objects, boxes, points = (np.asarray(part, np.float32)[0] for part in parts)
        columns = side // stride
        scores = np.sqrt(np.clip(classes[:, 0], 0, 1) * np.clip(objects[:, 0], 0, 1))
        for cell in np.flatnonzero(scores >= _LEAST_SCORE):
            corner = np.array([cell % columns, cell // columns], np.float32)
            middle = (corner + boxes[cell, :2]) * stride
            size = np.exp(boxes[cell, 2:4]) * stride
            places = (points[cell].reshape(5, 2) + corner) * stride
            found.append(Face(np.concatenate([middle - size / 2, size]), places, float(scores[cell])))
    kept: list[Face] = []
    for face in sorted(found, key=lambda face: -face.score):
        if all(_overlap(face.box, other.box) <= _MOST_OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(first: FloatArray, second: FloatArray) -> float:
    """Shared area over joined area of two boxes."""
    low = np.maximum(first[:2], second[:2])
    high = np.minimum(first[:2] + first[2:], second[:2] + second[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    joined = float(np.prod(first[2:]) + np.prod(second[2:])) - shared
    return shared / joined if joined > 0 else 0.0


def align(image: Image.Image, points: FloatArray) -> Image.Image:
    """The face turned, scaled and moved so that its points lie in their places, 112 px square (Umeyama 1991)."""
    mean_from, mean_to = points.mean(0), _PLACES.mean(0)
    here, there = points - mean_from, _PLACES - mean_to
    left, strengths, right = np.linalg.svd(there.T @ here / len(points))
    sign = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    turn = left @ np.diag(sign) @ right
    scale = float((strengths * sign).sum() / max(float((here**2).sum(1).mean()), 1e-9))
    back = np.linalg.inv(scale * turn)  # PIL asks where each pixel of the crop comes from
    shift = mean_from - back @ mean_to
    numbers = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    return image.convert("RGB").transform(
        (_CROP, _CROP), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR
    )


class SFaceEmbedder:
    """SFace (2021dec, Apache-2.0), 128 numbers of the surest face."""

    same = 0.363  # OpenCV's threshold for a pair; a picture is nearer to the mean of a set than to one of it
    width = 128
    source = Source(
        "face_recognition_sface_2021dec.onnx",
        "Apache-2.0",
        "opencv/face_recognition_sface",
        "face_recognition_sface_2021dec.onnx",
    )
    sources: tuple[Source, ...] = (YuNetDetector.source, source)

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.instruments)

    def __init__(self, folder: Path | None = None) -> None:
        self._detector = YuNetDetector(folder)
        self._model = OnnxModel(self.source, folder)

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """See ports.Embedder."""
        rows = np.zeros((len(images), self.width), np.float32)
        for place, image in enumerate(images):
            faces = self._detector.faces(image)
            if faces:
                crop = self._input(align(image, faces[0].points))
                rows[place] = unit(self._model.run_each([crop]).reshape(1, -1))[0]
        return rows

    def _input(self, crop: Image.Image) -> FloatArray:
        """RGB from 0 to 255, as OpenCV feeds it."""
        return np.ascontiguousarray(np.asarray(crop, np.float32).transpose(2, 0, 1))


class ArcFaceEmbedder(SFaceEmbedder):
    """ArcFace (w600k_r50), 512 numbers. Its weights are for non-commercial research only, so they are never fetched:
    whoever may use them puts the file into the instruments folder, and so says that they accept the licence."""

    same = 0.4
    width = 512
    source = Source("w600k_r50.onnx", "non-commercial research only; InsightFace's licence")
    sources = (YuNetDetector.source, source)

    def _input(self, crop: Image.Image) -> FloatArray:
        """RGB from -1 to 1."""
        values = (np.asarray(crop, np.float32) - 127.5) / 127.5
        return np.ascontiguousarray(values.transpose(2, 0, 1))
