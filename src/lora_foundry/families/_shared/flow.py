"""What the flow-matching families have in common before anything is loaded: settings that mean nothing to them."""

from __future__ import annotations

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError


def refuse_unet_settings(settings: TrainSection, name: str) -> None:
    """Raises InputError for settings that speak of noise levels, CLIP or convolutions. name: the family in words."""
    for wrong, sentence in (
        (
            settings.min_snr_gamma > 0,
            "train.min_snr_gamma weighs noise levels that a flow-matching model has not",
        ),
        (
            settings.text_encoder_rate > 0,
            f"train.text_encoder_rate is for CLIP; {name}'s language model stays as it is",
        ),
        (settings.conv_rank > 0, "train.conv_rank is for convolutions, of which a transformer has none"),
        (settings.noise_offset > 0, f"train.noise_offset is for bases that cannot reach black; {name} can"),
    ):
        if wrong:
            raise InputError(f"{sentence}; set it to 0.")
