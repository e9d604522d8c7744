"""Stable Diffusion 1.x and 2.x (and any diffusers folder of their form): one CLIP text encoder, one UNet, epsilon or
v."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.bases.devices import choose_dtype
from lora_foundry.bases.inspect import Base
from lora_foundry.bases.loading import load_pipeline
from lora_foundry.bases.parts import Parts
from lora_foundry.bases.prompts import PromptEncoder, stack_prompts
from lora_foundry.domain.sections import TrainSection
from lora_foundry.training.families import Condition
from lora_foundry.training.unet import UnetModel

_ARCHITECTURES = {768: ("stable-diffusion-v1", "sd_v1"), 1024: ("stable-diffusion-v2", "sd_v2")}


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its UNet in the precision of `settings`, its encoders in fp32."""
    if settings.sample_prompts:
        return Model(load_pipeline(base, torch.float32, "cpu"), settings, device)
    return Model(Parts(base, choose_dtype(settings.precision, device)), settings, device)


class Model(UnetModel):
    """A Stable Diffusion base in the shape that the trainer wants (`FamilyModel`)."""

    def __init__(self, parts: Any, settings: TrainSection, device: torch.device) -> None:
        super().__init__(parts, settings, device)
        self._known_prompts: PromptEncoder | None = None
        self._known_filler: Tensor | None = None

    @property
    def _encoder(self) -> Any:
        return self._parts.text_encoder.to(self._device)

    @property
    def _prompts(self) -> PromptEncoder:
        """The text encoder, loaded when a caption is not in the cache."""
        if self._known_prompts is None:
            self._known_prompts = PromptEncoder(self._parts.tokenizer, self._encoder)
        return self._known_prompts

    @property
    def _filler(self) -> Tensor:
        """The empty caption's window."""
        if self._known_filler is None:
            with torch.no_grad():
                self._known_filler = self._prompts.empty().cpu()
        return self._known_filler

    def _text_encoders(self) -> Mapping[str, nn.Module]:
        return {"te": self._encoder} if self._settings.text_encoder_rate > 0 else {}

    def encode_captions(self, texts: Sequence[str]) -> list[Condition]:
        """The text encoder's last states, window by window."""
        return [{"text": states} for states in self._prompts.encode_all(texts)]

    def stack(self, conditions: Sequence[Condition]) -> Condition:
        """Shorter captions are filled up with windows of the empty one, as the generator does."""
        texts = [condition["text"] for condition in conditions]
        if len({len(text) for text in texts}) == 1:
            return {"text": torch.stack(texts)}
        return {"text": stack_prompts(texts, self._filler.to(texts[0].device))}

    def release_encoders(self, keep_text: bool) -> None:
        """Drops the VAE, and the text encoder unless captions are still to come."""
        if self._pipeline is None and not keep_text:
            self._known_prompts = None
            self._parts.release()
        elif not keep_text:
            self._known_prompts = None
            self._pipeline.text_encoder = None
        self._release_vae()

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        architecture, version = _ARCHITECTURES.get(self._context, ("stable-diffusion", "sd_other"))
        return {
            "modelspec.architecture": f"{architecture}/lora",
            "ss_base_model_version": version,
            "ss_v2": str(self._context == 1024),
            **super().metadata(),
        }
