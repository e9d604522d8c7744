"""Anima against the library's own modular pipeline and scheduler: the loss, the pictures, prompts with weights, and what is
said of its files. The library's transformer asks torchvision to enlarge a mask of zeros; here another way stands in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers import transformer_cosmos
from torch.nn import functional
from transformers import BatchEncoding

from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline, quiet_libraries
from lora_foundry.families.anima.prompts import AnimaPrompts
from tests.unit.families.drawn import CPU, PROMPTS, check_distilled_is_refused, check_pictures
from tests.unit.trainer import tiny_qwen
from tests.unit.trainer.conftest import short_section


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(tiny_qwen.anima_folder(tmp_path_factory.mktemp("anima"))))


@pytest.fixture
def modular(monkeypatch: pytest.MonkeyPatch) -> Any:
    def resize(mask: torch.Tensor, size: list[int], **given: Any) -> torch.Tensor:
        return functional.interpolate(mask, size=size, mode="nearest")

    stand_in = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", stand_in, raising=False)
    return tiny_qwen.anima_modular()


@torch.no_grad()
def test_the_loss_is_that_of_the_librarys_pipeline_and_scheduler(base: Base, modular: Any) -> None:
    model = load_family(base, short_section(), CPU)
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = model.encode_images(pixels)
    from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
    from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep, encode_vae_image

    theirs = encode_vae_image(pixels, modular.vae, torch.Generator(), CPU, torch.float32)
    assert torch.allclose(latents, theirs.squeeze(2), atol=1e-5)

    given = AnimaTextEncoderStep.encode_prompt(modular, list(PROMPTS), prepare_unconditional_embeds=False)
    embeds = AnimaTextConditioningStep._condition_prompt_embeds(
        modular, given["qwen_prompt_embeds"], given["qwen_attention_mask"], given["t5_input_ids"],
        given["t5_attention_mask"], CPU, torch.float32, torch.float32,
    )  # fmt: skip
    condition = model.stack(model.encode_captions(PROMPTS))
    assert condition["text"].shape == (2, 32, 24)
    assert torch.allclose(condition["text"], embeds, atol=1e-5)

    positions, noise = torch.tensor([0.2, 0.7]), torch.randn_like(latents)
    mine = model.losses(Batch(latents, condition, noise, positions))
    sigma = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(positions))
    sigma = 3.0 * sigma / (1 + 2.0 * sigma)  # the scheduler's shift
    noised = (1 - sigma).view(-1, 1, 1, 1) * latents + sigma.view(-1, 1, 1, 1) * noise
    answer = modular.transformer(
        hidden_states=noised.unsqueeze(2), timestep=sigma, encoder_hidden_states=embeds,
        padding_mask=torch.zeros(1, 1, 64, 96), return_dict=False,
    )[0]  # fmt: skip
    expected = (answer.squeeze(2) - (noise - latents)).square().mean(dim=(1, 2, 3))
    assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5)


def the_librarys(modular: Any, wanted: ImageRequest) -> Any:
    from diffusers.guiders import ClassifierFreeGuidance

    with quiet_libraries():
        modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=wanted.cfg))
        image = modular(
            prompt=wanted.prompt, negative_prompt=wanted.negative, width=wanted.width, height=wanted.height,
            num_inference_steps=wanted.steps, generator=torch.Generator().manual_seed(wanted.seed), output="images",
        )[0]  # fmt: skip
    return np.asarray(image, dtype=float)


def test_pictures_are_the_librarys_side_by_side_too(base: Base, modular: Any) -> None:
    check_pictures(base, partial(the_librarys, modular))


@torch.no_grad()
def test_brackets_weigh_the_words_that_the_adapter_asks_about(base: Base) -> None:
    prompts = AnimaPrompts(load_pipeline(base, torch.float32, "cpu"))
    texts = ["(elara:1.5) running", "(elara:0.5) running", r"elara \(series\)", "elara (series)"]
    much, little, escaped, bracketed = (each["text"] for each in prompts.encode_all(texts, weighted=True))
    (caption,) = (each["text"] for each in prompts.encode_all([texts[2]]))
    changed = ~torch.isclose(much, little).all(-1)
    assert (
        0 < changed.sum() < (much.abs().sum(-1) > 0).sum()
    )  # the rest of the words and the closing token are the same
    assert torch.allclose(much[changed], 3 * little[changed], atol=1e-5)
    assert not torch.allclose(escaped, bracketed)
    assert torch.allclose(caption, escaped)


@torch.no_grad()
def test_a_prompt_of_no_words_is_what_the_library_makes_of_it(base: Base, modular: Any) -> None:
    """Qwen's tokenizer gives nothing for it, where the tiny one's gives its two marks."""
    from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
    from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

    silent = BatchEncoding(
        {"input_ids": torch.zeros(1, 0).long(), "attention_mask": torch.zeros(1, 0).long()}
    )
    pipeline = load_pipeline(base, torch.float32, "cpu")
    pipeline.tokenizer = lambda *texts, **given: silent
    (ours,) = AnimaPrompts(pipeline).encode_all([""])
    words = modular.t5_tokenizer([""], return_tensors="pt")
    parts: Any = SimpleNamespace(tokenizer=pipeline.tokenizer, text_encoder=modular.text_encoder)
    embeds, mask = AnimaTextEncoderStep._get_qwen_prompt_embeds(parts, "", 512, CPU, torch.float32)
    theirs = AnimaTextConditioningStep._condition_prompt_embeds(
        modular, embeds, mask, words.input_ids, words.attention_mask, CPU, torch.float32, torch.float32
    )
    assert torch.isfinite(ours["text"]).all()
    assert torch.allclose(ours["text"], theirs[0], atol=1e-5)


def test_the_distilled_model_is_not_trained_as_it_is(tmp_path: Path) -> None:
    check_distilled_is_refused(tiny_qwen.anima_folder(tmp_path, distilled=True))
