"""A tiny Stable Diffusion of the original's layout (four blocks), to be written as one checkpoint file."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.families.sd import load as sd_load
from lora_foundry.mini import MODEL_DIR


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a diffusers folder, random weights."""
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from lora_foundry.families._shared.loading import quiet_libraries

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    words = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
             "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                                        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
                                        projection_dim=32, **words))  # fmt: skip
    across = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 16, 32, 32), cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=2, down_block_types=(*across[0], "DownBlock2D"), up_block_types=("UpBlock2D", *across[1]),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=2, norm_num_groups=8, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    with quiet_libraries():
        StableDiffusionPipeline(
            vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DPMSolverMultistepScheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_file(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as one checkpoint file with the names of the original code."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Tensor] = {}
    for part, rename in (("unet", unet_name), ("vae", vae_name), ("text_encoder", text_name)):
        (weights,) = (tiny_folder / part).glob("*.safetensors")
        for name, tensor in load_file(weights).items():
            flat = part == "vae" and ".attentions.0.to_" in name and name.endswith("weight")
            tensors[rename(name)] = tensor[:, :, None, None].clone() if flat else tensor
    path = tmp_path_factory.mktemp("file") / "tiny.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def own_configuration(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's configurations where those of Stable Diffusion 1.x are looked for."""
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        (tmp_path / "sd" / part).mkdir(parents=True)
        for file in (tiny_folder / part).glob("*.json"):
            shutil.copy(file, tmp_path / "sd" / part)
    shutil.copy(tiny_folder / "model_index.json", tmp_path / "sd")
    monkeypatch.setattr(sd_load, "LOADER", replace(sd_load.LOADER, configurations=tmp_path))
    monkeypatch.setenv(CLIP.variable, str(MODEL_DIR / "tokenizer"))


def unet_name(name: str) -> str:
    """diffusers' name of a UNet tensor -> the original's."""
    fixed = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "conv_out": "out.2",
             "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0"}  # fmt: skip
    stem, _, ending = name.rpartition(".")
    if stem in fixed:
        return f"model.diffusion_model.{fixed[stem]}.{ending}"
    name = re.sub(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)", _down, name)
    name = re.sub(
        r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op", name
    )
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", _upsampler, name)
    name = re.sub(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)", _up, name)
    name = name.replace("mid_block.resnets.0", "middle_block.0").replace(
        "mid_block.resnets.1", "middle_block.2"
    )
    name = name.replace("mid_block.attentions.0", "middle_block.1")
    if ".transformer_blocks." not in name and ".proj_" not in name:
        for old, new in (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
                         ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
                         ("conv_shortcut", "skip_connection")):  # fmt: skip
            name = name.replace(f".{old}.", f".{new}.")
    return "model.diffusion_model." + name


def _down(match: re.Match[str]) -> str:
    return f"input_blocks.{3 * int(match[1]) + int(match[3]) + 1}.{int(match[2] == 'attentions')}"


def _up(match: re.Match[str]) -> str:
    return f"output_blocks.{3 * int(match[1]) + int(match[3])}.{int(match[2] == 'attentions')}"


def _upsampler(match: re.Match[str]) -> str:
    return f"output_blocks.{3 * int(match[1]) + 2}.{1 if match[1] == '0' else 2}"


def vae_name(name: str) -> str:
    """diffusers' name of a VAE tensor -> the original's."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for old, new in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
                     ("conv_shortcut", "nin_shortcut")):  # fmt: skip
        name = name.replace(f".{old}.", f".{new}.")
    return "first_stage_model." + name


def text_name(name: str) -> str:
    """The text encoder's names differ by what stands before them."""
    return "cond_stage_model.transformer." + (
        name if name.startswith("text_model.") else f"text_model.{name}"
    )
