"""What the flow-matching families share: the type that they compute in; and Z-Image's loss against the library's own
pipeline (Klein's is in test_klein.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_foundry.families._shared import devices, loading
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import FlowProcess
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline
from lora_foundry.families._shared.memory import footprint
from lora_foundry.families._shared.registry import published_name
from tests.unit.trainer import tiny_bases, tiny_qwen
from tests.unit.trainer.conftest import short_section


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(tiny_bases.z_image_folder(tmp_path_factory.mktemp("z_image"))))


@pytest.mark.parametrize(
    ("precision", "has_bf16", "expected"),
    [
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.float32),  # fp16 is what an older GPU takes for it elsewhere
        ("fp16", True, torch.bfloat16),
        ("fp16", False, torch.float32),
        ("fp32", True, torch.float32),
    ],
)
def test_no_flow_matching_base_computes_in_fp16_whose_range_it_leaves(
    base: Base, monkeypatch: pytest.MonkeyPatch, precision: str, has_bf16: bool, expected: torch.dtype
) -> None:
    for module in (devices, loading):
        monkeypatch.setattr(module, "cuda_has_bf16", lambda: has_bf16)
    section = short_section(precision=precision)
    assert load_family(base, section, torch.device("cuda")).dtype == expected
    # The estimate counts in the type that it will be.
    expected_size = footprint(base, short_section(precision="fp32" if expected == torch.float32 else "bf16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert footprint(base, section) == expected_size


@torch.no_grad()
def test_z_images_loss_is_that_of_the_librarys_pipeline(base: Base) -> None:
    pipeline: Any = load_pipeline(base, torch.float32, "cpu")
    model = load_family(base, short_section(), torch.device("cpu"))
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    latents = model.encode_images(pixels)
    config = pipeline.vae.config
    theirs = (pipeline.vae.encode(pixels).latent_dist.mean - config.shift_factor) * config.scaling_factor
    assert torch.allclose(latents, theirs, atol=1e-5)

    texts = ["elara, running", "elara"]
    embeds, _ = pipeline.encode_prompt([*texts], device="cpu", do_classifier_free_guidance=False)
    condition = model.stack(model.encode_captions(texts))
    for row, length, expected in zip(condition["text"], condition["lengths"], embeds, strict=True):
        assert torch.allclose(row[:length], expected, atol=1e-5)

    timesteps, noise = torch.tensor([0.2, 0.7]), torch.randn_like(latents)
    mine = model.losses(Batch(latents, condition, noise, timesteps))
    sigma = torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(timesteps))
    sigma = 6.0 * sigma / (1 + 5.0 * sigma)  # the scheduler's shift
    noised = (1 - sigma).view(-1, 1, 1, 1) * latents + sigma.view(-1, 1, 1, 1) * noise
    answer = pipeline.transformer(list(noised.unsqueeze(2)), 1 - sigma, embeds, return_dict=False)[0]
    target = noise - latents  # the pipeline turns the answer round before its scheduler takes it
    expected = (-torch.stack(list(answer)).squeeze(2) - target).square().mean(dim=(1, 2, 3))
    assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5)


def test_other_programs_names_for_what_a_lora_is_for(tmp_path: Path) -> None:
    """By what each family's own files say of their base; the bundled model's is Stable Diffusion's in width 160."""
    bases = {
        "ZImageBase": tiny_bases.z_image_folder(tmp_path / "z-image-base"),
        "Flux.2 Klein 4B-base": tiny_bases.klein_folder(tmp_path / "klein"),
        "Qwen": tiny_qwen.qwen_image_folder(tmp_path / "qwen-image"),
        "Krea 2": tiny_qwen.krea2_folder(tmp_path / "krea2"),
        "Anima": tiny_qwen.anima_folder(tmp_path),
    }
    distilled_names = {"ZImageBase": "ZImageTurbo", "Flux.2 Klein 4B-base": "Flux.2 Klein 4B"}
    for expected, folder in bases.items():
        found = find_base(str(folder))
        for distilled, name in (
            (False, expected),
            (True, distilled_names.get(expected, expected)),
        ):
            section = short_section(training_adapter="x" if distilled else "")
            model = load_family(
                found.model_copy(update={"distilled": distilled}), section, torch.device("cpu")
            )
            assert published_name(model.metadata()["ss_base_model_version"]).manager == name
    assert published_name("sdxl_base_v1-0") == ("SDXL 1.0", "SDXL")
    assert published_name("sd_v1") == ("SD 1.5", "SD1")
    assert published_name("") == published_name("sd_other") == ("Other", "Unknown")


def test_a_dynamic_shift_grows_with_the_picture_and_a_fixed_one_does_not() -> None:
    dynamic = FlowProcess({"use_dynamic_shifting": True, "shift": 3.0})
    assert dynamic.shift(256) == pytest.approx(1.6487, abs=1e-3)  # e^0.5
    assert dynamic.shift(4096) == pytest.approx(3.1582, abs=1e-3)  # e^1.15
    assert FlowProcess({"shift": 3.0}).shift(256) == FlowProcess({"shift": 3.0}).shift(4096) == 3.0
