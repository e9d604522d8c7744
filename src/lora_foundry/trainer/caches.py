"""Latents and text embeddings are computed once and kept beside the dataset, keyed by the content of picture
and caption, so that no step waits for an encoder and a second training starts at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lora_foundry.domain.run import fingerprint
from lora_foundry.errors import BackendError
from lora_foundry.families._shared.family import FamilyModel
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.files import storage
from lora_foundry.trainer.images import BucketSize, read_tensor

ENCODE_BATCH = 8
_MEMORY_LIMIT = 2 * 1024**3
_SHUFFLED_KEPT = 1024
_SHARE = 0.1  # of the device's free memory
Report = Callable[[int, int], None]


class TensorFile:
    """Named tensors in one safetensors file; held in memory when they are few, read from the disk when
    not."""

    def __init__(
        self, path: Path, names: frozenset[str], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        self.path = path
        self.names = names
        self._tensors = tensors

    @classmethod
    def open(cls, path: Path) -> TensorFile | None:
        """The file at `path`, if there is one and it is whole."""
        try:
            with safe_open(path, "pt") as file:
                names = frozenset(file.keys())
                small = path.stat().st_size <= _MEMORY_LIMIT
                return cls(path, names, {name: file.get_tensor(name) for name in names} if small else None)
        except (OSError, SafetensorError):
            return None

    @classmethod
    def create(cls, path: Path, tensors: Mapping[str, Tensor]) -> TensorFile:
        """Writes the file as a whole: how pictures were batched decides the last bits of their latents, so a
        part of the set that an interrupted run had made could not be told from the real thing."""
        storage.write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        size = sum(tensor.nbytes for tensor in tensors.values())
        return cls(path, frozenset(tensors), dict(tensors) if size <= _MEMORY_LIMIT else None)

    def __getitem__(self, name: str) -> Tensor:
        if self._tensors is not None:
            return self._tensors[name]
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


class DeviceCache:
    """Keeps what every epoch asks for again on the device that computes, where it fits: a copy from the computer's memory
    at each step makes the GPU wait for the host. Within a tenth of the memory that was free at first a tensor stays on
    `device` once it was asked for; beyond that, and on a CPU, `lookup` is simply asked. `room` (bytes) overrules the
    tenth."""

    def __init__(
        self, lookup: Callable[[Any], Tensor], device: torch.device, room: int | None = None
    ) -> None:
        self._lookup, self._device = lookup, device
        self._kept: dict[Hashable, Tensor] = {}
        self._room = room if room is not None else _free(device)

    def __call__(self, key: Hashable) -> Tensor:
        """The tensor of `key`, on the device; where it is kept, without a copy."""
        if key in self._kept:
            return self._kept[key]
        tensor = self._lookup(key)
        if self._room <= 0:
            return tensor.to(self._device)
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            self._kept[key] = tensor = tensor.to(self._device)
        return tensor.to(self._device)


def _free(device: torch.device) -> int:
    """Bytes that may be taken; none on a CPU, whose memory is where the tensors are already."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _SHARE)


def latent_name(digest: str, flipped: bool) -> str:
    """What the latent of a picture is called in the cache's file."""
    return f"{digest}.flipped" if flipped else digest


def cache_latents(
    model: FamilyModel,
    pictures: Mapping[str, tuple[Path, bool]],
    size: BucketSize,
    identity: str,
    folder: Path,
    report: Report,
) -> TensorFile:
    """The latents of pictures (path, and whether it is flipped) by `latent_name`, from the cache or made now. Raises
    InputError, StorageError, BackendError where the memory does not suffice."""
    names = sorted(pictures)
    file = folder / f"latents-{fingerprint('latents-1', identity, size)}.safetensors"
    known = TensorFile.open(file)
    if known is not None and known.names >= set(names):
        return known
    latents: dict[str, Tensor] = {}
    for start in range(0, len(names), ENCODE_BATCH):
        batch = names[start : start + ENCODE_BATCH]
        try:
            pixels = [read_tensor(path, size, flipped) for path, flipped in map(pictures.__getitem__, batch)]
            encoded = model.encode_images(torch.stack(pixels))
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"The GPU's memory does not hold one picture of {size[0]}x{size[1]} pixels while it is encoded, not "
                "even in tiles; close other programs that use the GPU, or lower train.resolution."
            ) from error
        latents |= {name: latent.clone() for name, latent in zip(batch, encoded, strict=True)}
        report(len(latents), len(names))
    return TensorFile.create(file, latents)


class CaptionCache:
    """Conditions by caption. Captions known in advance are kept on disk; shuffled ones are encoded as they
    come up.

    Each caption is encoded alone, so that its condition never depends on its neighbours in a batch.
    """

    def __init__(self, model: FamilyModel, device: torch.device, live: bool = False) -> None:
        self._model = model
        self._live = live
        self._device = device
        self._on_device = DeviceCache(self._read, device)
        self._file: TensorFile | None = None
        self._index: dict[str, dict[str, str]] = {}
        self._fresh: dict[str, Condition] = {}

    def prepare(self, captions: Sequence[str], identity: str, folder: Path, report: Report) -> None:
        """Takes all of `captions` from the cache file, or encodes them into it. Raises StorageError."""
        keys = {fingerprint("caption-1", text): text for text in dict.fromkeys(captions)}
        path = folder / f"captions-{fingerprint('captions-1', identity)}.safetensors"
        file = TensorFile.open(path)
        if file is None or not set(keys) <= {name.partition(".")[0] for name in file.names}:
            tensors: dict[str, Tensor] = {}
            for done, (key, text) in enumerate(keys.items(), start=1):
                tensors |= {f"{key}.{name}": tensor for name, tensor in self._encode(text).items()}
                report(done, len(keys))
            file = TensorFile.create(path, tensors)
        for full in file.names:
            key, _, name = full.partition(".")
            if key in keys:
                self._index.setdefault(keys[key], {})[name] = full
        self._file = file

    def batch(self, captions: Sequence[str]) -> Condition:
        """The condition of one batch. Where text encoders learn nothing is cached, and gradients flow."""
        encode = self._model.encode_captions if self._live else self._all
        conditions = encode(captions)
        alike = len({len(condition["text"]) for condition in conditions}) == 1
        return self._model.stack(conditions, None if alike else self.one(""))

    def _all(self, captions: Sequence[str]) -> list[Condition]:
        return [self.one(caption) for caption in captions]

    def one(self, caption: str) -> Condition:
        """The condition of one caption as it is now, without gradients."""
        if self._live:
            return self._encode(caption)
        if self._file is not None and caption in self._index:
            return {name: self._on_device(full) for name, full in self._index[caption].items()}
        if caption not in self._fresh:
            if len(self._fresh) >= _SHUFFLED_KEPT:
                self._fresh.pop(next(iter(self._fresh)))
            self._fresh[caption] = self._encode(caption)
        return {name: tensor.to(self._device) for name, tensor in self._fresh[caption].items()}

    def _read(self, full: str) -> Tensor:
        assert self._file is not None
        return self._file[full]

    @torch.no_grad()
    def _encode(self, caption: str) -> Condition:
        return {name: tensor.cpu() for name, tensor in self._model.encode_captions([caption])[0].items()}
