"""Which keys ComfyUI takes, told from the checkpoint's tensors alone. What a real server took and left out of each of
these forms is recorded in docs/guide/comfyui.md; here the names are checked against diffusers' own modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.numpy import save_file

from lora_foundry.backends.comfyui.keys import check_keys, loaded_modules, module_of
from lora_foundry.errors import VerificationError

UNET = "model.diffusion_model."
# Two levels, two blocks each, as a file in Stability's layout has them; the numbers do not matter here.
LDM = [
    "time_embed.0", "time_embed.2", "input_blocks.0.0", "input_blocks.1.0.in_layers.2", "input_blocks.1.0.emb_layers.1",
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "input_blocks.2.0.out_layers.3", "input_blocks.2.1.proj_in",
    "input_blocks.3.0.op", "input_blocks.4.0.skip_connection", "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
    "input_blocks.5.0.in_layers.2", "middle_block.0.in_layers.2", "middle_block.1.proj_out", "middle_block.2.in_layers.2",
    "output_blocks.0.0.in_layers.2", "output_blocks.0.1.proj_in", "output_blocks.1.0.in_layers.2",
    "output_blocks.1.1.proj_in", "output_blocks.2.0.in_layers.2", "output_blocks.2.1.proj_in", "output_blocks.2.2.conv",
    "output_blocks.3.0.skip_connection", "output_blocks.3.1.transformer_blocks.0.attn2.to_out.0",
    "output_blocks.4.0.in_layers.2", "output_blocks.5.0.in_layers.2", "out.2",
]  # fmt: skip


def test_the_blocks_have_the_names_that_diffusers_gives_them() -> None:
    config = {
        "layers_per_block": 2,
        "class_embed_type": None,
        "addition_embed_type": None,
        "sample_size": 8,
    }
    parts = ("weight", "bias")
    tensors = {f"{UNET}{name}.{part}": torch.zeros(1) for name in (*LDM, "out.0") for part in parts}
    converted = convert_ldm_unet_checkpoint(dict(tensors), config)
    expected = {
        f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        for name in converted
        if name.endswith(".weight") and "conv_norm_out" not in name
    }
    assert len(expected) >= len(LDM)
    assert expected - loaded_modules(tensors) == set()


def test_a_whole_unet_of_diffusers_is_found_under_its_own_names() -> None:
    """A flat file, as Flux and its like are loaded: every name of the file is a LoRA's name too."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
                                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    names = list(unet.state_dict())
    known = loaded_modules(names)
    assert {f"lora_unet_{name[:-7].replace('.', '_')}" for name in names if name.endswith(".weight")} <= known


def test_text_encoders_have_kohya_s_names() -> None:
    clip = "transformer.text_model.encoder.layers.3.mlp.fc1.weight"
    assert "lora_te_text_model_encoder_layers_3_mlp_fc1" in loaded_modules([f"cond_stage_model.{clip}"])
    xl = loaded_modules(
        [
            f"conditioner.embedders.0.{clip}",
            "conditioner.embedders.1.model.transformer.resblocks.7.attn.in_proj_weight",
        ]
    )
    assert {
        "lora_te1_text_model_encoder_layers_3_mlp_fc1",
        "lora_te2_text_model_encoder_layers_7_self_attn_q_proj",
    } <= xl


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("lora_unet_x.lora_down.weight", "lora_unet_x"),
        ("lora_unet_x.hada_w1_a", "lora_unet_x"),
        ("lora_unet_x.lokr_w2", "lora_unet_x"),
        ("lora_unet_x.dora_scale", "lora_unet_x"),
        ("diffusion_model.a.b.lora_up.weight", "diffusion_model.a.b"),
        ("unet.a.lora_A.weight", "unet.a"),
    ],
)
def test_a_key_belongs_to_a_module_whatever_the_network(key: str, module: str) -> None:
    assert module_of(key) == module


def test_what_would_be_left_out_is_counted_and_named(tmp_path: Path) -> None:
    checkpoint, lora = tmp_path / "base.safetensors", tmp_path / "lora.safetensors"
    save_file({f"{UNET}{name}.weight": np.zeros(1, np.float16) for name in LDM}, checkpoint)
    taken, strange = (
        "lora_unet_down_blocks_0_attentions_1_proj_in.alpha",
        "lora_unet_down_blocks_5_attentions_0_proj_in.alpha",
    )
    save_file({taken: np.zeros(1)}, lora)
    assert check_keys(lora, checkpoint) == 1
    save_file({taken: np.zeros(1), strange: np.zeros(1)}, lora)
    assert check_keys(lora, None) == 2
    with pytest.raises(
        VerificationError, match=rf"1 of the 2 keys of lora.safetensors, such as {strange} on base"
    ):
        check_keys(lora, checkpoint)
