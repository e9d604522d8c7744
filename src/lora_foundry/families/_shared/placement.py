"""Where a pipeline's parts lie while it draws on a GPU: all of it on the card; one part after another where the card does
not hold them at once; block by block where it does not hold the largest part; and the VAE's work in tiles where it does not
hold a whole picture's. Chosen by the card's size and
not by what is free, so that a picture is the same whoever else uses the card. What is moved is equal bit for bit; tiles
are not quite. Not yet proven on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_foundry.domain.sections import GenerateSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.frozen import use_tiles
from lora_foundry.families._shared.loading import denoiser
from lora_foundry.families._shared.memory import MIB, RUNTIME, Kept
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.streaming import stream

_RESERVE = 1 << 30  # of a card, for the desktop and the driver
# Bytes a pixel that decoding takes in 16 bits: three activations of 256 channels at full size, for the VAEs of all
# families alike, counted on the meta device.
_DECODED = 1536
_TILE = 512  # pixels a side
_log = logging.getLogger(__name__)


class Placement(NamedTuple):
    """offload: parts come to the GPU when they are used. tiled: the VAE works in tiles. streamed: the blocks of denoiser and
    text encoders come to the GPU one after another."""

    offload: bool
    tiled: bool
    streamed: bool = False


def choose_placement(parts: Mapping[str, int], denoising: int, decoding: int, room: int) -> Placement:
    """What fits into `room`. parts: bytes of each part's weights by its name in the pipeline; denoising, decoding: bytes
    of the activations of the denoiser on a batch and of the VAE on one picture."""
    together = sum(parts.values())
    offload = together + max(denoising, decoding) > room
    beside = parts.get("vae", 0) if offload else together
    streamed = max(parts.values(), default=0) + denoising > room
    return Placement(offload and not streamed, beside + decoding > room, streamed)


def place_pipeline(pipeline: Any, base: Base, section: GenerateSection, device: torch.device) -> None:
    """Brings a pipeline that was loaded in the computer's memory to where it draws."""
    if device.type != "cuda":
        pipeline.to(device)
        return
    total = torch.cuda.get_device_properties(device).total_memory
    chosen = choose_placement(*needed_to_draw(pipeline, base, section), total - _RESERVE - RUNTIME)
    _log.info("drawing with %s on a card of %d MiB", chosen, total // MIB)
    arrange(pipeline, chosen, device)


def arrange(pipeline: Any, chosen: Placement, device: torch.device) -> None:
    """Does what was chosen."""
    if chosen.tiled:
        use_tiles(pipeline.vae, _TILE, pipeline.vae_scale_factor)
    if chosen.streamed:
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != "vae":
                stream(part, device)
    if chosen.offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)


def needed_to_draw(pipeline: Any, base: Base, section: GenerateSection) -> tuple[dict[str, int], int, int]:
    """The bytes of a pipeline's parts, and what denoising a batch and decoding a picture take beside them. The first is
    bounded from above by what training with gradient checkpointing keeps."""
    parts = {
        name: sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module)
    }
    network = denoiser(pipeline, base)
    pixels, wide = section.width * section.height, network.dtype.itemsize / 2
    kept: Kept = family_part(base.family, "memory").kept(network.config, round(pixels**0.5))
    guided = 1 if section.cfg == 1 else 2  # the negative prompt is computed beside
    denoising = kept.checkpointed * section.batch_size * guided * wide
    return parts, int(denoising), int(_DECODED * pixels * wide)
