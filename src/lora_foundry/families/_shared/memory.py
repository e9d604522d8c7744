"""How much GPU memory a training takes, and how much is free, so that none is started that would spill into main
memory, where a step takes a hundred times as long and nothing says why. By the same estimate a training is fitted to a
card (`trainer.memory`): what it would take quantised or streamed is counted before anything is loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import FoundryError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.devices import find_device, total_memory
from lora_foundry.families._shared.loading import library_class, loader_of, quiet_libraries
from lora_foundry.families._shared.quantised import (
    PACKINGS,
    Packing,
    installed_packings,
    packable,
    packed_bytes,
    packing_of,
    repeated_blocks,
)
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.split import read_json
from lora_foundry.families._shared.streaming import WAITING, streamed_places

MIB = 1 << 20
_MOMENTS = {
    "adamw8bit": 2,
    "adafactor": 1,
}  # bytes of optimizer state a trained number, where it is not AdamW's two fp32
RUNTIME = 900 * MIB  # CUDA's context, its libraries' workspaces, and the allocator's gaps
_TEXT_CONFIGURATIONS = "text_encoder*/config.json"
_PIXELS = 16  # the side of a transformer's token
_UNKNOWN = 6_000_000_000  # weights of a base whose configuration cannot be read here


class Kept(NamedTuple):
    """Bytes that the forward and backward pass of one picture takes in a 16-bit type: with all activations kept, and with
    gradient checkpointing."""

    whole: int
    checkpointed: int


def kept_by_tokens(resolution: int, words: int, channels: int, bytes_each: tuple[float, float]) -> Kept:
    """What a transformer keeps of a picture of `resolution` squared, with a token to every 16 by 16 pixels, and of a caption
    that takes as much as `words` of them. channels: those of all layers together. bytes_each: a token and a channel, with
    all activations kept, and with gradient checkpointing."""
    size = ((resolution // _PIXELS) ** 2 + words) * channels
    whole, checkpointed = bytes_each
    return Kept(int(whole * size), int(checkpointed * size))


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


class Block(NamedTuple):
    """One of a network's repeated blocks: the matrices (out, in) that can be packed, and how many other weights it has."""

    matrices: tuple[tuple[int, int], ...]
    others: int

    def bytes(self, packing: Packing | None, width: int) -> int:
        """What it takes where a plain number takes `width` bytes."""
        packed = (packed_bytes(shape, packing) if packing else prod(shape) * width for shape in self.matrices)
        return self.others * width + sum(packed)


class Counted(NamedTuple):
    """A base's denoiser, counted at its real size on torch's meta device."""

    weights: int
    targets: tuple[tuple[int, ...], ...]
    """The shapes of the weights that get a LoRA."""
    blocks: tuple[Block, ...] = ()

    def weight_bytes(self, settings: TrainSection, width: int) -> int:
        """What of the weights lies on the GPU: those of streamed blocks only while they are computed, two at once. Where
        blocks are of unlike size the activations of the smaller ones are the larger, so that two usual ones count."""
        packing = packing_of(settings)
        sizes = [block.bytes(packing, width) for block in self.blocks]
        streamed = [sizes[place] for place in streamed_places(len(sizes), settings.streamed)]
        rest = self.weights * width - sum(block.bytes(None, width) for block in self.blocks)
        there = min(2, len(streamed)) * sum(streamed) // max(1, len(streamed))
        return rest + sum(sizes) - sum(streamed) + there

    def waiting_bytes(self, settings: TrainSection) -> int:
        """What of the weights waits in the computer's memory, where they are of 16 bits or packed."""
        sizes = [block.bytes(packing_of(settings), 2) for block in self.blocks]
        return sum(sizes[place] for place in streamed_places(len(sizes), settings.streamed))

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest matrix that can be packed, which is unpacked as a whole."""
        return max((prod(shape) for block in self.blocks for shape in block.matrices), default=0)


class Means(NamedTuple):
    """By what a training can be made smaller beside computing less at once: how many blocks can be streamed, how the base
    may be packed, the most exact way first, and how many bytes of the computer's memory may wait for the GPU."""

    blocks: int = 0
    packings: tuple[Packing, ...] = ()
    waiting: int = 0


def training_memory(base: Base, settings: TrainSection) -> int:
    """Bytes of GPU memory that a training of this base takes at its peak. `settings.needs_mib` wins where it is set."""
    return settings.needs_mib * MIB if settings.needs_mib else footprint(base, settings).total


def footprint(base: Base, settings: TrainSection) -> Footprint:
    """What a training takes, by its parts: weights and LoRA counted from the base's configuration, activations by the
    family's own formula (`memory.kept`), which its test holds to what the meta device counts."""
    wide = _computes_in_fp32(base, settings)
    width = 4 if wide else 2
    try:
        config, counted = _counted(base, settings.targets, settings.conv_rank > 0)
        kept: Kept = family_part(base.family, "memory").kept(config, settings.resolution)
    except (FoundryError, OSError):
        counted, kept = Counted(_UNKNOWN, ()), Kept(4 << 30, 1 << 30)
    weights = counted.weight_bytes(settings, width) + encoders_there(base, settings)
    trained = sum(_lora_size(shape, settings) for shape in counted.targets)
    # In fp32 the number and its gradient; copies of both in 16 bits, where the network computes in them.
    each = 4 + 4 + _MOMENTS.get(settings.optimizer, 8) + (0 if wide else 4)
    picture = kept.checkpointed if settings.gradient_checkpointing else kept.whole
    activations = picture * settings.batch_size * (2 if wide else 1)
    if packing_of(settings):
        activations += counted.largest_matrix * width
    return Footprint(weights, each * trained, activations)


def means(base: Base, settings: TrainSection, device: torch.device) -> Means:
    """By what a training on `device` can be made smaller: streamed are blocks to a CUDA device, since others have no memory
    of their own; quantised is a base under a plain LoRA, where the recipe leaves it open."""
    try:
        blocks = len(_counted(base, settings.targets, settings.conv_rank > 0)[1].blocks)
    except (FoundryError, OSError):
        return Means()
    plain = settings.quantise == "auto" and settings.network == "lora" and blocks > 0
    streams = device.type == "cuda" and settings.network != "dora"
    waiting = int(WAITING * total_memory())
    return Means(blocks if streams else 0, installed_packings() if plain else (), waiting)


def usual_means(base: Base, settings: TrainSection, memory: int) -> Means:
    """Those of a computer with an NVIDIA GPU, so many bytes of memory and every extra."""
    found = means(base, settings, torch.device("cuda"))
    return found._replace(packings=PACKINGS if found.packings else (), waiting=int(WAITING * memory))


def loaded_memory(base: Base) -> int:
    """Bytes of the computer's memory that a base's denoiser takes while it is read, in 16 bits."""
    return 2 * _counted(base, TrainSection().targets, False)[1].weights


def waiting_memory(base: Base, settings: TrainSection) -> int:
    """Bytes of the computer's memory that streamed blocks take, in a form that it cannot lend to others."""
    try:
        return _counted(base, settings.targets, settings.conv_rank > 0)[1].waiting_bytes(settings)
    except (FoundryError, OSError):
        return 0


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
    blocks = tuple(_block(block) for block in repeated_blocks(network).values())
    return Counted(sum(tensor.numel() for tensor in network.parameters()), shapes, blocks)


def _block(block: nn.Module) -> Block:
    layers = [block.get_submodule(path) for path in packable(block)]
    shapes = tuple(
        (layer.out_features, layer.in_features) for layer in layers if isinstance(layer, nn.Linear)
    )
    return Block(shapes, sum(tensor.numel() for tensor in block.parameters()) - sum(map(prod, shapes)))


def encoders_there(base: Base, settings: TrainSection) -> int:
    """Bytes of the text encoders that stay on the GPU while it trains: those that learn, in fp32, and those that encode
    shuffled captions as they come."""
    if settings.text_encoder_rate > 0:
        return 4 * _text_weights(base)
    if settings.shuffle_tags and not settings.cache_captions:
        gpu = torch.device(
            "cuda" if torch.cuda.is_available() else "meta"
        )  # where none is, one that has bf16
        return loader_of(base).encoding(gpu).itemsize * _text_weights(base)
    return 0


def _text_weights(base: Base) -> int:
    """How many weights the text encoders have, by their configurations."""
    folder = loader_of(base).configuration(base)
    return sum(
        _count_text(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(_TEXT_CONFIGURATIONS))
    )


@lru_cache(maxsize=16)
def _count_text(config: str) -> int:
    import transformers

    values = json.loads(config)
    kind = transformers.AutoConfig.for_model(**values)
    with quiet_libraries(), torch.device("meta"):
        network = getattr(transformers, values["architectures"][0])(kind)
    return sum(tensor.numel() for tensor in network.parameters())


def needed_memory(base: Base, settings: TrainSection, device: str) -> int:
    """What must be free on `device`: nothing on a processor, unless the recipe says how much, and for a dry run."""
    if settings.backend == "dry-run":
        return 0
    if (
        settings.memory != "as_set" and settings.backend == "inprocess"
    ):  # the trainer makes itself as small as it must
        settings = smallest(settings, base, means(base, settings, find_device(device)))
    return training_memory(base, settings) if settings.needs_mib or _cuda(device) else 0


def smallest(settings: TrainSection, base: Base, ways: Means) -> TrainSection:
    """The settings that take the least memory for the same pictures a step."""
    least: dict[str, object] = {"batch_size": 1, "gradient_checkpointing": True, "cache_captions": True}
    if ways.packings:
        least["quantise"] = ways.packings[-1]
    smaller = settings.model_copy(update=least)
    streamed = smaller.model_copy(update={"streamed": 1.0})
    return streamed if ways.blocks and waiting_memory(base, streamed) <= ways.waiting else smaller


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
