"""Where a pipeline's parts lie while it draws: what is chosen for a card, and that pictures are the same for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_foundry.backends.diffusers import DiffusersGenerator, generator, merging
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_denoiser, load_pipeline
from lora_foundry.families._shared.placement import Placement, arrange, choose_placement, needed_to_draw
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.streaming import streams_of
from lora_foundry.mini import MODEL_DIR
from tests.unit.trainer import tiny_bases, tiny_qwen
from tests.unit.trainer.conftest import short_section

GIB = 1 << 30
# Bytes in 16 bits of what is published: transformer and text encoders by their numbers of weights.
Z_IMAGE = {"transformer": 2 * 6_155_000_000, "text_encoder": 2 * 4_022_000_000, "vae": 168_000_000}
SDXL = {
    "unet": 2 * 2_567_000_000,
    "text_encoder": 246_000_000,
    "text_encoder_2": 1_389_000_000,
    "vae": 167_000_000,
}


@pytest.mark.parametrize(
    ("parts", "room", "expected"),
    [
        (SDXL, 6, Placement(offload=True, tiled=False)),
        (SDXL, 10, Placement(offload=False, tiled=False)),
        (Z_IMAGE, 14, Placement(offload=True, tiled=False)),
        (Z_IMAGE, 22, Placement(offload=False, tiled=False)),
        (Z_IMAGE, 6, Placement(offload=False, tiled=False, streamed=True)),
        (
            {"unet": GIB // 2, "text_encoder": GIB // 2, "vae": GIB // 8},
            1,
            Placement(offload=True, tiled=True),
        ),
    ],
)
def test_what_is_chosen_for_a_card(parts: dict[str, int], room: int, expected: Placement) -> None:
    assert choose_placement(parts, GIB // 2, 3 * GIB // 2, room * GIB) == expected


@given(
    parts=st.dictionaries(st.sampled_from(["unet", "vae", "text_encoder"]), st.integers(0, 20 * GIB)),
    denoising=st.integers(0, 8 * GIB), decoding=st.integers(0, 8 * GIB), room=st.integers(0, 80 * GIB),
)  # fmt: skip
def test_what_lies_there_at_once_fits_or_is_made_smaller(
    parts: dict[str, int], denoising: int, decoding: int, room: int
) -> None:
    chosen = choose_placement(parts, denoising, decoding, room)
    together = sum(parts.values())
    elsewhere = chosen.offload or chosen.streamed
    assert elsewhere or together + max(denoising, decoding) <= room
    assert not chosen.offload or max(parts.values(), default=0) + denoising <= room
    lying = parts.get("vae", 0) if elsewhere else together
    assert chosen.tiled or lying + decoding <= room
    larger = choose_placement(parts, denoising, decoding, 2 * room)
    assert elsewhere or larger == Placement(offload=False, tiled=False)


def test_what_drawing_takes_grows_with_the_batch_and_the_picture() -> None:
    base = find_base("mini")
    pipeline = load_pipeline(base, torch.float32, None)

    def needed(**chosen: Any) -> tuple[dict[str, int], int, int]:
        section = GenerateSection(
            suffix="", negative="", **{"width": 512, "height": 512, "batch_size": 1} | chosen
        )
        return needed_to_draw(pipeline, base, section)

    parts, denoising, decoding = needed()
    assert set(parts) == {"unet", "vae", "text_encoder"}
    assert min(parts.values()) > 0
    assert needed(batch_size=2)[1:] == pytest.approx((2 * denoising, decoding), rel=1e-6)
    assert needed(width=1024, height=1024)[1:] == pytest.approx((4 * denoising, 4 * decoding), rel=1e-6)
    assert needed(cfg=1.0)[1] == pytest.approx(denoising / 2, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mini", "z_image", "klein", "qwen_image", "krea2", "anima"])
def test_parts_that_come_one_after_another_draw_the_same_picture(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU as the device that the parts come to: what asks them (prompts, pipeline, VAE) goes through their hooks."""
    make = {
        "mini": lambda folder: MODEL_DIR,
        "z_image": tiny_bases.z_image_folder,
        "klein": tiny_bases.klein_folder,
        "qwen_image": tiny_qwen.qwen_image_folder,
        "krea2": tiny_qwen.krea2_folder,
        "anima": tiny_qwen.anima_folder,
    }
    base = find_base(str(make[family](tmp_path / "z-image-base")))
    lora = LoraUse(path=random_lora(base, tmp_path / "lora.safetensors"))
    moved: list[str] = []

    def placed(pipeline: Any, base: Base, section: GenerateSection, device: torch.device) -> None:
        # The library turns it off while it loads a LoRA, and on again without a word of the device.
        on = partial(type(pipeline).enable_model_cpu_offload, pipeline, device=device)
        monkeypatch.setattr(pipeline, "enable_model_cpu_offload", lambda **given: on())
        arrange(pipeline, Placement(offload=True, tiled=False), device)
        moved.extend(name for name, part in pipeline.components.items() if hasattr(part, "_hf_hook"))

    plain, changed = draw(base), draw(base, lora)
    assert not np.array_equal(plain, changed)
    monkeypatch.setattr(generator, "place_pipeline", placed)
    assert np.array_equal(draw(base), plain)
    assert np.array_equal(draw(base, lora), changed)
    assert {"text_encoder", "vae"} < set(moved)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mini", "z_image", "klein"])
def test_blocks_that_come_one_after_another_draw_the_same_picture(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a LoRA on top, which cannot be merged into weights that are not at hand, and off again."""
    make = {
        "mini": lambda folder: MODEL_DIR,
        "z_image": tiny_bases.z_image_folder,
        "klein": tiny_bases.klein_folder,
    }
    base = find_base(str(make[family](tmp_path / "z-image-base")))
    lora = LoraUse(path=random_lora(base, tmp_path / "lora.safetensors"))
    seen: list[str] = []

    def placed(pipeline: Any, base: Base, section: GenerateSection, device: torch.device) -> None:
        arrange(pipeline, Placement(offload=False, tiled=False, streamed=True), device)
        parts = pipeline.components.items()
        seen.extend(name for name, part in parts if isinstance(part, torch.nn.Module) and streams_of(part))

    plain = draw(base)
    monkeypatch.setattr(
        merging, "total_memory", lambda: 0
    )  # so that the LoRA is computed beside the weights here, too
    changed = draw(base, lora)
    monkeypatch.undo()
    monkeypatch.setattr(generator, "place_pipeline", placed)
    assert np.array_equal(draw(base), plain)
    assert np.array_equal(draw(base, lora), changed)
    assert len(set(seen)) == 2
    assert "text_encoder" in seen


def random_lora(base: Base, path: Path) -> Path:
    """A LoRA of random numbers for the layers of the denoiser's attention."""
    names = family_part(base.family, "names")
    network = load_denoiser(base, torch.float32)
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for target in names.lora_targets(network, short_section(targets=["attention"])):
        high, wide = network.get_submodule(target.module).weight.shape[:2]
        name, form = names.export_name(target), names.FILE_FORMAT
        tensors[f"{name}.{form.down}"] = torch.randn(2, wide, generator=random)
        tensors[f"{name}.{form.up}"] = torch.randn(high, 2, generator=random)
    save_file(tensors, path)
    return path


def draw(base: Base, lora: LoraUse | None = None) -> np.ndarray[Any, Any]:
    requests = [
        ImageRequest(
            key=str(seed), prompt="elara, running", negative="", seed=seed, width=64, height=64, steps=2, cfg=2.0,
            sampler="euler", scheduler="normal",
        )
        for seed in (1, 2)
    ]  # fmt: skip
    made = DiffusersGenerator(base, GenerateSection(width=64, height=64, suffix="", negative=""), "cpu")
    return np.stack([np.asarray(each.image) for each in made.generate([requests[:1], requests[1:]], lora)])
