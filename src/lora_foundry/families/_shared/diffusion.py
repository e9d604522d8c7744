"""The noise process that Stable Diffusion and SDXL share, and that of flow-matching transformers: how a latent is
noised, what the network is to predict, and how much each noise level counts. It is read from the scheduler's
configuration, so that a v-prediction or zero-terminal-SNR base is trained as it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lora_foundry.errors import BaseModelError

_LEAST_SHOWN = 0.01  # a mask that shows next to nothing must not blow up the loss
_EDGE = 1 - 1e-6  # the normal law's ends lie at infinity
PREDICTIONS = ("epsilon", "v_prediction")


class Process(Protocol):
    """How a base's latents are noised. `levels` (n,) is how far each is, as the base's own network is told it."""

    def add_noise(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The noised latents that the network sees."""
        ...

    def target(self, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What the network is to answer."""
        ...

    def weights(self, levels: Tensor) -> Tensor:
        """How much each sample counts (n,)."""
        ...


class NoiseProcess:
    """A variance-preserving noise schedule with its training target and min-SNR weights."""

    def __init__(self, scheduler: Mapping[str, Any], min_snr_gamma: float, device: torch.device) -> None:
        from diffusers import DDPMScheduler

        self.prediction = str(scheduler.get("prediction_type", "epsilon"))
        if self.prediction not in PREDICTIONS:
            raise BaseModelError(
                f"The base predicts {self.prediction!r}, which this trainer does not know; known: "
                f"{', '.join(PREDICTIONS)}."
            )
        self.zero_terminal = bool(scheduler.get("rescale_betas_zero_snr", False))
        cumulative = DDPMScheduler.from_config(dict(scheduler)).alphas_cumprod.double()
        self.levels = len(cumulative)
        self._signal = cumulative.sqrt().float().to(device)
        self._noise = (1 - cumulative).sqrt().float().to(device)
        snr = cumulative / (1 - cumulative)
        self._weights = snr_weights(snr, self.prediction, min_snr_gamma).float().to(device)

    def timesteps(self, positions: Tensor) -> Tensor:
        """Positions in 0..1 as timesteps."""
        return (positions * self.levels).long().clamp(max=self.levels - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noised latents that the network sees."""
        return self._of(self._signal, timesteps) * latents + self._of(self._noise, timesteps) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to answer."""
        if self.prediction == "epsilon":
            return noise
        return self._of(self._signal, timesteps) * noise - self._of(self._noise, timesteps) * latents

    def weights(self, timesteps: Tensor) -> Tensor:
        """How much each sample counts (n,)."""
        return self._weights[timesteps]

    @staticmethod
    def _of(values: Tensor, timesteps: Tensor) -> Tensor:
        return values[timesteps].view(-1, 1, 1, 1)


class FlowProcess:
    """A straight line from picture to noise (rectified flow). How far along it a sample lies follows the logit-normal
    law (Esser et al. 2024), moved towards noise by the shift that the base was made with: a fixed one, or one that grows
    with the picture."""

    def __init__(self, scheduler: Mapping[str, Any]) -> None:
        self._scheduler = scheduler

    def shift(self, tokens: int) -> float:
        """The shift for a picture of so many tokens: e^mu, mu on a line between the scheduler's two sizes (Esser et al.
        2024), or the fixed one."""
        config = self._scheduler
        if not config.get("use_dynamic_shifting"):
            return float(config.get("shift", 1.0))
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return math.exp(least + (most - least) * (tokens - low) / (high - low))

    def noise_shares(self, positions: Tensor, tokens: int) -> Tensor:
        """Positions in 0..1 (n,), evenly spread, as shares of noise in 0..1, for pictures of so many tokens."""
        shift = self.shift(tokens)
        normal = math.sqrt(2) * torch.erfinv((2 * positions - 1).clamp(-_EDGE, _EDGE))
        share = torch.sigmoid(normal)
        return shift * share / (1 + (shift - 1) * share)

    @staticmethod
    def add_noise(latents: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """The noised latents that the network sees."""
        share = shares.view(-1, 1, 1, 1)
        return (1 - share) * latents + share * noise

    @staticmethod
    def target(latents: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
        """The line's direction, towards noise."""
        return noise - latents

    @staticmethod
    def weights(shares: Tensor) -> Tensor:
        """All count alike: the law of the shares weighs them."""
        return torch.ones_like(shares)


def snr_weights(snr: Tensor, prediction: str, gamma: float) -> Tensor:
    """Min-SNR-gamma (Hang et al. 2023): min(SNR, gamma) on the error of the predicted latent, brought to the
    network's own target: divided by SNR for epsilon, by SNR + 1 for v. Where no signal is left (SNR 0, the
    end of a zero-terminal-SNR schedule) the epsilon form is taken at its limit, 1. A gamma of 0 turns it
    off."""
    if gamma <= 0:
        return torch.ones_like(snr)
    capped = snr.clamp(max=gamma)
    if prediction == "v_prediction":
        return capped / (snr + 1)
    return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))


def mean_error(error: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each sample's error (n, c, h, w) as (n,); with a mask (n, 1, h, w) in 0..1 the mean over what it
    shows, so that a small figure counts as much as a large one."""
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    mask = mask.to(error.device)
    shown = mask.mean(dim=(1, 2, 3)).clamp(min=_LEAST_SHOWN)
    return (error * mask).mean(dim=(1, 2, 3)) / shown
