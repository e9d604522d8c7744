"""Every module that gets a LoRA, at full size, under the name that our files give it: ComfyUI derives that name from its
own file of the model, and diffusers' loader ends at that module. Nothing is lost on either side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_foundry.backends.comfyui.keys import loaded_modules
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.loading import library_class
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.targets import Target
from tests.unit.families.meter import full_size, meta_network

ALL = TrainSection(targets=("attention", "feed_forward", "projection"))
# How many modules the published model of each family has for a LoRA.
COUNTS = {
    "sd": ("sd", 192),
    "sdxl": ("sdxl", 722),
    "z_image": ("base", 238),
    "klein": ("base", 100),
    "qwen_image": ("base", 720),
    "krea2": ("raw", 224),
    "anima": ("base", 280),
}


def names_of(family: str) -> list[tuple[Target, str]]:
    network = meta_network(full_size(family, COUNTS[family][0]))
    names = family_part(family, "names")
    return [(target, names.export_name(target)) for target in names.lora_targets(network, ALL)]


def z_image_file(layers: int = 30, refiners: int = 2) -> list[str]:
    """The matrices of Z-Image's file as ComfyUI keeps it: query, key and value are one."""
    blocks = [f"layers.{n}" for n in range(layers)]
    blocks += [f"{kind}_refiner.{n}" for kind in ("noise", "context") for n in range(refiners)]
    parts = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
    return [f"{block}.{part}.weight" for block in blocks for part in parts]


def klein_file(double: int = 5, single: int = 20) -> list[str]:
    """The matrices of FLUX.2 Klein's file as ComfyUI keeps it."""
    sides = [
        f"{side}_{part}" for side in ("img", "txt") for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    ]
    found = [f"double_blocks.{n}.{part}.weight" for n in range(double) for part in sides]
    return found + [f"single_blocks.{n}.linear{part}.weight" for n in range(single) for part in (1, 2)]


def qwen_image_file(layers: int = 60) -> list[str]:
    """The matrices of Qwen-Image's file as ComfyUI keeps it."""
    attention = [f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")]
    attention += [f"attn.add_{letter}_proj" for letter in "qkv"]
    sides = [f"{side}_{part}" for side in ("img", "txt") for part in ("mod.1", "mlp.net.0.proj", "mlp.net.2")]
    blocks = [f"transformer_blocks.{n}.{part}.weight" for n in range(layers) for part in (*attention, *sides)]
    return ["img_in.weight", "txt_in.weight", "txt_norm.weight", "norm_out.linear.weight", *blocks]


def krea2_file(layers: int = 28) -> list[str]:
    """The matrices of Krea 2's file as ComfyUI keeps it; the text's blocks have the same layers as the picture's."""
    blocks = [f"blocks.{n}" for n in range(layers)]
    blocks += [f"txtfusion.{kind}_blocks.{n}" for kind in ("layerwise", "refiner") for n in range(2)]
    parts = ("attn.wq", "attn.wk", "attn.wv", "attn.gate", "attn.wo", "mlp.gate", "mlp.up", "mlp.down")
    matrices = [f"{block}.{part}.weight" for block in blocks for part in parts]
    return ["first.weight", "txtfusion.projector.weight", "last.linear.weight", "tproj.1.weight", *matrices]


def anima_file(layers: int = 28, adapters: int = 6) -> list[str]:
    """The matrices of Anima's file as ComfyUI keeps it, those of its adapter among them."""
    attention = [
        f"{side}_attn.{part}_proj" for side in ("self", "cross") for part in ("q", "k", "v", "output")
    ]
    modulation = [
        f"adaln_modulation_{part}.{n}" for part in ("self_attn", "cross_attn", "mlp") for n in (1, 2)
    ]
    found = [
        f"blocks.{n}.{part}.weight"
        for n in range(layers)
        for part in (*attention, *modulation, "mlp.layer1", "mlp.layer2")
    ]
    found += [f"llm_adapter.blocks.{n}.cross_attn.q_proj.weight" for n in range(adapters)]
    return ["x_embedder.proj.1.weight", "llm_adapter.out_proj.weight", "final_layer.linear.weight", *found]


def checkpoint(family: str) -> list[str]:
    """The UNet's names in a checkpoint file of the real model, by the names that our files use for its modules."""
    from tests.unit.families.conftest import unet_name
    from tests.unit.trainer.tiny_bases import xl_unet_name

    rename = xl_unet_name if family == "sdxl" else unet_name
    return [rename(name) for name in meta_network(full_size(family, family)).state_dict()]


FILES: dict[str, Any] = {
    "sd": lambda: checkpoint("sd"),
    "sdxl": lambda: checkpoint("sdxl"),
    "z_image": z_image_file,
    "klein": klein_file,
    "qwen_image": qwen_image_file,
    "krea2": krea2_file,
    "anima": anima_file,
}


@pytest.mark.parametrize("family", COUNTS)
def test_comfyui_knows_every_name(family: str) -> None:
    names = [name for _, name in names_of(family)]
    assert len(names) == len(set(names)) == COUNTS[family][1]
    assert set(names) - loaded_modules(FILES[family]()) == set()


@pytest.mark.parametrize("family", [family for family in COUNTS if family not in ("sd", "sdxl")])
def test_diffusers_ends_at_the_same_module(family: str) -> None:
    """The library's own reader of LoRA files, on matrices without numbers."""
    pipeline = library_class(family_part(family, "load").LOADER.pipeline)
    named = names_of(family)
    state = {
        f"{name}.{side}": torch.zeros(1, 1)
        for _, name in named
        for side in family_part(family, "names").FILE_FORMAT[:2]
    }
    read = pipeline.lora_state_dict(dict(state), return_lora_metadata=False)
    found = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in read}
    assert found == {target.module for target, _ in named}
    assert len(read) == len(state)


@pytest.mark.parametrize("family", ["krea2", "anima"])
def test_other_programs_names_end_at_the_same_module(family: str) -> None:
    """Those of the model's own code, which the library's reader turns into its own; a LoRA under them is put on, too."""
    pipeline = library_class(family_part(family, "load").LOADER.pipeline)
    names = family_part(family, "names")
    for target, _ in names_of(family):
        (own,) = names.other_forms("transformer", target.module)
        assert f"{own}.weight" in FILES[family]()
        state = {f"diffusion_model.{own}.lora_{side}.weight": torch.zeros(1, 1) for side in "AB"}
        read = pipeline.lora_state_dict(state, return_lora_metadata=False)
        assert {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in read} == {target.module}
