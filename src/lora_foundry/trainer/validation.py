"""The loss on pictures that are never trained on, always with the same noise at the same levels: unlike the loss of
the steps it can be compared from one time to the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lora_foundry.families._shared.family import FamilyModel
from lora_foundry.files import storage
from lora_foundry.trainer.draws import derive_seed
from lora_foundry.trainer.material import Material

LEVELS = (0.125, 0.375, 0.625, 0.875)
_HEADER = "step,loss\n"


class Validation:
    """Measures the held-out pictures and keeps the figures in validation.csv, cut back to `start`."""

    def __init__(
        self, model: FamilyModel, material: Material, held_out: Sequence[tuple[int, str]], seed: int
    ) -> None:
        self._model, self._material, self._held_out, self._seed = model, material, held_out, seed

    @torch.no_grad()
    def measure(self) -> float:
        """The mean loss over all held-out pictures and noise levels."""
        losses = []
        for index, caption in self._held_out:
            latent = self._material.latents((index, False))
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "validation", index))
            count = len(LEVELS)
            noise = torch.randn(count, *latent.shape, generator=generator)
            condition = self._model.stack([self._material.captions.one(caption)] * count)
            mask = self._material.mask(index, latent)
            losses.append(
                self._model.losses(
                    latent.expand(count, *latent.shape),
                    condition,
                    noise,
                    torch.tensor(LEVELS),
                    None if mask is None else mask.expand(count, *mask.shape),
                ).mean()
            )
        return float(torch.stack(losses).mean())


def add_row(path: Path, step: int, loss: float) -> None:
    """Puts a figure into the file at its step; figures of later steps, which are to come again, go."""
    rows = {row[0]: row[1] for row in read_rows(path) if row[0] < step}
    rows[step] = loss
    text = "".join(f"{number},{rows[number]:.6g}\n" for number in sorted(rows))
    storage.write_text(path, _HEADER + text)


def read_rows(path: Path) -> list[tuple[int, float]]:
    """The figures in the file, by step; none where there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except FileNotFoundError:
        return []
    return [(int(line.split(",")[0]), float(line.split(",")[1])) for line in lines]
