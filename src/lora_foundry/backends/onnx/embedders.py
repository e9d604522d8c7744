"""Embedders for anything (DINOv2) and for anime (CCIP)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from lora_foundry.backends.onnx.files import OnnxModel, planes, unit
from lora_foundry.context import Context
from lora_foundry.files.download import Source
from lora_foundry.ports import FloatArray

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BATCH = 16


class DinoEmbedder:
    """DINOv2 ViT-B/14 (arXiv 2304.07193): the class token, 768 numbers. What it sees is the whole picture, so poses and
    backgrounds weigh too; `curate.min_likeness` is worth setting for a recipe of its own."""

    same = 0.6
    source = Source("dinov2-base.onnx", "Apache-2.0", "onnx-community/dinov2-base", "onnx/model.onnx")
    sources = (source,)

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.instruments)

    def __init__(self, folder: Path | None = None) -> None:
        self._model = OnnxModel(self.source, folder)

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """See ports.Embedder."""
        rows = [self._model.run_each(part)[:, 0] for part in _parts([_dino_input(each) for each in images])]
        return unit(np.concatenate(rows)) if rows else np.zeros((0, 768), np.float32)


def _dino_input(image: Image.Image) -> FloatArray:
    """Shorter side to 256, the middle 224 square, ImageNet's mean and spread."""
    picture = image.convert("RGB")
    scale = 256 / min(picture.size)
    size = max(256, round(picture.width * scale)), max(256, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    return planes(picture.crop((left, top, left + 224, top + 224)), *_IMAGENET)


class CcipEmbedder:
    """CCIP (caformer-24): anime characters, one a picture, 768 numbers. Its own distance is a learned one; the cosine
    stands in for it here."""

    same = 0.75
    source = Source(
        "ccip-caformer-24.onnx",
        "OpenRAIL",
        "deepghs/ccip_onnx",
        "ccip-caformer-24-randaug-pruned/model_feat.onnx",
    )
    sources = (source,)

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.instruments)

    def __init__(self, folder: Path | None = None) -> None:
        self._model = OnnxModel(self.source, folder)

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """See ports.Embedder."""
        rows = [self._model.run_each(part) for part in _parts([_ccip_input(each) for each in images])]
        return unit(np.concatenate(rows)) if rows else np.zeros((0, 768), np.float32)


def _ccip_input(image: Image.Image) -> FloatArray:
    """Stretched to 384 square, CLIP's mean and spread."""
    return planes(image.convert("RGB").resize((384, 384), Image.Resampling.BILINEAR), *_CLIP)


def _parts(inputs: Sequence[FloatArray]) -> list[Sequence[FloatArray]]:
    return [inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH)]
