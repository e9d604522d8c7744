"""How much GPU memory a training takes, and how much is free, so that none is started that would spill into main
memory, where a step takes a hundred times as long and nothing says why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import FoundryError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.devices import find_device
from lora_foundry.families._shared.loading import library_class, loader_of, quiet_libraries
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.split import read_json
from lora_foundry.files.safetensors import read_header

_TEXT = ("cond_stage_model.", "conditioner.")
MIB = 1 << 20
_MOMENTS = {
    "adamw8bit": 2,
    "adafactor": 1,
}  # bytes of optimizer state a trained number, where it is not AdamW's two fp32
RUNTIME = 900 * MIB  # CUDA's context, its libraries' workspaces, and the allocator's gaps
_UNKNOWN = 6_000_000_000  # weights of a base whose configuration cannot be read here


class Kept(NamedTuple):
    """Bytes that the forward and backward pass of one picture takes in a 16-bit type: with all activations kept, and with
    gradient checkpointing."""

    whole: int
    checkpointed: int


class Footprint(NamedTuple):
    """Bytes of GPU memory that a training takes at its peak: the frozen weights, the LoRA with gradients and optimizer,
    the activations of a batch, and what CUDA itself takes."""

    weights: int
    learned: int
    activations: int
    runtime: int = RUNTIME

    @property
    def total(self) -> int:
        return sum(self)


class Counted(NamedTuple):
    """A base's denoiser, counted at its real size on torch's meta device."""

    weights: int
    targets: tuple[tuple[int, ...], ...]
    """The shapes of the weights that get a LoRA."""


def training_memory(base: Base, settings: TrainSection) -> int:
    """Bytes of GPU memory that a training of this base takes at its peak. `settings.needs_mib` wins where it is set."""
    return settings.needs_mib * MIB if settings.needs_mib else footprint(base, settings).total


def footprint(base: Base, settings: TrainSection) -> Footprint:
    """What a training takes, by its parts: weights and LoRA counted from the base's configuration, activations by the
    family's own formula (`memory.kept`), which its test holds to what the meta device counts."""
    wide = _computes_in_fp32(base, settings)
    try:
        config, counted = _counted(base, settings.targets, settings.conv_rank > 0)
        kept: Kept = family_part(base.family, "memory").kept(config, settings.resolution)
    except (FoundryError, OSError):
        config, counted, kept = {}, Counted(_UNKNOWN, ()), Kept(4 << 30, 1 << 30)
    weights = counted.weights * (4 if wide else 2)
    if settings.text_encoder_rate > 0:
        weights += 4 * _text_weights(base)
    trained = sum(_lora_size(shape, settings) for shape in counted.targets)
    each = 4 + 4 + _MOMENTS.get(settings.optimizer, 8)
    if settings.gradient_checkpointing:
        activations = kept.checkpointed * settings.batch_size
    else:
        activations = kept.whole * settings.batch_size + 2 * trained  # the LoRA in the type it computes in
    return Footprint(weights, each * trained, activations * (2 if wide else 1))


def _computes_in_fp32(base: Base, settings: TrainSection) -> bool:
    """On the GPU that is here; where none is, on one that has bf16."""
    if not torch.cuda.is_available():
        return settings.precision == "fp32"
    return loader_of(base).training(settings.precision, torch.device("cuda")) == torch.float32


def _lora_size(shape: tuple[int, ...], settings: TrainSection) -> int:
    """Numbers of a LoRA for a weight (out, in) or (out, in, k, k)."""
    spatial = shape[2:] not in {(), (1, 1)}
    rank = settings.conv_rank if spatial else settings.rank
    return rank * (shape[0] + prod(shape[1:]))


def _counted(base: Base, targets: tuple[str, ...], convolutions: bool) -> tuple[dict[str, Any], Counted]:
    """The denoiser's configuration and what is counted of it. Raises BaseModelError, InputError."""
    loader = loader_of(base)
    config = read_json(loader.configuration(base) / loader.denoiser / "config.json")
    return config, _count(base.family, json.dumps(config, sort_keys=True), targets, convolutions)


@lru_cache(maxsize=16)
def _count(family: str, config: str, targets: tuple[str, ...], convolutions: bool) -> Counted:
    kind = library_class(family_part(family, "load").LOADER.denoiser_class)
    with quiet_libraries(), torch.device("meta"):
        network = kind.from_config(json.loads(config))
    settings = TrainSection.model_validate({"targets": targets, "conv_rank": int(convolutions)})
    found = family_part(family, "names").lora_targets(network, settings)
    modules = dict(network.named_modules())
    shapes = tuple(tuple(modules[target.module].weight.shape) for target in found)
    return Counted(sum(tensor.numel() for tensor in network.parameters()), shapes)


def _text_weights(base: Base) -> int:
    """How many weights the text encoders have, by the headers of their files."""
    if base.layout == "file":
        shapes = read_header(base.path).shapes
        return sum(prod(shape) for name, shape in shapes.items() if name.startswith(_TEXT))
    files = [base.parts["text_encoder"]] if base.layout == "split" else []
    for part in ("text_encoder", "text_encoder_2"):
        files += _plain(sorted((base.path / part).glob("*.safetensors")))
    return sum(prod(shape) for file in files for shape in read_header(file).shapes.values())


def needed_memory(base: Base, settings: TrainSection, device: str) -> int:
    """What must be free on `device`: nothing on a processor, unless the recipe says how much, and for a dry run."""
    if settings.backend == "dry-run":
        return 0
    if (
        settings.memory != "as_set" and settings.backend == "inprocess"
    ):  # the trainer makes itself as small as it must
        settings = settings.model_copy(update={"batch_size": 1, "gradient_checkpointing": True})
    return training_memory(base, settings) if settings.needs_mib or _cuda(device) else 0


def driver_free(device: str, nvml: ModuleType | None = None) -> int | None:
    """Free bytes of the GPU by the driver's count, which sees all programs; None where there is no such GPU.

    Asked by NVML where nvidia-ml-py is installed, which needs no memory on the GPU itself, else by CUDA.
    """
    found = _cuda(device)
    if found is None:
        return None
    try:
        return _nvml_free(nvml or import_module("pynvml"), str(torch.cuda.get_device_properties(found).uuid))
    except Exception:  # not installed, no NVIDIA driver (ROCm), a slice of a GPU: CUDA's own interface knows
        return int(torch.cuda.mem_get_info(found)[0])


def _nvml_free(nvml: ModuleType, uuid: str) -> int:
    """By the GPU's own id, since CUDA counts the devices that this process may see and NVML all of them."""
    nvml.nvmlInit()
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")).free)
    finally:
        nvml.nvmlShutdown()


def _cuda(device: str) -> torch.device | None:
    found = find_device(device)
    return found if found.type == "cuda" else None


def _plain(files: Iterable[Path]) -> list[Path]:
    """The files of one variant, where a folder has several."""
    found = list(files)
    return [file for file in found if ".fp16" not in file.name] or found
