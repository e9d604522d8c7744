"""What people have on their disks, and the sentence that is said to each: real key lists, tiny tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.inspect import find_base, recipe_base
from lora_foundry.mini import MODEL_DIR
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings

SD = ("model.diffusion_model.input_blocks.0.0.bias", "first_stage_model.decoder.conv_in.bias",
      "cond_stage_model.transformer.text_model.final_layer_norm.bias")  # fmt: skip
SDXL = ("model.diffusion_model.input_blocks.0.0.bias", "model.diffusion_model.label_emb.0.0.weight",
        "first_stage_model.decoder.conv_in.bias", "conditioner.embedders.0.transformer.text_model.x",
        "conditioner.embedders.1.model.ln_final.weight")  # fmt: skip
Z_IMAGE = {"noise_refiner.0.attention.q_norm.weight": (1,), "layers.0.feed_forward.w2.weight": (3840, 1)}


def file(path: Path, *keys: str, **shaped: tuple[int, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: torch.zeros(2, 2) for key in keys}
    save_file(tensors | {key: torch.zeros(shape) for key, shape in shaped.items()}, path)
    return path


def named(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def kinds(path: Path, types: dict[str, torch.dtype]) -> Path:
    return named(path, {name: torch.zeros(2, 2).to(kind) for name, kind in types.items()})


def comfyui(root: Path, *, vae: bool = True, text: bool = True, name: str = "z_image_bf16") -> Path:
    """ComfyUI's folders with Z-Image's files."""
    if vae:
        file(root / "vae" / "ae.safetensors", **{"decoder.conv_in.weight": (2, 16, 1, 1)})
    if text:
        shapes = {"model.embed_tokens.weight": (1, 2560), "model.layers.35.mlp.up_proj.weight": (1, 1)}
        file(root / "text_encoders" / "qwen_3_4b.safetensors", **shapes)
    # What else lies there must not be taken for them.
    file(root / "text_encoders" / "t5xxl_fp16.safetensors", "encoder.block.0.layer.0.SelfAttention.q.weight")
    file(root / "vae" / "sdxl_vae.safetensors", **{"decoder.conv_in.weight": (2, 4, 1, 1)})
    return file(root / "diffusion_models" / f"{name}.safetensors", **Z_IMAGE)


def klein(root: Path, name: str = "flux-2-klein-base-4b") -> Path:
    vae = {"decoder.conv_in.weight": (2, 32, 1, 1), "bn.running_mean": (128,)}
    file(root / "vae" / "flux2-vae.safetensors", **vae)
    comfyui(root, name="other")
    shapes = {"img_in.weight": (3072, 1), "double_stream_modulation_img.lin.weight": (1, 1)}
    return file(root / "diffusion_models" / f"{name}.safetensors", **shapes)


def qwen_image(root: Path, name: str = "qwen_image_2512_bf16", **more: tuple[int, ...]) -> Path:
    """ComfyUI's folders with Qwen-Image's files."""
    comfyui(root, name="other")
    file(root / "vae" / "qwen_image_vae.safetensors", **{"decoder.conv1.weight": (2, 16, 1, 1, 1)})
    text = {"model.embed_tokens.weight": (1, 3584), "model.layers.27.mlp.up_proj.weight": (1, 1)}
    file(root / "text_encoders" / "qwen_2.5_7b.safetensors", **text)  # one that sees nothing
    sees = text | {"visual.patch_embed.proj.weight": (1, 1)}
    file(root / "text_encoders" / "qwen_2.5_vl_7b_fp8_scaled.safetensors", **sees)
    shapes = {
        "img_in.weight": (3072, 1),
        "txt_norm.weight": (1,),
        "transformer_blocks.0.attn.add_q_proj.weight": (1, 1),
    }
    return file(root / "diffusion_models" / f"{name}.safetensors", **shapes | more)


def krea2(root: Path, name: str = "krea2_raw_bf16", width: int = 6144) -> Path:
    """ComfyUI's folders with Krea 2's files, the text encoder as the hub has it."""
    qwen_image(root, name="other")
    text = {
        "model.language_model.embed_tokens.weight": (1, 2560), "model.language_model.layers.35.mlp.up_proj.weight": (1, 1),
        "model.visual.patch_embed.proj.weight": (1, 1),
    }  # fmt: skip
    file(root / "text_encoders" / "qwen3vl_4b_fp8_scaled.safetensors", **text)
    shapes = {"first.weight": (width, 1), "txtfusion.projector.weight": (1, 12)}
    return file(root / "diffusion_models" / f"{name}.safetensors", **shapes)


def anima(root: Path, name: str = "anima-base-v1.0", prefix: str = "net.", width: int = 2048) -> Path:
    """ComfyUI's folders with Anima's files."""
    qwen_image(root, name="other")
    text = {"model.embed_tokens.weight": (1, 1024), "model.layers.27.mlp.up_proj.weight": (1, 1)}
    file(root / "text_encoders" / "qwen_3_06b_base.safetensors", **text)
    shapes = {
        "x_embedder.proj.1.weight": (width, 1), "blocks.0.mlp.layer1.weight": (1, 1),
        "llm_adapter.out_proj.weight": (1, 1),
    }  # fmt: skip
    named_ = {prefix + key: shape for key, shape in shapes.items()}
    return file(root / "diffusion_models" / f"{name}.safetensors", **named_)


def without(path: Path, part: str) -> Path:
    (path.parents[1] / f"{part}.safetensors").unlink()
    return path


def linked(root: Path) -> Path:
    """The hub's cache: a name that links to a file under its hash."""
    blob = file(root / "blobs" / "0123abcd.safetensors", *SD).rename(root / "blobs" / "0123abcd")
    link = root / "snapshots" / "main" / "dreamshaper_8.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    return link


def copied(root: Path, change: Callable[[Path], None]) -> Path:
    folder = Path(shutil.copytree(MODEL_DIR, root / "model"))
    change(folder)
    return folder


def half(*parts: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for part in parts:
            (weights,) = (folder / part).glob("*.safetensors")
            weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))

    return change


def index(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model_index.json").write_text(text) and None


def gguf(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + b"\0" * 64)
    return path


# What is there, and (family, layout, distilled) or the words of the refusal.
LAYOUTS: dict[str, tuple[Callable[[Path], Path], tuple[str, str, bool] | str]] = {
    "sd checkpoint": (lambda p: file(p / "a.safetensors", *SD), ("sd", "file", False)),
    "sd checkpoint with old clip names": (
        lambda p: file(p / "a.safetensors", *SD[:2], "cond_stage_model.transformer.final_layer_norm.bias"),
        ("sd", "file", False),
    ),
    "sdxl checkpoint": (lambda p: file(p / "a.safetensors", *SDXL), ("sdxl", "file", False)),
    "sdxl without vae": (lambda p: file(p / "a.safetensors", *SDXL[:2], *SDXL[3:]), "an SDXL model .* without its VAE"),
    "linked from the hub's cache": (linked, ("sd", "file", False)),
    "diffusers folder": (lambda p: copied(p, lambda folder: None), ("sd", "folder", False)),
    "folder in fp16": (lambda p: copied(p, half("unet", "vae", "text_encoder")), ("sd", "folder", False)),
    "folder whose unet alone is fp16": (lambda p: copied(p, half("unet")), ("sd", "folder", False)),
    "folder of another family": (
        lambda p: copied(p, index('{"_class_name": "HiDreamImagePipeline"}')), "a diffusers folder for HiDreamImage",
    ),
    "z-image in comfyui's folders": (comfyui, ("z_image", "split", False)),
    "z-image turbo in comfyui's folders": (
        lambda p: comfyui(p, name="z_image_turbo_bf16"), ("z_image", "split", True),
    ),
    "z-image whose distillation was taken back": (
        lambda p: comfyui(p, name="z_image_de-turbo"), ("z_image", "split", False),
    ),
    "lumina 2": (
        lambda p: file(p / "a.safetensors", **Z_IMAGE | {"layers.0.feed_forward.w2.weight": (2304, 1)}),
        "a Lumina 2 model",
    ),
    "a part of z-image": (
        lambda p: file(p / "a.safetensors", "noise_refiner.0.attention.q_norm.weight"),
        "a Z-Image transformer of a size that is not known, or a part of one",
    ),
    "z-image without its text encoder": (
        lambda p: comfyui(p, text=False),
        r"a Z-Image transformer alone, and its text encoder is in none of .*put qwen_3_4b\.safetensors there, name it "
        r"in model\.text_encoder, or let `lora-foundry setup` fetch it",
    ),
    "z-image without its vae": (
        lambda p: comfyui(p, vae=False),
        r"its VAE is in none of .*put ae\.safetensors there, name it in model\.vae, or let `lora-foundry setup` fetch it",
    ),
    "klein base in comfyui's folders": (klein, ("klein", "split", False)),
    "klein in comfyui's folders": (lambda p: klein(p, "flux-2-klein-4b"), ("klein", "split", True)),
    "klein without its vae": (
        lambda p: without(klein(p), "vae/flux2-vae"),
        r"a FLUX\.2 Klein transformer alone, and its VAE is in none of .*put flux2-vae\.safetensors there, name it in "
        r"model\.vae, or let `lora-foundry setup` fetch it",
    ),
    "klein without its text encoder": (
        lambda p: without(klein(p), "text_encoders/qwen_3_4b"), r"its text encoder is in none of .*put qwen_3_4b\.safetensors",
    ),
    "flux.2 of another size": (
        lambda p: file(p / "a.safetensors", **{"img_in.weight": (6144, 1), "double_stream_modulation_img.lin.weight": (1, 1)}),
        "a FLUX.2 transformer of another size",
    ),
    "qwen-image in comfyui's folders": (qwen_image, ("qwen_image", "split", False)),
    "qwen-image, distilled": (
        lambda p: qwen_image(p, "qwen_image_distill_full_bf16"), ("qwen_image", "split", True),
    ),
    "qwen-image-edit by its name": (
        lambda p: qwen_image(p, "qwen_image_edit_2509_bf16"), "a Qwen-Image-Edit model, which changes pictures .*with ComfyUI",
    ),
    "qwen-image-edit by its mark": (
        lambda p: qwen_image(p, "mine", __index_timestep_zero__=(1,)), "a Qwen-Image-Edit model",
    ),
    "qwen-image-edit as a folder": (
        lambda p: copied(p, index('{"_class_name": "QwenImageEditPlusPipeline"}')), "a Qwen-Image-Edit model",
    ),
    "qwen-image-layered": (
        lambda p: qwen_image(p, "layered", **{"time_text_embed.addition_t_embedding.weight": (2, 1)}),
        "a Qwen-Image-Layered model",
    ),
    "qwen-image 2.1": (
        lambda p: file(p / "a.safetensors", "txt_in.text_norm.weight", "transformer_blocks.0.attn.to_q.weight"),
        "a Qwen-Image 2.1 model, another network",
    ),
    "a part of qwen-image": (
        lambda p: qwen_image(p, **{"img_in.weight": (64, 1)}), "a Qwen-Image transformer of a size that is not known",
    ),
    "qwen-image without its vae": (
        lambda p: without(qwen_image(p), "vae/qwen_image_vae"),
        r"a Qwen-Image transformer alone, and its VAE is in none of .*put qwen_image_vae\.safetensors there, name it in "
        r"model\.vae, or let `lora-foundry setup` fetch it",
    ),
    "qwen-image without its text encoder": (
        lambda p: without(qwen_image(p), "text_encoders/qwen_2.5_vl_7b_fp8_scaled"),
        r"its text encoder is in none of .*put qwen_2\.5_vl_7b_fp8_scaled\.safetensors",
    ),
    "anima in comfyui's folders": (anima, ("anima", "split", False)),
    "anima as comfyui saves it": (lambda p: anima(p, "mine", "model.diffusion_model."), ("anima", "split", False)),
    "anima turbo": (lambda p: anima(p, "anima-turbo-v1.1"), ("anima", "split", True)),
    "a larger anima": (lambda p: anima(p, width=2560), "an Anima model of a size that is not known"),
    "cosmos predict 2": (
        lambda p: file(p / "a.safetensors", "net.blocks.0.mlp.layer1.weight", "net.x_embedder.proj.1.weight"),
        "a Cosmos Predict 2 model, which Anima comes from",
    ),
    "anima without its text encoder": (
        lambda p: without(anima(p), "text_encoders/qwen_3_06b_base"),
        r"an Anima model alone, and its text encoder is in none of .*put qwen_3_06b_base\.safetensors there",
    ),
    "krea 2 raw in comfyui's folders": (krea2, ("krea2", "split", False)),
    "krea 2 turbo in comfyui's folders": (lambda p: krea2(p, "krea2_turbo_bf16"), ("krea2", "split", True)),
    "somebody's krea 2": (lambda p: krea2(p, "sharpdraw_v4"), ("krea2", "split", True)),
    "a part of krea 2": (lambda p: krea2(p, width=64), "a Krea 2 transformer of a size that is not known"),
    "krea 2 without its text encoder": (
        lambda p: without(krea2(p), "text_encoders/qwen3vl_4b_fp8_scaled"),
        r"a Krea 2 transformer alone, and its text encoder is in none of .*put qwen3vl_4b_fp8_scaled\.safetensors there",
    ),
    "krea 2 in mxfp8": (
        lambda p: kinds(p / "a.safetensors", {"a.weight": torch.float8_e4m3fn, "a.weight_scale": torch.uint8}),
        "weights in MXFP8, which cannot be read back exactly; get the bf16, fp16 or fp8 version",
    ),
    "krea 2 in int8": (
        lambda p: kinds(p / "a.safetensors", {"a.weight": torch.int8, "a.weight_scale": torch.float32}),
        "weights in int8, which cannot be read back exactly",
    ),
    "qwen text encoder": (
        lambda p: file(p / "a.safetensors", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
        r"a text encoder alone \(a language model\), not a base model",
    ),
    "t5": (lambda p: file(p / "a.safetensors", "encoder.block.0.layer.0.SelfAttention.q.weight"), r"text encoder alone \(T5\)"),
    "clip": (lambda p: file(p / "a.safetensors", "text_model.encoder.layers.0.mlp.fc1.weight"), r"text encoder alone \(CLIP\)"),
    "vae": (lambda p: file(p / "a.safetensors", "decoder.conv_in.weight"), r"a VAE, not a base model; model\.vae uses it"),
    "lora": (lambda p: file(p / "a.safetensors", "lora_unet_x.lora_down.weight"), "a LoRA, not a base model"),
    "gguf": (lambda p: gguf(p / "a.gguf"), r"is a GGUF file, whose weights are quantised .*get the model's \.safetensors"),
    "gguf with another ending": (lambda p: gguf(p / "a.safetensors"), "is a GGUF file"),
    "nf4": (
        lambda p: file(p / "a.safetensors", *SDXL, "model.diffusion_model.x.weight.quant_state.bitsandbytes__nf4"),
        r"weights in NF4 \(bitsandbytes\), which cannot be read back exactly; get the bf16, fp16 or fp8 version",
    ),
    "nvfp4": (lambda p: file(p / "a.safetensors", "layers.0.x.weight_scale_2", **Z_IMAGE), "weights in NVFP4"),
    "flux.1": (lambda p: file(p / "a.safetensors", "double_blocks.0.img_attn.qkv.weight"), "a Flux.1 or Chroma model"),
    "an empty folder": (lambda p: (p / "x").mkdir() or p / "x", r"no diffusers model folder \(it has no model_index\.json\)"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_said_of_a_layout(layout: str, tmp_path: Path) -> None:
    make, expected = LAYOUTS[layout]
    path = make(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(BaseModelError, match=expected) as failure:
            find_base(str(path))
        assert str(failure.value).rstrip().endswith((".", ")", ")."))
        return
    base = find_base(str(path))
    assert (base.family, base.layout, base.distilled) == expected
    assert base.path.name == path.name


def test_comfyuis_files_are_found_by_their_names_alone(tmp_path: Path) -> None:
    """As a recipe names them, from the folders of a ComfyUI."""
    models = tmp_path / "comfy" / "models"
    comfyui(models)
    adapter = file(models / "loras" / "adapter.safetensors", "x.lora_A.weight")
    chosen = ["model.base=z_image_bf16.safetensors", "model.train_base=", "model.vae=ae.safetensors",
              "train.training_adapter=adapter.safetensors"]  # fmt: skip
    settings = Settings(home=tmp_path / "home", comfyui=tmp_path / "comfy")
    base = recipe_base(load_recipe("z-image", chosen), settings.model_folders, anywhere=False)
    assert (base.family, base.layout, base.adapter) == ("z_image", "split", adapter)
    assert base.parts["vae"] == models / "vae" / "ae.safetensors"
    for key in ("model.vae", "train.training_adapter"):
        recipe = load_recipe("z-image", [*chosen, f"{key}=ade.safetensors"])
        with pytest.raises(BaseModelError, match=f"The file {key} = 'ade.safetensors' does not exist"):
            recipe_base(recipe, settings.model_folders)


def test_a_part_that_is_named_is_taken_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = comfyui(tmp_path, vae=False)
    own = file(tmp_path / "elsewhere" / "my.safetensors", **{"decoder.conv_in.weight": (2, 16, 1, 1)})
    base = find_base(str(path), given={"vae": own})
    assert base.parts["vae"] == own
    wrong = file(tmp_path / "elsewhere" / "other.safetensors", **{"decoder.conv_in.weight": (2, 4, 1, 1)})
    with pytest.raises(
        BaseModelError, match=r"is not the VAE of a Z-Image transformer; name the right file in model\.vae"
    ):
        find_base(str(path), given={"vae": wrong})


def test_another_vae_makes_another_base(tmp_path: Path) -> None:
    vae = file(tmp_path / "v.safetensors", "decoder.conv_in.weight")
    base = find_base("mini", given={"vae": vae})
    assert base.identity != find_base("mini").identity
    with pytest.raises(BaseModelError, match=r"model\.vae = .* is no VAE"):
        find_base("mini", given={"vae": file(tmp_path / "w.safetensors", "text_model.x")})


def test_fp8_weights_are_read_with_their_scales(tmp_path: Path) -> None:
    from lora_foundry.families._shared.tensors import has_scales, read_tensors

    wanted = torch.tensor([[1.5, -3.0], [0.25, 24.0]])
    for ending in ("scale_weight", "weight_scale"):
        tensors = {
            "a.weight": (wanted / 2).to(torch.float8_e4m3fn),
            f"a.{ending}": torch.tensor([2.0]),
            "b.weight": wanted.to(torch.float8_e4m3fn),
            "a.bias": wanted[0],
            "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
        }
        path = named(tmp_path / f"{ending}.safetensors", tensors)
        read = read_tensors(path, "", torch.float32)
        assert has_scales(path)
        assert set(read) == {"a.weight", "b.weight", "a.bias"}
        assert torch.equal(read["a.weight"], wanted)
        assert torch.equal(read["b.weight"], wanted)


def test_a_folder_of_mixed_variants_loads(tmp_path: Path) -> None:
    from lora_foundry.families._shared.loading import load_pipeline

    base = find_base(str(copied(tmp_path, half("unet"))))
    pipeline = load_pipeline(base, torch.float32, "cpu")
    (weights,) = (MODEL_DIR / "unet").glob("*.safetensors")
    name, tensor = next(iter(load_file(weights).items()))
    assert torch.equal(pipeline.unet.state_dict()[name], tensor.float())
