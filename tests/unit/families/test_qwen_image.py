"""Qwen-Image against the library's own pipeline and scheduler: the loss, with captions of unlike length, and the pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline
from tests.unit.families.drawn import (
    CPU,
    PROMPTS,
    by_the_library,
    check_distilled_is_refused,
    check_pictures,
    normalised_latents,
)
from tests.unit.trainer import tiny_qwen
from tests.unit.trainer.conftest import short_section


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(tiny_qwen.qwen_image_folder(tmp_path_factory.mktemp("qwen_image"))))


@pytest.fixture(scope="module")
def pipeline(base: Base) -> Any:
    return load_pipeline(base, torch.float32, "cpu")


@torch.no_grad()
def test_the_loss_is_that_of_the_librarys_pipeline_and_scheduler(base: Base, pipeline: Any) -> None:
    model = load_family(base, short_section(), CPU)
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = model.encode_images(pixels)
    assert torch.allclose(latents, normalised_latents(pipeline.vae, pixels), atol=1e-5)

    embeds, mask = pipeline.encode_prompt(list(PROMPTS), device="cpu")
    condition = model.stack(model.encode_captions(PROMPTS))
    assert torch.allclose(condition["text"], embeds, atol=1e-5)
    assert condition["lengths"].tolist() == mask.sum(1).tolist()
    assert not mask.all()

    positions, noise = torch.tensor([0.2, 0.7]), torch.randn_like(latents)
    mine = model.losses(Batch(latents, condition, noise, positions))
    high, wide = latents.shape[-2:]
    sigma = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(positions))
    mu = 0.5 + (0.9 - 0.5) * (high * wide // 4 - 256) / (8192 - 256)
    sigma = pipeline.scheduler.time_shift(mu, 1.0, sigma)
    noised = (1 - sigma).view(-1, 1, 1, 1) * latents + sigma.view(-1, 1, 1, 1) * noise
    answer = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noised, 2, 16, high, wide), timestep=sigma, guidance=None,
        encoder_hidden_states_mask=mask, encoder_hidden_states=embeds, img_shapes=[[(1, high // 2, wide // 2)]] * 2,
        return_dict=False,
    )[0]  # fmt: skip
    target = pipeline._pack_latents(noise - latents, 2, 16, high, wide)
    expected = (answer - target).square().mean(dim=(1, 2))
    assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5)


def the_librarys(pipeline: Any, wanted: ImageRequest) -> Any:
    return by_the_library(pipeline, wanted, negative_prompt=wanted.negative, true_cfg_scale=wanted.cfg)


def test_pictures_are_the_librarys_side_by_side_too(base: Base, pipeline: Any) -> None:
    """Prompts of unlike length are computed together, the shorter one filled up."""
    check_pictures(base, partial(the_librarys, pipeline))


def test_the_distilled_model_is_not_trained_as_it_is(tmp_path: Path) -> None:
    check_distilled_is_refused(tiny_qwen.qwen_image_folder(tmp_path, distilled=True))
