"""What the tests of the families share that compare themselves with the library's own pipelines: the pictures that are asked
for and drawn, the latents of a picture, and that a distilled base is not trained as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import quiet_libraries
from tests.unit.trainer.conftest import short_section

CPU = torch.device("cpu")
PROMPTS = ("elara, running", "elara")  # of unlike length


def request(prompt: str, cfg: float = 3.0, negative: str = "blurred") -> ImageRequest:
    return ImageRequest(
        key=prompt, prompt=prompt, negative=negative, seed=3, width=64, height=96, steps=2, cfg=cfg, sampler="euler",
        scheduler="normal",
    )  # fmt: skip


def drawn(base: Base, *requests: ImageRequest, reference: ReferenceUse | None = None) -> list[Any]:
    """Our pictures of one batch, as numbers."""
    generator = DiffusersGenerator(base, GenerateSection(width=64, height=64, suffix="", negative=""), "cpu")
    made = generator.generate([requests], None, reference)
    return [np.asarray(each.image, dtype=float) for each in made]


def by_the_library(pipeline: Any, wanted: ImageRequest, **given: Any) -> Any:
    """The library's picture, as numbers; `given` are the arguments that are the pipeline's own."""
    with quiet_libraries():
        image = pipeline(
            prompt=wanted.prompt, width=wanted.width, height=wanted.height, num_inference_steps=wanted.steps,
            generator=torch.Generator().manual_seed(wanted.seed), **given,
        ).images[0]  # fmt: skip
    return np.asarray(image, dtype=float)


def check_pictures(base: Base, library: Callable[[ImageRequest], Any]) -> None:
    """Prompts of unlike length are computed together, the shorter one filled up, and give what the library draws of each."""
    wanted = [request(prompt) for prompt in PROMPTS]
    made = drawn(base, *wanted)
    for picture, each in zip(made, wanted, strict=True):
        assert np.abs(picture - library(each)).max() <= 1
    assert np.abs(made[0] - made[1]).max() > 2
    plain = request("elara", cfg=1.0)
    assert np.abs(drawn(base, plain)[0] - library(plain)).max() <= 1


def normalised_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of a VAE for films (n, c, h, w), by the statistics in its configuration."""
    mean, spread = (
        torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std)
    )
    latents: Tensor = (vae.encode(pixels.unsqueeze(2)).latent_dist.mean - mean) / spread
    return latents.squeeze(2)


def check_distilled_is_refused(folder: Path) -> None:
    base = find_base(str(folder))
    assert base.distilled
    with pytest.raises(InputError, match=r"distilled .*model\.train_base.*train\.training_adapter"):
        load_family(base, short_section(), CPU)
