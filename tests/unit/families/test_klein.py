"""FLUX.2 Klein against the library's own pipeline and scheduler: the loss, the pictures, and the edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline
from tests.unit.families.drawn import CPU, by_the_library, check_distilled_is_refused, drawn, request
from tests.unit.trainer import tiny_bases
from tests.unit.trainer.conftest import short_section

REQUEST = request("elara, running", negative="")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(tiny_bases.klein_folder(tmp_path_factory.mktemp("klein"))))


@pytest.fixture(scope="module")
def pipeline(base: Base) -> Any:
    return load_pipeline(base, torch.float32, "cpu")


@torch.no_grad()
def test_the_loss_is_that_of_the_librarys_pipeline_and_scheduler(base: Base, pipeline: Any) -> None:
    model = load_family(base, short_section(), CPU)
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = model.encode_images(pixels)
    theirs = pipeline._encode_vae_image(pixels, torch.Generator())
    assert torch.allclose(latents, theirs, atol=1e-5)

    texts = ["elara, running", "elara"]
    embeds, text_ids = pipeline.encode_prompt(texts, device="cpu")
    condition = model.stack(model.encode_captions(texts))
    assert torch.allclose(condition["text"], embeds, atol=1e-5)

    positions, noise = torch.tensor([0.2, 0.7]), torch.randn_like(latents)
    mine = model.losses(Batch(latents, condition, noise, positions))
    count = latents.shape[-2] * latents.shape[-1]
    sigma = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(positions))
    mu = 0.5 + (1.15 - 0.5) * (count - 256) / (4096 - 256)
    sigma = pipeline.scheduler.time_shift(mu, 1.0, sigma)
    noised = (1 - sigma).view(-1, 1, 1, 1) * latents + sigma.view(-1, 1, 1, 1) * noise
    ids = pipeline._prepare_latent_ids(noised)
    answer = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noised), timestep=sigma, guidance=None, encoder_hidden_states=embeds,
        txt_ids=text_ids, img_ids=ids, return_dict=False,
    )[0]  # fmt: skip
    target = pipeline._pack_latents(noise - latents)
    expected = (answer - target).square().mean(dim=(1, 2))
    assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5)


def the_librarys(pipeline: Any, **given: Any) -> Any:
    return by_the_library(pipeline, REQUEST, guidance_scale=REQUEST.cfg, **given)


def test_a_picture_is_the_librarys(base: Base, pipeline: Any) -> None:
    assert np.abs(drawn(base, REQUEST)[0] - the_librarys(pipeline)).max() <= 1


def test_a_reference_is_edited_as_the_library_does_it(base: Base, pipeline: Any, tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    Image.effect_noise((96, 64), 60).convert("RGB").save(path)
    (edited,) = drawn(base, REQUEST, reference=ReferenceUse(path=path, strength=0.5))
    with Image.open(path) as image:
        assert np.abs(edited - the_librarys(pipeline, image=[image.convert("RGB")])).max() <= 1
    assert np.abs(edited - drawn(base, REQUEST)[0]).max() > 2


def test_the_distilled_model_is_not_trained_as_it_is(tmp_path: Path) -> None:
    check_distilled_is_refused(tiny_bases.klein_folder(tmp_path, distilled=True))
