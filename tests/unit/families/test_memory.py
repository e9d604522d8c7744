"""The one estimate is true: within a tenth of what the trainer's own step takes at full size on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.memory import footprint
from tests.unit.families.meter import META, full_size, step_bytes

pytestmark = pytest.mark.slow


def condition(
    count: int, tokens: int, width: int | tuple[int, ...], **others: int
) -> dict[str, torch.Tensor]:
    wide = (width,) if isinstance(width, int) else width
    named = {name: torch.empty(count, size, device=META) for name, size in others.items()}
    return named | {
        "text": torch.empty(count, tokens, *wide, device=META),
        "lengths": torch.tensor([tokens] * count),
    }


# Family, configuration, the latents' channels and the pixels that one stands for, settings, and the condition's sizes.
CASES: dict[str, tuple[str, str, tuple[int, int], dict[str, Any], dict[str, Any]]] = {
    "sd 512": ("sd", "sd", (4, 8), {"resolution": 512}, {"tokens": 77, "width": 768}),
    "sdxl 1024 checkpointed": (
        "sdxl", "sdxl", (4, 8), {"resolution": 1024, "gradient_checkpointing": True},
        {"tokens": 77, "width": 2048, "pooled": 1280},
    ),
    "z_image 1024 checkpointed": (
        "z_image", "base", (16, 8),
        {"resolution": 1024, "gradient_checkpointing": True, "targets": ("attention", "feed_forward")},
        {"tokens": 128, "width": 2560},
    ),
    "klein 512": (
        "klein", "base", (128, 16), {"resolution": 512, "targets": ("attention", "feed_forward")},
        {"tokens": 512, "width": 7680},
    ),
    "klein 1024 checkpointed": (
        "klein", "base", (128, 16),
        {"resolution": 1024, "gradient_checkpointing": True, "targets": ("attention", "feed_forward")},
        {"tokens": 512, "width": 7680},
    ),
    "qwen_image 512": (
        "qwen_image", "base", (16, 8), {"resolution": 512, "targets": ("attention", "feed_forward")},
        {"tokens": 128, "width": 3584},
    ),
    "qwen_image 1024 checkpointed": (
        "qwen_image", "base", (16, 8),
        {"resolution": 1024, "gradient_checkpointing": True, "targets": ("attention", "feed_forward")},
        {"tokens": 128, "width": 3584},
    ),
    "anima 512": (
        "anima", "base", (16, 8), {"resolution": 512, "targets": ("attention", "feed_forward")},
        {"tokens": 512, "width": 1024},
    ),
    "anima 1024 checkpointed": (
        "anima", "base", (16, 8),
        {"resolution": 1024, "gradient_checkpointing": True, "targets": ("attention", "feed_forward")},
        {"tokens": 512, "width": 1024},
    ),
    "krea2 512": (
        "krea2", "raw", (16, 8), {"resolution": 512, "targets": ("attention", "feed_forward")},
        {"tokens": 128, "width": (12, 2560)},
    ),
    "krea2 1024 checkpointed": (
        "krea2", "raw", (16, 8),
        {"resolution": 1024, "gradient_checkpointing": True, "targets": ("attention", "feed_forward")},
        {"tokens": 128, "width": (12, 2560)},
    ),
}  # fmt: skip
# The same with a base that is quantised, streamed, or both.
SMALLER: dict[str, dict[str, Any]] = {
    "sdxl 1024 checkpointed": {"quantise": "int8", "streamed": 0.5},
    "z_image 1024 checkpointed": {"quantise": "nf4"},
    "klein 1024 checkpointed": {"streamed": 1.0},
}


@pytest.mark.parametrize(("case", "smaller"), [*((case, {}) for case in CASES), *SMALLER.items()])
def test_the_estimate_is_what_the_meta_device_counts(case: str, smaller: dict[str, Any]) -> None:
    if smaller.get("quantise") == "nf4":
        pytest.importorskip("bitsandbytes")
    family, configuration, latents, chosen, text = CASES[case]
    base = full_size(family, configuration)
    settings = TrainSection.model_validate(
        {"precision": "bf16", "rank": 16, "min_snr_gamma": 0.0, "batch_size": 1} | chosen | smaller
    )
    resident, peak = step_bytes(base, settings, condition(1, **text), *latents)
    estimated = footprint(base, settings)
    assert estimated.total - estimated.runtime == pytest.approx(resident + peak, rel=0.1)
