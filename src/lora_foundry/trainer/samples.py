"""Pictures drawn while training, so that a person sees where it goes: the same prompts and seeds with every export that
is kept."""

from __future__ import annotations

from pathlib import Path

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.family import FamilyModel
from lora_foundry.files import storage
from lora_foundry.files.paths import training_sample
from lora_foundry.trainer.material import Material


def sample_texts(settings: TrainSection, trigger: str) -> list[str]:
    """The prompts as they are drawn."""
    return [prompt.replace("{trigger}", trigger) for prompt in settings.sample_prompts]


def draw_samples(
    model: FamilyModel, material: Material, settings: TrainSection, trigger: str, workdir: Path, step: int
) -> list[Path]:
    """Draws the sample prompts with the network as it stands into training/samples/step-NNNN-K.png."""
    texts = sample_texts(settings, trigger)
    if not texts:
        return []
    conditions = [material.captions.one(text) for text in ["", *texts]]
    images = model.draw(
        conditions, material.frames[0], settings.seed, settings.sample_steps, settings.sample_cfg
    )
    paths = [training_sample(workdir, step, number) for number in range(1, len(images) + 1)]
    for path, image in zip(paths, images, strict=True):
        storage.write_aside(path, lambda aside, picture=image: picture.save(aside, format="PNG"))  # type: ignore[misc]
    return paths
