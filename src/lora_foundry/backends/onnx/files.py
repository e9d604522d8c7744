"""One thin layer over onnxruntime: where an instrument's file comes from, what it weighs and under which licence, and
how it is run. A file in the instruments folder is used as it is; another is fetched from the hub at its first use, with
its size, licence and hash in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.file_download import get_hf_file_metadata
from PIL import Image

from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.download import SHA256_DIGITS, Source, cached
from lora_foundry.files.hashing import file_hash
from lora_foundry.ports import FloatArray

_log = logging.getLogger(__name__)


def find_file(source: Source, folder: Path | None) -> Path:
    """The file in `folder`, else from the hub or its cache. Raises InputError where it can come from neither."""
    if folder is not None and (local := folder / source.name).is_file():
        return local
    where = "no folder of instruments is set" if folder is None else f"it is not in {folder}"
    if not source.repository:
        raise InputError(
            f"The instrument's file {source.name} has to be put there by hand ({source.licence}): {where} "
            "(model.instruments)."
        )
    if (here := cached(source)) is not None:
        return here
    try:
        _announce(source)
        path = Path(hf_hub_download(source.repository, source.path))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"The instrument's file {source.name} cannot be fetched from {source.repository} "
            f"({type(error).__name__}), and {where}; put it there and set model.instruments."
        ) from error
    _log.info("%s: SHA-256 %s", source.name, file_hash(path))
    return path


def _announce(source: Source) -> None:
    """Says what is about to be fetched; nothing where it lies in the cache already or the hub does not tell."""
    try:
        known = get_hf_file_metadata(hf_hub_url(source.repository, source.path))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return
    size = "unknown size" if known.size is None else f"{known.size / 1e6:.0f} MB"
    digest = known.etag if known.etag and len(known.etag) == SHA256_DIGITS else "unknown"
    _log.warning(
        "fetching %s from %s: %s, licence %s, SHA-256 %s",
        source.name, source.repository, size, source.licence, digest,
    )  # fmt: skip


class OnnxModel:
    """One ONNX file, loaded at its first use on the processor, or on a GPU where onnxruntime has one."""

    def __init__(self, source: Source, folder: Path | None) -> None:
        self._source, self._folder = source, folder
        self._session: Any = None

    def run(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Every output by its name. Raises InputError for a file that is no model of this kind, BackendError."""
        session = self._load()
        try:
            values = session.run(None, {session.get_inputs()[0].name: batch})
        except Exception as error:  # onnxruntime's own classes share no base
            reason = " ".join(str(error).split())[:200]
            raise BackendError(f"The instrument {self._source.name} stopped: {reason}") from error
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, values, strict=True))

    def run_each(self, images: Sequence[FloatArray], output: int = 0) -> FloatArray:
        """One output for every image, (n, ...). A model made for one picture at a time gets one at a time."""
        session = self._load()
        fixed = session.get_inputs()[0].shape[0]
        if fixed == 1:
            parts = [list(self.run(image[None]).values())[output] for image in images]
        else:
            parts = [list(self.run(np.stack(images)).values())[output]]
        return np.concatenate(parts).astype(np.float32)

    def _load(self) -> Any:
        if self._session is None:
            path = find_file(self._source, self._folder)
            try:
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 3
                self._session = onnxruntime.InferenceSession(
                    str(path), options, providers=onnxruntime.get_available_providers()
                )
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"{path} is no ONNX model that can be used: {reason}") from error
        return self._session


def planes(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> FloatArray:
    """(3, height, width): RGB from 0 to 1, then (value - mean) / std."""
    values = np.asarray(image.convert("RGB"), np.float32) / 255.0
    scaled = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def unit(rows: FloatArray) -> FloatArray:
    """Each row brought to length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-8), np.float32)
