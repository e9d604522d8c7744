"""Stable Diffusion 1.x and 2.x (and any diffusers folder of their form): one CLIP text encoder, one UNet, epsilon or
v."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_foundry.bases.inspect import Base
from lora_foundry.bases.loading import load_pipeline
from lora_foundry.bases.prompts import PromptEncoder, stack_prompts
from lora_foundry.domain.sections import TrainSection
from lora_foundry.training.families import Condition
from lora_foundry.training.unet import UnetModel

_ARCHITECTURES = {768: ("stable-diffusion-v1", "sd_v1"), 1024: ("stable-diffusion-v2", "sd_v2")}


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its UNet in the precision of `settings`, its encoders in fp32."""
    return Model(load_pipeline(base, torch.float32, "cpu"), settings, device)


class Model(UnetModel):
    """A Stable Diffusion base in the shape that the trainer wants (`FamilyModel`)."""

    def __init__(self, pipeline: Any, settings: TrainSection, device: torch.device) -> None:
        super().__init__(pipeline, settings, device)
        self._encoder: Any = pipeline.text_encoder.to(device)
        self._prompts: PromptEncoder | None = PromptEncoder(pipeline.tokenizer, self._encoder)
        with torch.no_grad():
            self._filler = self._prompts.empty().cpu()
        self._width = int(pipeline.unet.config.cross_attention_dim)

    def _text_encoders(self) -> Mapping[str, nn.Module]:
        return {"te": self._encoder}

    def encode_captions(self, texts: Sequence[str]) -> list[Condition]:
        """The text encoder's last states, window by window."""
        if self._prompts is None:
            raise RuntimeError("the text encoder was released while captions still needed it")
        return [{"text": states} for states in self._prompts.encode_all(texts)]

    def stack(self, conditions: Sequence[Condition]) -> Condition:
        """Shorter captions are filled up with windows of the empty one, as the generator does."""
        texts = [condition["text"] for condition in conditions]
        return {"text": stack_prompts(texts, self._filler.to(texts[0].device))}

    def release_encoders(self, keep_text: bool) -> None:
        """Drops the VAE, and the text encoder unless captions are still to come."""
        if not keep_text:
            self._prompts = None
            self._encoder = None
            if self._pipeline is not None:
                self._pipeline.text_encoder = None
        self._release_vae()

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        architecture, version = _ARCHITECTURES.get(self._width, ("stable-diffusion", "sd_other"))
        return {
            "modelspec.architecture": f"{architecture}/lora",
            "ss_base_model_version": version,
            "ss_v2": str(self._width == 1024),
            **super().metadata(),
        }
