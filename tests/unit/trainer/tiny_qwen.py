"""Tiny bases with random weights in the layout of the real ones, of the families that use Qwen-Image's VAE: as folders and
as ComfyUI's split files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_foundry.families._shared.loading import quiet_libraries
from tests.unit.trainer.tiny_bases import read_part, tokenizer, write_split

_WAN = {
    "norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6.",
    "conv_shortcut.": "shortcut.",
}  # fmt: skip


def film_vae() -> Any:
    """Qwen-Image's VAE: made for films, latents normalised channel by channel."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2)


def film_vae_name(name: str) -> str:
    """diffusers' name of a tensor of that VAE -> the original's."""
    name = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", name))
    name = (
        name.replace(".conv_in.", ".conv1.")
        .replace(".norm_out.", ".head.0.")
        .replace(".conv_out.", ".head.2.")
    )
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"middle.{2 * int(m[1])}.", name)
    name = name.replace("mid_block.attentions.0.", "middle.1.").replace("down_blocks.", "downsamples.")
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", name)
    for ours, theirs in _WAN.items():
        name = re.sub(rf"(middle|samples)\.(\d+)\.{re.escape(ours)}", rf"\1.\2.{theirs}", name)
    return name


def split_files(folder: Path, root: Path, name: str, transformer: dict[str, Tensor]) -> Path:
    """A folder's weights as ComfyUI keeps them: `transformer` under its own names, VAE and language model beside it."""
    coder = {film_vae_name(key): value for key, value in read_part(folder, "vae").items()}
    text = {file_text_name(key): value for key, value in read_part(folder, "text_encoder").items()}
    return write_split(root, name, transformer, coder, text)


def file_text_name(name: str) -> str:
    """The library's name of a tensor of a model that sees and reads -> that in files."""
    name = name.removeprefix("model.")
    if name.startswith(("visual.", "lm_head.")):
        return name
    return f"model.{name.removeprefix('language_model.')}"


def vision_config(width: int) -> dict[str, Any]:
    return {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width,
        "patch_size": 14, "fullatt_block_indexes": [0],
    }  # fmt: skip


def qwen_image_folder(folder: Path, distilled: bool = False) -> Path:
    """Qwen-Image: a transformer of two layers, a Qwen language model of two that sees, too."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    words = tokenizer()
    text = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(words), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
            },
            vision_config=vision_config(24),
        )
    )  # fmt: skip
    network = QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    for tensor in network.parameters():  # random weights of the usual size hardly listen to the prompt
        tensor.data.mul_(2 if tensor.ndim > 1 else 1)
    folder = folder / "distill" if distilled else folder
    with quiet_libraries():
        QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, shift=1.0,
                max_image_seq_len=8192, time_shift_type="exponential", shift_terminal=0.02,
            ),
            vae=film_vae(), text_encoder=text, tokenizer=words, transformer=network,
        ).save_pretrained(folder)  # fmt: skip
    return folder
