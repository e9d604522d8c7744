"""What all families have in common: a loaded diffusers pipeline whose parts are frozen, whose encoders are used and
then let go of, and which draws pictures while its network learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.devices import choose_dtype, freed_memory_kept
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.loading import quiet_libraries
from lora_foundry.families._shared.parts import Parts
from lora_foundry.families._shared.prompts import Condition, Prompts, make_prompts
from lora_foundry.families._shared.targets import DENOISER, KOHYA

_ENCODED_ON_CPU = 1 << 16  # pixels at once: with more, pictures push each other out of the processor's cache


class FrozenModel:
    """A base on its device, frozen; the part of `FamilyModel` that no family does otherwise. Each part is loaded at
    its first use: none that the caches make needless, and the denoiser after the encoders were let go."""

    recordable = False
    file_format = KOHYA

    def __init__(
        self, base: Base, settings: TrainSection, device: torch.device, storage: torch.dtype | None = None
    ) -> None:
        """`storage`: the type in which the network's weights are kept, if not the one it computes in."""
        self._device, self._settings = device, settings
        self._dtype = choose_dtype(settings.precision, device)
        self._storage = storage or self._dtype
        self._parts = Parts(base, self._storage)
        self._parts.read_ahead()
        self._known_prompts: Prompts | None = None

    @cached_property
    def network(self) -> nn.Module:
        """The denoiser."""
        with quiet_libraries():
            network: Any = self._parts.load_denoiser().to(device=self._device, dtype=self._storage)
        if self._settings.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        module: nn.Module = network
        return module

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
                encoder.to(self._device)
            self._known_prompts = make_prompts(self._parts.encoders)
        return self._known_prompts

    @property
    def _vae(self) -> Any:
        return self._parts.vae.to(self._device)

    def encode_captions(self, texts: Sequence[str]) -> list[Condition]:
        """What the text encoders make of captions, window by window."""
        return self._prompts.encode_all(texts)

    def stack(self, conditions: Sequence[Condition]) -> Condition:
        """Conditions of one length are laid side by side; of others, shorter ones are filled up as the generator
        does."""
        if len({len(condition["text"]) for condition in conditions}) == 1:
            names = conditions[0]
            return {name: torch.stack([condition[name] for condition in conditions]) for name in names}
        return self._prompts.stack(conditions)

    def release_encoders(self, keep_text: bool) -> None:
        """Lets go of the encoders' memory; of the text encoders' only where no captions are to come, and of the VAE's
        only where no pictures are to be drawn (it then waits in the computer's memory)."""
        drawing = bool(self._settings.sample_prompts)
        if not keep_text:
            self._known_prompts = None
            if drawing:
                self._parts.encoders.register_modules(**dict.fromkeys(self._parts.text_encoders))
            else:
                self._parts.release()
        elif not drawing:
            self._parts.release_vae()
        if drawing:
            self._parts.encoders.vae.cpu()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents by the mean of the VAE's distribution: its spread is far below what training could
        notice."""
        vae, config = self._vae, self._vae.config
        count = len(pixels)
        if self._device.type == "cpu":
            count = max(1, _ENCODED_ON_CPU // pixels[0, 0].numel())
        parts = torch.split(pixels.to(self._device), count)
        with freed_memory_kept(self._device):
            mean: Tensor = torch.cat([vae.encode(part).latent_dist.mean for part in parts])
        latents: Tensor = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents.cpu()

    @torch.no_grad()
    def draw(
        self, conditions: Sequence[Condition], frame: tuple[int, int], seed: int, steps: int, cfg: float
    ) -> list[Image.Image]:
        """Pictures of `frame` with the network as it stands, one a condition; the first condition is the negative
        one."""
        moved = [
            {name: tensor.to(self._device, self._dtype) for name, tensor in condition.items()}
            for condition in conditions
        ]
        count = len(moved) - 1
        pipeline = self._parts.with_denoiser(self.network)
        pipeline.vae.to(self._device)
        arguments = make_prompts(pipeline).arguments(moved[1:], moved[:1] * count)
        with quiet_libraries():
            images: list[Image.Image] = pipeline(
                **arguments,
                generator=[torch.Generator().manual_seed(seed) for _ in range(count)],
                width=frame[0],
                height=frame[1],
                num_inference_steps=steps,
                guidance_scale=cfg,
            ).images
        pipeline.vae.cpu()
        return images
