"""Tiny bases with random weights in the layout of the real ones: SDXL as a folder and as one checkpoint file, Stable
Diffusion 2.x, and Z-Image and FLUX.2 Klein as folders and as ComfyUI's split files."""

from __future__ import annotations

import re
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_foundry.families._shared.loading import quiet_libraries
from lora_foundry.mini import MODEL_DIR
from tests.unit.families.conftest import text_name, unet_name, vae_name


def tokenizer(**given: Any) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer", **given)


def text_config(width: int, **given: Any) -> Any:
    from transformers import CLIPTextConfig

    words = tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=64, projection_dim=width, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, **given,
    )  # fmt: skip


def vae(latents: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), layers_per_block=2, norm_num_groups=8, sample_size=64,
        latent_channels=latents, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025,
        shift_factor=0.1159 if latents == 16 else None,
    )  # fmt: skip


def sdxl_folder(folder: Path) -> Path:
    """SDXL: three blocks, two text encoders of 32 and 48, told the picture's size."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32, 32), cross_attention_dim=80, norm_num_groups=8, layers_per_block=2,
        attention_head_dim=(2, 4, 4), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=96,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with quiet_libraries():
        StableDiffusionXLPipeline(
            vae=vae(), text_encoder=CLIPTextModel(text_config(32)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(48)), tokenizer=tokenizer(),
            tokenizer_2=tokenizer(pad_token="!"), unet=unet,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading",
                steps_offset=1,
            ),
            add_watermarker=False,
        ).save_pretrained(folder)  # fmt: skip
    return folder


def sdxl_file(folder: Path, path: Path, *markers: str) -> Path:
    """The same weights as one checkpoint file in the original layout; `markers` are NoobAI's v_pred and ztsnr."""
    tensors: dict[str, Tensor] = {marker: torch.zeros(()) for marker in markers}
    for part, rename in (("unet", xl_unet_name), ("vae", vae_name), ("text_encoder", xl_text_name)):
        (weights,) = (folder / part).glob("*.safetensors")
        for name, tensor in load_file(weights).items():
            flat = part == "vae" and ".attentions.0.to_" in name and name.endswith("weight")
            tensors[rename(name)] = tensor[:, :, None, None].clone() if flat else tensor
    (weights,) = (folder / "text_encoder_2").glob("*.safetensors")
    tensors |= open_clip(load_file(weights), "conditioner.embedders.1.model.")
    save_file(tensors, path)
    return path


def configurations(folder: Path, target: Path) -> None:
    """The folder's configurations, where those of the real model are looked for."""
    for file in folder.rglob("*.json"):
        if "tokenizer" not in file.parent.name:
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / file.relative_to(folder))


def xl_unet_name(name: str) -> str:
    if name.startswith("add_embedding."):
        number = {"1": "0", "2": "2"}[name.split("linear_")[1][0]]
        return f"model.diffusion_model.label_emb.0.{number}.{name.rsplit('.', 1)[1]}"
    # Unlike Stable Diffusion 1.x, the first block that goes up has attention before its upsampler.
    if found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.(.*)", name):
        return f"model.diffusion_model.output_blocks.{3 * int(found[1]) + 2}.2.{found[2]}"
    return unet_name(name)


def xl_text_name(name: str) -> str:
    return text_name(name).replace("cond_stage_model.", "conditioner.embedders.0.")


def open_clip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names: one matrix for query, key and value, and a projection that is turned round."""
    named: dict[str, Tensor] = {}
    fixed = {"embeddings.token_embedding.weight": "token_embedding.weight",
             "embeddings.position_embedding.weight": "positional_embedding",
             "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}  # fmt: skip
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if name == "text_projection.weight":
            named[prefix + "text_projection"] = tensor.T.contiguous()
        elif name in fixed:
            named[prefix + fixed[name]] = tensor
        elif found := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            stem = f"{prefix}transformer.resblocks.{found[1]}."
            if found[2] in inner:
                named[f"{stem}{inner[found[2]]}.{found[3]}"] = tensor
            elif found[2].endswith("q_proj"):
                parts = [plain[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                named[f"{stem}attn.in_proj_{found[3]}"] = torch.cat(parts)
    return named


def z_image_folder(folder: Path, shift: float = 6.0) -> Path:
    """Z-Image: a transformer of two layers and one refiner each, a Qwen language model of two layers."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    words = tokenizer()
    words.chat_template = "{% for message in messages %}<user> {{ message.content }} {% endfor %}"
    text = Qwen3Model(
        Qwen3Config(
            vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, max_position_embeddings=64,
        )
    )  # fmt: skip
    network = ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24,
        axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
    )  # fmt: skip
    for name, tensor in network.named_parameters():
        if "pad_token" in name:
            torch.nn.init.normal_(tensor)
    with quiet_libraries():
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift), vae=vae(16), text_encoder=text, tokenizer=words,
            transformer=network,
        ).save_pretrained(folder)  # fmt: skip
    return folder


def klein_folder(folder: Path, distilled: bool = False) -> Path:
    """FLUX.2 Klein: a transformer of one double and two single blocks, a Qwen language model of 28 thin layers."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    words = tokenizer()
    words.chat_template = "{% for message in messages %}<user> {{ message.content }} {% endfor %}"
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=28, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, max_position_embeddings=512, tie_word_embeddings=True,
        )
    )  # fmt: skip
    network = Flux2Transformer2DModel(
        in_channels=128, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    for (
        tensor
    ) in network.parameters():  # random weights of the usual size hardly listen to prompt and reference
        tensor.data.mul_(3 if tensor.ndim > 1 else 1)
    coder = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), layers_per_block=2, norm_num_groups=8, sample_size=64, latent_channels=32,
    )  # fmt: skip
    coder.bn.running_mean.normal_(0, 0.1)
    coder.bn.running_var.uniform_(0.5, 1.5)
    with quiet_libraries():
        Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, shift=3.0,
                max_image_seq_len=4096, time_shift_type="exponential",
            ),
            vae=coder, text_encoder=text, tokenizer=words, transformer=network, is_distilled=distilled,
        ).save_pretrained(folder)  # fmt: skip
    return folder


def split_files(folder: Path, root: Path, name: str, transformer: dict[str, Tensor]) -> Path:
    """A folder's weights as ComfyUI keeps them: `transformer` under its own names, VAE and language model beside it, in
    folders below `root`. Returns the transformer's file."""
    named = {
        vae_name(key).removeprefix("first_stage_model."): value
        for key, value in read_part(folder, "vae").items()
    }
    coder = {
        # The original's attention is made of convolutions.
        key: value[:, :, None, None] if ".attn_1." in key and value.ndim == 2 else value
        for key, value in named.items()
    }
    text = {
        key if key.startswith("model.") else f"model.{key}": value
        for key, value in read_part(folder, "text_encoder").items()
        if key != "lm_head.weight"
    }
    return write_split(root, name, transformer, coder, text)


def write_split(
    root: Path, name: str, transformer: dict[str, Tensor], coder: dict[str, Tensor], text: dict[str, Tensor]
) -> Path:
    """The three files in ComfyUI's folders below `root`. Returns the transformer's."""
    files = {
        f"diffusion_models/{name}.safetensors": transformer,
        "vae/any.safetensors": coder,
        "text_encoders/any.safetensors": text,
    }
    for path, tensors in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, root / path)
    return root / "diffusion_models" / f"{name}.safetensors"


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    (weights,) = (folder / part).glob("*.safetensors")
    return load_file(weights)


def z_image_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Z-Image's transformer under the names of its own code: one matrix for query, key and value."""
    renamed = (
        ("all_final_layer.2-1.", "final_layer."), ("all_x_embedder.2-1.", "x_embedder."),
        ("attention.to_out.0.", "attention.out."), ("attention.norm_q.", "attention.q_norm."),
        ("attention.norm_k.", "attention.k_norm."),
    )  # fmt: skip
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attention.to_q.weight"):
            parts = [tensors[name.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            named[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif not name.endswith(("attention.to_k.weight", "attention.to_v.weight")):
            named[reduce(lambda text, pair: text.replace(*pair), renamed, name)] = tensor
    return named


def klein_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """FLUX.2's transformer under the names of its own code."""
    fixed = {
        "x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
    }  # fmt: skip
    double = {
        "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj", "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
        "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_add_out": "txt_attn.proj", "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
    }  # fmt: skip
    single = {
        "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2", "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    }  # fmt: skip
    fused = {"attn.to_q": ("img_attn.qkv", "to_{}"), "attn.add_q_proj": ("txt_attn.qkv", "add_{}_proj")}
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        place = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", stem)
        if stem == "norm_out.linear":  # scale and shift stand the other way round
            named["final_layer.adaLN_modulation.1.weight"] = torch.cat(tensor.chunk(2)[::-1])
        elif place is None:
            named[f"{fixed[stem]}.{kind}"] = tensor
        elif place[1]:
            own = single[place[3]]
            named[f"single_blocks.{place[2]}.{own}.{'scale' if 'norm' in own else kind}"] = tensor
        elif place[3] in fused:
            own, form = fused[place[3]]
            parts = [
                tensors[f"transformer_blocks.{place[2]}.attn.{form.format(letter)}.weight"]
                for letter in "qkv"
            ]
            named[f"double_blocks.{place[2]}.{own}.weight"] = torch.cat(parts)
        elif place[3] in double:
            own = double[place[3]]
            named[f"double_blocks.{place[2]}.{own}.{'scale' if 'norm' in own else kind}"] = tensor
    return named
