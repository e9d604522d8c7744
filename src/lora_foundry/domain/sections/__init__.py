"""The sections of a recipe, one module each, beside no other code, so that a stage's options are found in one place."""

from lora_foundry.domain.sections.base import Section
from lora_foundry.domain.sections.caption import CaptionSection
from lora_foundry.domain.sections.curate import CurateSection
from lora_foundry.domain.sections.dataset import DatasetSection
from lora_foundry.domain.sections.evaluate import EvaluateSection
from lora_foundry.domain.sections.generate import GenerateSection
from lora_foundry.domain.sections.model import ModelSection
from lora_foundry.domain.sections.publish import PublishSection
from lora_foundry.domain.sections.train import TrainSection

__all__ = [
    "CaptionSection",
    "CurateSection",
    "DatasetSection",
    "EvaluateSection",
    "GenerateSection",
    "ModelSection",
    "PublishSection",
    "Section",
    "TrainSection",
]
