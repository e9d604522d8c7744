"""Krea 2 against the library's own pipeline and scheduler: the loss, with captions of unlike length, and the pictures. The
library fills prompts up to 512 words; ours are as long as they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import in_type, load_denoiser, load_pipeline
from tests.unit.families.drawn import (
    CPU,
    PROMPTS,
    by_the_library,
    check_distilled_is_refused,
    check_pictures,
    drawn,
    normalised_latents,
    request,
)
from tests.unit.trainer import tiny_qwen
from tests.unit.trainer.conftest import short_section


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(tiny_qwen.krea2_folder(tmp_path_factory.mktemp("krea2"))))


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
    assert condition["lengths"].tolist() == mask.sum(1).tolist()
    assert len(set(condition["lengths"].tolist())) == 2
    for text, length, theirs_text, real in zip(
        condition["text"], condition["lengths"], embeds, mask, strict=True
    ):
        assert torch.allclose(text[:length], theirs_text[real], atol=1e-5)

    positions, noise = torch.tensor([0.2, 0.7]), torch.randn_like(latents)
    mine = model.losses(Batch(latents, condition, noise, positions))
    high, wide = latents.shape[-2:]
    sigma = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(positions))
    mu = 0.5 + (1.15 - 0.5) * (high * wide // 4 - 256) / (6400 - 256)
    sigma = pipeline.scheduler.time_shift(mu, 1.0, sigma)
    noised = (1 - sigma).view(-1, 1, 1, 1) * latents + sigma.view(-1, 1, 1, 1) * noise
    answer = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noised, 2, 16, high, wide), encoder_hidden_states=embeds, timestep=sigma,
        position_ids=pipeline.prepare_position_ids(embeds.shape[1], high // 2, wide // 2, CPU),
        encoder_attention_mask=mask, return_dict=False,
    )[0]  # fmt: skip
    target = pipeline._pack_latents(noise - latents, 2, 16, high, wide)
    expected = (answer - target).square().mean(dim=(1, 2))
    assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5)


def the_librarys(pipeline: Any, wanted: ImageRequest) -> Any:
    return by_the_library(pipeline, wanted, negative_prompt=wanted.negative, guidance_scale=wanted.cfg - 1)


def test_pictures_are_the_librarys_side_by_side_too(base: Base, pipeline: Any) -> None:
    """Prompts of unlike length are computed together, the shorter one filled up."""
    check_pictures(base, partial(the_librarys, pipeline))


def test_the_distilled_model_is_not_trained_as_it_is(tmp_path: Path) -> None:
    check_distilled_is_refused(tiny_qwen.krea2_folder(tmp_path, distilled=True))


def test_the_fast_model_draws_with_its_own_shift_as_the_library_does(tmp_path: Path) -> None:
    base = find_base(str(tiny_qwen.krea2_folder(tmp_path, distilled=True)))
    plain = request("elara", cfg=1.0)
    expected = the_librarys(load_pipeline(base, torch.float32, "cpu"), plain)
    assert np.abs(drawn(base, plain)[0] - expected).max() <= 1


def test_norms_stay_in_fp32_where_the_rest_is_narrow(base: Base) -> None:
    """Their weights are near zero and one is added, which bf16 would round away; from a folder and after a change of type."""
    network = load_denoiser(base, torch.bfloat16)
    narrowed = in_type(load_denoiser(base, torch.float32), torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in network.named_parameters()}
    assert kinds == {name: tensor.dtype for name, tensor in narrowed.named_parameters()}
    assert kinds["transformer_blocks.0.norm1.weight"] == kinds["txt_in.norm.weight"] == torch.float32
    assert kinds["transformer_blocks.0.attn.to_q.weight"] == torch.bfloat16
