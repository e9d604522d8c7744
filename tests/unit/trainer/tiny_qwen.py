"""Tiny bases with random weights in the layout of the real ones, of the families that use Qwen-Image's VAE: as folders and
as ComfyUI's split files."""

from __future__ import annotations

import re
from functools import reduce
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


def krea2_folder(folder: Path, distilled: bool = False) -> Path:
    """Krea 2: a transformer of two layers with one block each for the text, a Qwen language model of two that sees, too."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    torch.manual_seed(0)
    words = tokenizer()
    text = Qwen3VLModel(
        Qwen3VLConfig(
            text_config={
                "vocab_size": len(words), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "max_position_embeddings": 2048,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 2, 2], "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24,
                "patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
            },
        )
    )  # fmt: skip
    network = Krea2Transformer2DModel(
        in_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, timestep_embed_dim=16, text_hidden_dim=24, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=48, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    for name, tensor in network.named_parameters():
        if "scale_shift_table" in name or "norm" in name:  # zero at first, so that no block would do anything
            torch.nn.init.normal_(tensor, std=0.3)
        elif tensor.ndim > 1:
            tensor.data.mul_(2)
    with quiet_libraries():
        Krea2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
                max_image_seq_len=6400, time_shift_type="exponential",
            ),
            vae=film_vae(), text_encoder=text, tokenizer=words, transformer=network,
            text_encoder_select_layers=(1, 2), is_distilled=distilled,
        ).save_pretrained(folder)  # fmt: skip
    return folder


def krea2_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Krea 2's transformer under the names of its own code."""
    whole = {
        "img_in": "first", "time_embed.linear_1": "tmlp.0", "time_embed.linear_2": "tmlp.2", "time_mod_proj": "tproj.1",
        "txt_in.norm": "txtmlp.0", "txt_in.linear_1": "txtmlp.1", "txt_in.linear_2": "txtmlp.3",
        "text_fusion.projector": "txtfusion.projector", "final_layer.linear": "last.linear",
        "final_layer.norm": "last.norm",
    }  # fmt: skip
    parts = {
        "attn.to_q": "attn.wq", "attn.to_k": "attn.wk", "attn.to_v": "attn.wv", "attn.to_out.0": "attn.wo",
        "attn.to_gate": "attn.gate", "attn.norm_q": "attn.qknorm.qnorm", "attn.norm_k": "attn.qknorm.knorm",
        "norm1": "prenorm", "norm2": "postnorm", "ff.gate": "mlp.gate", "ff.up": "mlp.up", "ff.down": "mlp.down",
    }  # fmt: skip
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "final_layer.scale_shift_table":
            named["last.modulation.lin"] = tensor
        elif name.endswith(".scale_shift_table"):  # the six of a block stand in one row
            named[name.replace("transformer_blocks", "blocks").replace("scale_shift_table", "mod.lin")] = (
                tensor.flatten()
            )
        else:
            stem, _, kind = name.rpartition(".")
            place = re.fullmatch(r"(transformer_blocks|text_fusion\.\w+)\.(\d+)\.(.+)", stem)
            own = whole[stem] if place is None else f"{place[1]}.{place[2]}.{parts[place[3]]}"
            own = own.replace("transformer_blocks", "blocks").replace("text_fusion", "txtfusion")
            named[f"{own}.{'scale' if 'norm' in own or own == 'txtmlp.0' else kind}"] = tensor
    return named


def anima_folder(folder: Path, distilled: bool = False) -> Path:
    """Anima in the library's modular form: a transformer of two layers, an adapter of one, a Qwen language model of two."""
    pipeline = anima_modular()
    folder = folder / ("anima-turbo" if distilled else "anima-base")
    with quiet_libraries():
        pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def anima_modular() -> Any:
    """The library's own pipeline, tiny."""
    from diffusers import (
        AnimaAutoBlocks,
        AnimaTextConditioner,
        CosmosTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    words = tokenizer()
    text = Qwen3Model(
        Qwen3Config(
            vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, max_position_embeddings=64,
        )
    )  # fmt: skip
    adapter = AnimaTextConditioner(
        source_dim=24, target_dim=24, model_dim=24, num_layers=1, num_attention_heads=2,
        target_vocab_size=len(words), min_sequence_length=32,
    )  # fmt: skip
    network = CosmosTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=24, num_layers=2, mlp_ratio=2.0,
        text_embed_dim=24, adaln_lora_dim=8, max_size=(8, 32, 32), rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )  # fmt: skip
    for tensor in (*network.parameters(), *adapter.parameters()):
        tensor.data.mul_(2 if tensor.ndim > 1 else 1)
    with quiet_libraries():
        pipeline = AnimaAutoBlocks().init_pipeline()
        pipeline.update_components(
            text_encoder=text, tokenizer=words, t5_tokenizer=words, text_conditioner=adapter, transformer=network,
            vae=film_vae(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
    return pipeline


def anima_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Anima's transformer under the names of its own code."""
    renamed = {
        "transformer_blocks.": "blocks.", "time_embed.t_embedder": "t_embedder.1", "time_embed.norm": "t_embedding_norm",
        "patch_embed.proj": "x_embedder.proj.1", "norm_out.linear_": "final_layer.adaln_modulation.",
        "proj_out": "final_layer.linear", "norm1.linear_": "adaln_modulation_self_attn.",
        "norm2.linear_": "adaln_modulation_cross_attn.", "norm3.linear_": "adaln_modulation_mlp.",
        "attn1.": "self_attn.", "attn2.": "cross_attn.", "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj",
        "to_out.0": "output_proj", "norm_q": "q_norm", "norm_k": "k_norm", "ff.net.0.proj": "mlp.layer1",
        "ff.net.2": "mlp.layer2",
    }  # fmt: skip
    return {
        reduce(lambda text, pair: text.replace(*pair), renamed.items(), name): value
        for name, value in tensors.items()
    }


def anima_split(folder: Path, root: Path, name: str, transformer: dict[str, Tensor]) -> Path:
    """As `split_files`, the adapter in the transformer's own file, under whatever its names begin with."""
    first = next(
        key for key in transformer if key.endswith(("blocks.0.mlp.layer1.weight", "blocks.0.ff.net.2.weight"))
    )
    prefix = first.partition("transformer_blocks.0." if "transformer_blocks." in first else "blocks.0.")[0]
    adapter = {
        f"{prefix}llm_adapter.{key}": value for key, value in read_part(folder, "text_conditioner").items()
    }
    return split_files(folder, root, name, transformer | adapter)
