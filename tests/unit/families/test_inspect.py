"""Every base that cannot be used is refused in one sentence that says what it is and what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.inspect import find_base, inspect_base, read_header, recipe_base
from lora_foundry.mini import MODEL_DIR
from lora_foundry.recipe_files import load_recipe

SD_KEYS = ("model.diffusion_model.input_blocks.0.0.bias", "first_stage_model.decoder.conv_in.bias",
           "cond_stage_model.transformer.text_model.final_layer_norm.bias")  # fmt: skip


def write(path: Path, *keys: str) -> Path:
    save_file({key: torch.zeros(2) for key in keys}, path)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundled model, to be damaged."""
    return Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))


def test_the_bundled_model_is_found_by_its_name() -> None:
    base = find_base("mini")
    assert (base.name, base.family, base.layout, base.path) == ("mini", "sd", "folder", MODEL_DIR)
    assert len(base.identity) == 64


def test_a_checkpoint_file_is_told_by_its_keys(tiny_file: Path) -> None:
    base = find_base(str(tiny_file))
    assert (base.name, base.family, base.layout) == ("tiny", "sd", "file")


def test_a_name_is_looked_for_in_the_folders_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    file = write(tmp_path / "a" / "deep" / "dream shaper_8.safetensors", *SD_KEYS)
    folders = (tmp_path / "b", tmp_path / "a", tmp_path / "absent")
    assert find_base("dream shaper_8.safetensors", folders).path == file
    assert find_base("dream shaper_8", folders).path == file
    assert find_base("deep/dream shaper_8", folders).path == file


def test_what_does_not_exist_says_where_it_was_looked_for_and_what_is_near(tmp_path: Path) -> None:
    write(tmp_path / "dreamshaper_8.safetensors", *SD_KEYS)
    with pytest.raises(BaseModelError) as failure:
        find_base("dreamshaper8.safetensors", (tmp_path,))
    assert str(tmp_path) in str(failure.value)
    assert "did you mean 'dreamshaper_8.safetensors'?" in str(failure.value)
    with pytest.raises(BaseModelError, match=r"'/nowhere/x\.safetensors' does not exist"):
        find_base("/nowhere/x.safetensors", (tmp_path,))


def test_a_recipe_whose_base_is_not_here_says_how_to_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"does not exist .* Fetch it with: lora-foundry setup sdxl$"):
        recipe_base(load_recipe("sdxl"), (tmp_path,))
    with pytest.raises(BaseModelError) as failure:
        recipe_base(load_recipe("sdxl", ["model.base=mine.safetensors"]), (tmp_path,))
    assert "setup" not in str(failure.value)


def test_a_name_too_long_for_any_file_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="does not exist"):
        find_base("x" * 5000, (tmp_path,))


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(BaseModelError, match=r"model\.base"):
        find_base(name)


def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path) -> None:
    plain = tmp_path / "model.ckpt"
    plain.write_bytes(pickle.dumps({"a": 1}))
    disguised = tmp_path / "model.safetensors"
    disguised.write_bytes(pickle.dumps({"a": 1}))
    zipped = tmp_path / "zipped.safetensors"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    for path in (plain, disguised, zipped):
        with pytest.raises(BaseModelError, match=rf"{path.name} is a pickle.*\.safetensors version"):
            find_base(str(path))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_with_pickled_weights_is_refused(copy: Path, part: str) -> None:
    (weights,) = (copy / part).glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BaseModelError, match="is a pickle"):
        find_base(str(copy))


@pytest.mark.parametrize("kept", [0, 4, 8, 200, 5000])
def test_truncated_files_are_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({key: torch.zeros(900) for key in SD_KEYS}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BaseModelError, match=r"(is truncated|not a whole safetensors).*again"):
        find_base(str(path))


def test_a_truncated_component_is_named(copy: Path) -> None:
    (weights,) = (copy / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BaseModelError, match=r"unet/.*is truncated: it has [\d,]+ of [\d,]+ bytes"):
        find_base(str(copy))


@pytest.mark.parametrize(
    "header", [b"[]", b"{}}", b'{"a": 3}', b'{"a": {"shape": [1], "data_offsets": []}}', b"\xff"]
)
def test_nonsense_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BaseModelError, match="not a whole safetensors file"):
        find_base(str(path))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("lycoris_unet_x.lokr_w1", "a LoRA"),
        ("first_stage_model.decoder.conv_in.weight", "a VAE"),
        ("decoder.conv_in.weight", "a VAE"),
        ("conditioner.embedders.0.transformer.text_model.x", "an SDXL model, without"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a Flux"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3"),
        (
            "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
            "a Stable Diffusion 2.x model, without",
        ),
        ("noise_refiner.0.attention.to_q.weight", "a Z-Image"),
        ("label_emb.0.0.weight", "an SDXL UNet alone"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("emb_params", "a textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet alone"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("model.diffusion_model.input_blocks.0.0.weight", "without its VAE and text encoder"),
        ("something.else", "not known"),
    ],
)
def test_other_kinds_are_named_with_what_is_supported(tmp_path: Path, key: str, kind: str) -> None:
    path = write(tmp_path / "other.safetensors", key)
    with pytest.raises(BaseModelError) as failure:
        find_base(str(path))
    assert kind in str(failure.value)
    assert "supported are " in str(failure.value)
    assert "Stable Diffusion 1.x and 2.x" in str(failure.value)


def test_an_inpainting_checkpoint_is_told_by_its_channels(tmp_path: Path, copy: Path) -> None:
    path = tmp_path / "inpaint.safetensors"
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}
    save_file(first | {key: torch.zeros(2) for key in SD_KEYS}, path)
    config = json.loads((copy / "unet" / "config.json").read_text()) | {"in_channels": 9}
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    for place in (path, copy):
        with pytest.raises(BaseModelError, match=r"inpainting or depth model \(9 input channels\)"):
            find_base(str(place))


def damage_index(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')


def drop_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def drop_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def drop_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def garble_config(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_index, "a Stable Diffusion 3 model"),
        (drop_index, r"no model_index\.json"),
        (drop_tokenizer, "no tokenizer"),
        (drop_vae, "no vae weights"),
        (garble_config, r"unet/config\.json is missing or damaged"),
    ],
)
def test_folders_that_are_not_whole(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(BaseModelError, match=message):
        find_base(str(copy))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(BaseModelError, match=r"is a GGUF file"):
        find_base(str(path))


def test_the_identity_follows_the_content_and_not_the_place(copy: Path) -> None:
    assert inspect_base(copy).identity == find_base("mini").identity
    (weights,) = (copy / "unet").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) - 100] ^= 1
    weights.write_bytes(data)
    assert inspect_base(copy).identity != find_base("mini").identity


def test_the_fp16_variant_of_a_folder_is_used_where_it_is_all_there_is(copy: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (weights,) = (copy / part).glob("*.safetensors")
        weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    assert inspect_base(copy).variant == "fp16"


def test_a_header_tells_shapes_and_text(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "x.safetensors", {"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert (header.shapes, header.metadata, header.types) == ({"a": (2, 3)}, {"k": "v"}, {"a": "F32"})
