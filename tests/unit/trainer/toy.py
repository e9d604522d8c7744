"""A base of a few dozen numbers in the shape of a family, so that what surrounds the network can be tested in
milliseconds: a text encoder that learns, pictures of several shapes, every optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import mean_error
from lora_foundry.families._shared.family import Batch
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.targets import DENOISER, KOHYA, Target

BASE = Base(path=Path("toy"), layout="folder", family="toy", name="toy", identity="toy")


class ToyNetwork(nn.Module):
    """One linear and one 3x3 convolution, told what to do by a text vector."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.blur = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        mixed = self.mix(latents.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.blur(mixed) + text[:, :, None, None]


class ToyText(nn.Module):
    """Letters' mean as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 3)

    def forward(self, text: str) -> Tensor:
        letters = torch.tensor([[ord(letter) % width for width in (2, 3, 5, 7)] for letter in text or " "])
        return self.fc1(letters.float()).mean(dim=0)


class ToyModel:
    """A family model (`FamilyModel`)."""

    side_multiple = 8
    recordable = False
    dtype = torch.float32
    file_format = KOHYA

    def __init__(self, settings: TrainSection) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.network: nn.Module = ToyNetwork().requires_grad_(False)
            self._text = ToyText().requires_grad_(False)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {DENOISER: self.network, "te": self._text}

    def encode_images(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 8)

    def encode_captions(self, texts: Sequence[str]) -> list[Condition]:
        return [{"text": self._text(text)} for text in texts]

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        return {"text": torch.stack([condition["text"] for condition in conditions])}

    def release_encoders(self, keep_text: bool) -> None:
        pass

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        found = [Target(DENOISER, "mix")]
        if settings.conv_rank:
            found.append(Target(DENOISER, "blur"))
        return found + ([Target("te", "fc1")] if settings.text_encoder_rate else [])

    def export_name(self, target: Target) -> str:
        return f"lora_{target.part}_{target.module}"

    def losses(self, batch: Batch) -> Tensor:
        share = batch.timesteps.view(-1, 1, 1, 1)
        noised = (1 - share) * batch.latents + share * batch.noise
        answer = self.network(noised, batch.condition["text"])
        return mean_error((answer - batch.noise).square(), batch.mask)

    def draw(
        self, conditions: Sequence[Condition], frame: tuple[int, int], seed: int, steps: int, cfg: float
    ) -> list[Image.Image]:
        return [Image.new("RGB", frame) for _ in conditions[1:]]

    def metadata(self) -> dict[str, str]:
        return {}
