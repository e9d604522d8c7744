"""What all families have in common: a loaded diffusers pipeline whose parts are frozen, whose encoders are used and
then let go of, and which draws pictures while its network learns."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.adapter import merge_adapter
from lora_foundry.families._shared.base import Base, check_trainable
from lora_foundry.families._shared.devices import freed_memory_kept, give_memory_back
from lora_foundry.families._shared.diffusion import Process, mean_error
from lora_foundry.families._shared.family import Batch
from lora_foundry.families._shared.loading import in_type, loader_of, quiet_libraries
from lora_foundry.families._shared.parts import Parts
from lora_foundry.families._shared.prompts import Condition, Prompts, stack_conditions
from lora_foundry.families._shared.quantised import packing_of, quantise, repeated_blocks
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.streaming import Streamed, bring_or_stream, streamed_places
from lora_foundry.families._shared.targets import DENOISER, FileFormat, Target

_LARGEST_TILE, _SMALLEST_TILE = 512, 128  # pixels a side, when the VAE works in tiles
_ENCODED_ON_CPU = 1 << 16  # pixels at once: with more, pictures push each other out of the processor's cache

_log = logging.getLogger(__name__)


class FrozenModel(ABC):
    """A base on its device, frozen; the part of `FamilyModel` that no family does otherwise. Each part is loaded at
    its first use: none that the caches make needless, and the denoiser after the encoders were let go."""

    recordable = False
    _process: Process

    def __init__(
        self, base: Base, settings: TrainSection, device: torch.device, storage: torch.dtype | None = None
    ) -> None:
        """`storage`: the type in which the network's weights are kept, if not the one it computes in."""
        check_trainable(base, settings)
        self._device, self._settings = device, settings
        self.dtype = loader_of(base).training(settings.precision, device)
        self._storage = storage or self.dtype
        self._base = base
        self._parts = Parts(base, self._storage, loader_of(base).encoding(device))
        self._parts.read_ahead()
        self._known_prompts: Prompts | None = None
        self._tile = 0  # pixels a side of the VAE's tiles; 0: none

    @cached_property
    def network(self) -> nn.Module:
        """The denoiser."""
        with quiet_libraries():
            network: Any = self._parts.load_denoiser()
            if self._settings.training_adapter:
                named = Path(self._settings.training_adapter).expanduser()
                merge_adapter(network, self._base, self._base.adapter or named)
            network = in_type(network, self._storage)
        if self._settings.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        module: nn.Module = network
        return self._placed(module)

    def _placed(self, network: nn.Module) -> nn.Module:
        """The network on the device, block by block as the settings want it: quantised, or waiting in the computer's memory.
        Never is more of it on the device than stays there."""
        blocks = list(repeated_blocks(network).values())
        streamed = [blocks[place] for place in streamed_places(len(blocks), self._settings.streamed)]
        packing = packing_of(self._settings)
        for block in blocks:
            if packing:
                quantise(block, packing, self._device)
            if block in streamed:
                block.cpu()
        if streamed:
            Streamed(streamed, self._device)
        return network.to(device=self._device)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The denoiser, and the text encoders where they learn, by kohya's names for them."""
        learning = self._prompts.encoders if self._settings.text_encoder_rate > 0 else {}
        return {DENOISER: self.network, **learning}

    @property
    def _prompts(self) -> Prompts:
        """The text encoders, loaded when a caption is not in the cache."""
        if self._known_prompts is None:
            for encoder in self._parts.text_encoders.values():
                if self._settings.text_encoder_rate > 0:
                    encoder.to(self._device)
                else:
                    bring_or_stream(encoder, self._device)
            self._known_prompts = self._make_prompts(self._parts.encoders)
        return self._known_prompts

    def _make_prompts(self, pipeline: Any) -> Prompts:
        prompts: Prompts = family_part(self._base.family, "prompts").make_prompts(pipeline, self._base)
        return prompts

    def losses(self, batch: Batch) -> Tensor:
        """Squared error of the network's answer, in fp32, weighted by noise level."""
        latents, noise = batch.latents.to(self._device), batch.noise.to(self._device)
        levels = self._levels(batch.timesteps.to(self._device), latents)
        noised = self._process.add_noise(latents, noise, levels).to(self.dtype)
        answer = self._predict(noised, levels, batch.condition)
        error = (answer.float() - self._process.target(latents, noise, levels)).square()
        return mean_error(error, batch.mask) * self._process.weights(levels)

    @abstractmethod
    def _levels(self, timesteps: Tensor, latents: Tensor) -> Tensor:
        """Timesteps in 0..1 (n,) as the noise levels of `_process`."""

    @abstractmethod
    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        """What the network answers (n, c, h, w), in the sense of the process's target."""

    @property
    def _vae(self) -> Any:
        return self._parts.vae.to(self._device)

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        """The denoiser's layers that get a LoRA. Raises InputError where the settings name none."""
        found: list[Target] = family_part(self._base.family, "names").lora_targets(self.network, settings)
        return found

    @property
    def file_format(self) -> FileFormat:
        """How an exported file names the tensors of a module."""
        file_format: FileFormat = family_part(self._base.family, "names").FILE_FORMAT
        return file_format

    def export_name(self, target: Target) -> str:
        """The name by which ComfyUI and diffusers both find this module."""
        name: str = family_part(self._base.family, "names").export_name(target)
        return name

    def encode_captions(self, texts: Sequence[str]) -> list[Condition]:
        """What the text encoders make of captions, window by window."""
        return self._prompts.encode_all(texts)

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        """Side by side; shorter ones are filled up with windows of the empty prompt, as the generator does."""
        return stack_conditions(conditions, empty)

    def release_encoders(self, keep_text: bool) -> None:
        """Lets go of the encoders' memory; of the text encoders' only where no captions are to come, and of the VAE's
        only where no pictures are to be drawn (it then waits in the computer's memory)."""
        if not keep_text:
            self._known_prompts = None
        self._parts.release(text=not keep_text, vae=not self._settings.sample_prompts)
        give_memory_back()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents by the mean of the VAE's distribution: its spread is far below what training could
        notice. On a GPU one picture at a time (in fp32 one of 1024 pixels takes 2.5 GiB), in tiles where the memory
        does not hold it whole. Raises torch.OutOfMemoryError where it holds not even a small tile."""
        count = 1
        if self._device.type == "cpu":
            count = max(1, _ENCODED_ON_CPU // pixels[0, 0].numel())
        parts = torch.split(pixels, count)
        with freed_memory_kept(self._device):
            mean = torch.cat([self._in_tiles_if_needed(self._encode, part).cpu() for part in parts])
        return self._from_vae(mean)

    def _from_vae(self, mean: Tensor) -> Tensor:
        """What the VAE gives, as the network wants it."""
        config = self._vae.config
        latents: Tensor = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents

    def _to_vae(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) as the VAE wants them."""
        config = self._vae.config
        plain: Tensor = latents / config.scaling_factor + (config.shift_factor or 0.0)
        return plain

    def _encode(self, pixels: Tensor) -> Tensor:
        mean: Tensor = self._vae.encode(pixels.to(self._device)).latent_dist.mean
        return mean

    def _in_tiles_if_needed(self, work: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """`work` of the VAE on `given`; where memory runs out again in tiles, of half the side each time. The tiles
        stay for what comes next, which is as large."""
        while True:
            try:
                return work(given)
            except torch.OutOfMemoryError:
                side = self._tile // 2 or _LARGEST_TILE
                if side < _SMALLEST_TILE:
                    raise
            # Not in the handler, whose error holds what the attempt had made.
            _log.info("the memory does not hold the VAE's work; going on in tiles of %d pixels", side)
            self._tile = side
            use_tiles(self._vae, side, self._parts.vae_scale_factor)
            give_memory_back()

    @torch.no_grad()
    def draw(
        self, conditions: Sequence[Condition], frame: tuple[int, int], seed: int, steps: int, cfg: float
    ) -> list[Image.Image]:
        """Pictures of `frame` with the network as it stands, one a condition; the first condition is the negative
        one, and of the empty prompt."""
        moved = [
            {name: tensor.to(self._device, self.dtype) for name, tensor in condition.items()}
            for condition in conditions
        ]
        count = len(moved) - 1
        pipeline = self._parts.drawing(self.network)
        pipeline.vae.to(self._device)  # a pipeline computes where its VAE is
        arguments = self._make_prompts(pipeline).arguments(moved[1:], moved[:1] * count, empty=moved[0])
        hook = self.network.register_forward_pre_hook(self._as_computed, with_kwargs=True)
        try:
            with quiet_libraries():
                latents: Tensor = pipeline(
                    **arguments,
                    generator=[torch.Generator().manual_seed(seed) for _ in range(count)],
                    width=frame[0],
                    height=frame[1],
                    num_inference_steps=steps,
                    **loader_of(self._base).guidance(cfg),
                    output_type="latent",
                ).images
        finally:
            hook.remove()
        return self._decode(self._unpacked(latents, frame), pipeline.image_processor)

    def _unpacked(self, latents: Tensor, frame: tuple[int, int]) -> Tensor:
        """Latents as the pipeline gives them for pictures of `frame` pixels, as (n, c, h, w)."""
        return latents

    def _decode(self, latents: Tensor, processor: Any) -> list[Image.Image]:
        """Pictures of latents, one after another, by the VAE in its own type."""
        vae = self._vae
        given: Tensor = self._to_vae(latents.to(self._device, vae.dtype))
        pixels = [self._in_tiles_if_needed(self._decode_part, part) for part in torch.split(given, 1)]
        images: list[Image.Image] = processor.postprocess(torch.cat(pixels), output_type="pil")
        vae.cpu()
        return images

    def _decode_part(self, latents: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) of what `_to_vae` gives."""
        pixels: Tensor = self._vae.decode(latents, return_dict=False)[0]
        return pixels

    def _as_computed(self, network: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What a pipeline gives to the network, in the type that it computes in: pipelines go by the type of its
        weights, which may be kept in another."""
        return tree_map_only(Tensor, self._cast, args), tree_map_only(Tensor, self._cast, kwargs)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def use_tiles(vae: Any, side: int, scale: int) -> None:
    """Has a VAE of the library work in tiles of `side` pixels; a latent's side stands for `scale` of them. Its classes
    name the tile in two ways."""
    if not hasattr(vae, "tile_sample_min_size"):
        vae.enable_tiling(side, side, side * 3 // 4, side * 3 // 4)
        return
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // scale
