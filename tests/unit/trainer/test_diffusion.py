"""Noise, target and weights against their definitions and against diffusers' own schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.diffusion import NoiseProcess, snr_weights

CPU = torch.device("cpu")
SD: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip
STEPS = torch.tensor([0, 250, 700, 999])


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 4, 8, 8, generator=generator)


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_noising_and_velocity_are_diffusers_own(zero_terminal: bool) -> None:
    config = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_terminal}
    ours, theirs = NoiseProcess(config, 0, CPU), DDPMScheduler(**config)
    latents, noise = tensors()
    assert torch.allclose(
        ours.add_noise(latents, noise, STEPS), theirs.add_noise(latents, noise, STEPS), atol=1e-5
    )
    velocity = theirs.get_velocity(latents, noise, STEPS)
    assert torch.allclose(ours.target(latents, noise, STEPS), velocity, atol=1e-5)


def test_a_zero_terminal_schedule_ends_in_pure_noise_and_a_plain_one_does_not() -> None:
    latents, noise = tensors()
    config = {**SD, "prediction_type": "v_prediction"}
    last = torch.full((4,), 999)
    plain = NoiseProcess(config, 0, CPU).add_noise(latents, noise, last)
    zero = NoiseProcess({**config, "rescale_betas_zero_snr": True}, 0, CPU).add_noise(latents, noise, last)
    assert torch.equal(zero, noise)
    assert not torch.allclose(plain, noise, atol=0.01)


def test_epsilon_is_the_noise_itself() -> None:
    latents, noise = tensors()
    assert torch.equal(NoiseProcess(SD, 5, CPU).target(latents, noise, STEPS), noise)


def test_min_snr_weights_are_the_same_loss_on_the_latent_for_both_predictions() -> None:
    """An error e in the latent is e * sqrt(snr) in epsilon and e * sqrt(snr + 1) in v; the weight must undo that."""
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0], dtype=torch.float64)
    on_latent = snr.clamp(max=5.0)
    assert torch.allclose(snr_weights(snr, "epsilon", 5.0) * snr, on_latent)
    assert torch.allclose(snr_weights(snr, "v_prediction", 5.0) * (snr + 1), on_latent)


def test_no_weight_is_infinite_where_no_signal_is_left() -> None:
    nothing = torch.zeros(1, dtype=torch.float64)
    assert snr_weights(nothing, "epsilon", 5.0).item() == 1.0
    assert snr_weights(nothing, "v_prediction", 5.0).item() == 0.0


def test_gamma_zero_weighs_all_alike() -> None:
    assert torch.equal(NoiseProcess(SD, 0, CPU).weights(STEPS), torch.ones(4))
    assert not torch.equal(NoiseProcess(SD, 5, CPU).weights(STEPS), torch.ones(4))


def test_positions_cover_all_timesteps() -> None:
    process = NoiseProcess(SD, 0, CPU)
    assert process.timesteps(torch.tensor([0.0, 0.5, 0.9999, 1.0])).tolist() == [0, 500, 999, 999]


def test_an_unknown_prediction_is_named() -> None:
    with pytest.raises(BaseModelError, match=r"'sample'.*epsilon, v_prediction"):
        NoiseProcess({**SD, "prediction_type": "sample"}, 0, CPU)
