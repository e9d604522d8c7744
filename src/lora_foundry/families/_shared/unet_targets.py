"""The modules of a UNet that get a LoRA, and kohya's names for them and for CLIP's."""

from __future__ import annotations

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.targets import DENOISER, Target

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": ("proj_in", "proj_out"),
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_CONVOLUTIONS = (".resnets.", ".downsamplers.", ".upsamplers.")
_TIME = ".time_emb_proj"  # the one linear layer of a resnet, which sd-scripts trains with its convolutions


def unet_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """Layers of the attention blocks whose names belong to `train.targets`; with `train.conv_rank` also the layers of the
    resnets and samplers. Raises InputError where that is none."""
    endings = tuple("." + ending for group in settings.targets for ending in TARGETS[group])
    found = [
        Target(DENOISER, name)
        for name, module in network.named_modules()
        if (".attentions." in name and name.endswith(endings) and isinstance(module, nn.Linear | nn.Conv2d))
        or (
            settings.conv_rank
            and (isinstance(module, nn.Conv2d) or name.endswith(_TIME))
            and any(mark in name for mark in _CONVOLUTIONS)
        )
    ]
    if not found:
        raise InputError(
            "train.targets selects no layer of the base model; name attention, feed_forward or projection."
        )
    return found


def kohya_name(target: Target) -> str:
    """down_blocks.0.attentions.0.proj_in of the UNet -> lora_unet_down_blocks_0_attentions_0_proj_in."""
    path = target.module
    if target.part != DENOISER and not path.startswith("text_model."):
        path = f"text_model.{path}"  # files always say so; the library's module tree depends on its version
    return f"lora_{target.part}_" + path.replace(".", "_")
