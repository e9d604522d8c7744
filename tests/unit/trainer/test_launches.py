"""A step launches no more kernels than it did: at small batches a GPU waits for them. Counted on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.launches import META, count_step, unet, z_image
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.unet_targets import unet_targets

pytestmark = pytest.mark.slow


def small_unet() -> tuple[nn.Module, dict[str, Any]]:
    """Two blocks with attention, as Stable Diffusion has them."""
    from diffusers import UNet2DConditionModel

    with META:
        network: Any = UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), cross_attention_dim=24, norm_num_groups=8, layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=8, use_linear_projection=True,
        )  # fmt: skip
        half = {"dtype": torch.bfloat16}
        given = {
            "sample": torch.zeros(1, 4, 8, 8, **half),
            "timestep": torch.zeros(1, dtype=torch.int64),
            "encoder_hidden_states": torch.zeros(1, 7, 24, **half),
            "return_dict": False,
        }
    return network.to(torch.bfloat16).requires_grad_(False), given


@pytest.mark.parametrize(("network", "most"), [("unet", 722), ("transformer", 1488)])
def test_a_step_launches_no_more_than_it_did(network: str, most: int) -> None:
    made = small_unet if network == "unet" else lambda: z_image(256, 1, layers=2)
    launches = count_step(*made())
    assert launches.count <= most
    matrix_by_matrix = count_step(*made(), half_copies=False)
    assert launches.count < matrix_by_matrix.count - 100


def test_convolutions_too_are_the_modules_that_sd_scripts_trains() -> None:
    """Its log says "create LoRA for U-Net: 192 modules" for Stable Diffusion 1.5, and 278 with `conv_dim`."""
    network, _ = unet("sd", "sd", 512, 1)
    assert len(unet_targets(network, TrainSection())) == 192
    assert len(unet_targets(network, TrainSection.model_validate({"conv_rank": 8}))) == 278
