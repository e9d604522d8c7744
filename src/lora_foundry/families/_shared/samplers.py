"""The samplers people know by name, each built from the base's own noise schedule: a v-prediction or
zero-terminal-SNR base sampled with the defaults of Stable Diffusion 1.5 gives grey mud."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

from lora_foundry.errors import InputError, did_you_mean

logger = logging.getLogger(__name__)

# Other spacings that a base's configuration may carry; only one may be on.
_OFF = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
SAMPLERS = ("dpmpp_2m", "euler", "euler_ancestral", "ddim")


class KarrasEulerAncestralScheduler(EulerAncestralDiscreteScheduler):
    """Euler ancestral on Karras sigmas, which the library's own class does not offer."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        twin = EulerDiscreteScheduler.from_config(self.config, **{**_OFF, "use_karras_sigmas": True})
        twin.set_timesteps(num_inference_steps, device)
        self.timesteps, self.sigmas = twin.timesteps, twin.sigmas


def make_scheduler(base: Mapping[str, Any], sampler: str, scheduler: str) -> Any:
    """A fresh scheduler for `sampler`, with the betas, prediction type and timestep spacing of the `base`'s
    own.

    Karras spacing is left out where it means nothing: a zero-terminal-SNR base starts at infinite noise,
    from which the Karras formula would spend most of its steps on pure noise; and DDIM walks the training
    timesteps themselves.
    """
    karras = scheduler == "karras"
    if karras and (base.get("rescale_betas_zero_snr") or sampler == "ddim"):
        why = "DDIM has no such spacing" if sampler == "ddim" else "the base has a zero terminal SNR"
        logger.info("'karras' is not used since %s; the base's own spacing is", why)
        karras = False
    spacing = {**_OFF, "use_karras_sigmas": karras}
    match sampler:
        case "dpmpp_2m":
            options = {
                "algorithm_type": "dpmsolver++",
                "solver_order": 2,
                "solver_type": "midpoint",
                "thresholding": False,
                "final_sigmas_type": "zero",
                "lower_order_final": True,
                "euler_at_final": False,
                "use_flow_sigmas": False,
            }
            return DPMSolverMultistepScheduler.from_config(base, **spacing, **options)
        case "euler":
            return EulerDiscreteScheduler.from_config(base, **spacing)
        case "euler_ancestral":
            kind = KarrasEulerAncestralScheduler if karras else EulerAncestralDiscreteScheduler
            return kind.from_config(base)
        case "ddim":
            return DDIMScheduler.from_config(base, clip_sample=False, thresholding=False)
        case _:
            raise InputError(f"There is no sampler {sampler!r}; {did_you_mean(sampler, SAMPLERS)}")
