"""The in-process generator: pictures from a Stable Diffusion base with the diffusers library."""

from lora_foundry.backends.diffusers.generator import DiffusersGenerator

__all__ = ["DiffusersGenerator"]
