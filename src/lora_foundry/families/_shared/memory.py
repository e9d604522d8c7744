"""How much GPU memory a training takes, and how much is free, so that none is started that would spill into main
memory, where a step takes a hundred times as long and nothing says why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.devices import find_device
from lora_foundry.families._shared.inspect import Base, read_header

MIB = 1 << 20
# Bytes that autograd keeps of one picture's forward pass in a 16-bit type, per pixel of the picture: the saved tensors
# of diffusers' UNets with a LoRA on every attention and feed-forward layer, counted on torch's meta device. They grow
# with the area and the batch alone, since attention is computed without its matrix.
_KEPT_BYTES = {"sd": 3730, "sdxl": 6873}
_CHECKPOINTED = (
    0.41  # the share of it that is left: the blocks' inputs (0.08 to 0.16), and one block at a time
)
_OPTIMIZER_BYTES = 16  # of a trained number: itself, its gradient and AdamW's two moments, all fp32
_RUNTIME = 900 * MIB  # CUDA's context, its libraries' workspaces, and the allocator's gaps
_UNET = ("model.diffusion_model.", "unet/")
_TEXT = ("cond_stage_model.", "conditioner.", "text_encoder/", "text_encoder_2/")
_TRAINED = re.compile(r"(attn\d?\.|ff\.|proj_in|proj_out)")


def training_memory(base: Base, settings: TrainSection) -> int:
    """Bytes of GPU memory that a training of this base takes at its peak: weights, LoRA with its optimizer, and what
    is kept for the backward pass. `settings.needs_mib` wins where it is set."""
    if settings.needs_mib:
        return settings.needs_mib * MIB
    shapes = _shapes(base)
    width = 4 if settings.precision == "fp32" else 2
    resident = _UNET + (_TEXT if settings.text_encoder_rate else ())
    weights = width * sum(prod(shape) for name, shape in shapes.items() if name.startswith(resident))
    trained = settings.rank * sum(
        shape[0] + shape[1]
        for name, shape in shapes.items()
        if name.startswith(_UNET) and len(shape) > 1 and _TRAINED.search(name)
    )
    kept = _KEPT_BYTES.get(base.family, max(_KEPT_BYTES.values())) * settings.resolution**2
    kept = int(kept * settings.batch_size * width / 2)
    if settings.gradient_checkpointing:
        kept = int(kept * _CHECKPOINTED)
    return weights + _OPTIMIZER_BYTES * trained + kept + _RUNTIME


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


def _shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Every tensor of the base, with its folder's name before it where it is a diffusers folder."""
    if base.layout == "file":
        return read_header(base.path).shapes
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for file in _plain(sorted((base.path / part).glob("*.safetensors"))):
            shapes |= {f"{part}/{name}": shape for name, shape in read_header(file).shapes.items()}
    return shapes


def _plain(files: Iterable[Path]) -> list[Path]:
    """The files of one variant, where a folder has several."""
    found = list(files)
    return [file for file in found if ".fp16" not in file.name] or found
