"""The exported file is what kohya's trainer would write, and every reader gets the trainer's own picture from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from lora_foundry.errors import DivergedError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import load_pipeline, quiet_libraries
from lora_foundry.families.sd import train as sd
from lora_foundry.trainer.export import kohya_tensors, lora_bytes, write_lora
from lora_foundry.trainer.lora import UP, Adapter
from tests.commands import start_code
from tests.unit.trainer.conftest import short_section

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(base: Base) -> tuple[sd.Model, Adapter]:
    """A model with a LoRA that changes a lot, alpha unlike rank."""
    settings = short_section(alpha=3.0)
    model = sd.load(base, settings, CPU)
    adapter = Adapter(model.networks, model.lora_targets(settings), settings, 5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for piece in adapter.modules:
            up = piece.tensors[UP]
            up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
    return model, adapter


@pytest.fixture(scope="module")
def exported(trained: tuple[sd.Model, Adapter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, adapter = trained
    path = tmp_path_factory.mktemp("export") / "lora.safetensors"
    write_lora(
        path,
        kohya_tensors(adapter, adapter.state(), model.export_name),
        {"ss_a": "ü", "modelspec.title": "x"},
    )
    return path


def draw(pipeline: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    with quiet_libraries():
        result = pipeline("1girl, red dress", num_inference_steps=3, generator=generator, output_type="np")
    return np.asarray(result.images[0])


def test_names_shapes_and_types_are_kohyas(exported: Path, trained: tuple[sd.Model, Adapter]) -> None:
    tensors = load(exported.read_bytes())
    assert len(tensors) == 3 * len(trained[1].modules)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    stem = "lora_unet_mid_block_attentions_0_"
    assert tensors[f"{stem}proj_in.lora_down.weight"].shape == (4, 160, 1, 1)
    assert tensors[f"{stem}proj_in.lora_up.weight"].shape == (160, 4, 1, 1)
    block = f"{stem}transformer_blocks_0_"
    assert tensors[f"{block}attn2_to_k.lora_down.weight"].shape == (4, 160)
    assert tensors[f"{block}attn1_to_out_0.lora_up.weight"].shape == (160, 4)
    assert tensors[f"{block}ff_net_0_proj.lora_up.weight"].shape == (1280, 4)
    assert tensors[f"{block}ff_net_2.alpha"].shape == ()
    assert tensors[f"{block}ff_net_2.alpha"].item() == 3.0


def test_diffusers_uses_every_key_and_draws_the_trainers_picture(
    exported: Path, trained: tuple[sd.Model, Adapter], base: Base
) -> None:
    theirs: Any = load_pipeline(base, torch.float32, CPU)
    plain = draw(theirs)
    with quiet_libraries():
        theirs.load_lora_weights(exported)
    layers = dict(theirs.unet.named_modules())
    tensors = load(exported.read_bytes())
    for piece in trained[1].modules:
        name = trained[0].export_name(piece.target)
        (adapter,) = layers[piece.target.module].lora_A
        assert torch.equal(
            layers[piece.target.module].lora_A[adapter].weight, tensors[f"{name}.lora_down.weight"].float()
        )
        assert torch.equal(
            layers[piece.target.module].lora_B[adapter].weight, tensors[f"{name}.lora_up.weight"].float()
        )
        assert layers[piece.target.module].scaling[adapter] == 0.75
    with_lora = draw(theirs)

    ours: Any = load_pipeline(base, torch.float32, CPU)
    ours.register_modules(unet=trained[0].network)
    assert np.abs(draw(ours) - with_lora).max() < 0.02
    assert np.abs(plain - with_lora).mean() > 0.02


def test_sd15s_modules_are_the_192_of_sd_scripts() -> None:
    """Only the layout of the real UNet is built: no memory is taken for its weights."""
    from diffusers import UNet2DConditionModel

    from lora_foundry.families.sd.load import LOADER
    from lora_foundry.families.sd.names import export_name, lora_targets

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(LOADER.configurations / "sd" / "unet")
        )
    targets = lora_targets(unet, short_section())
    assert len(targets) == 192
    assert len(lora_targets(unet, short_section(targets=["attention"]))) == 128
    # The time embeddings of the 22 residual blocks among them.
    assert len(lora_targets(unet, short_section(conv_rank=4))) == 192 + 86
    assert export_name(targets[0]) == "lora_unet_down_blocks_0_attentions_0_proj_in"


def test_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    """The library's own writer shuffles the header by a hash that is random in each process."""
    written = tmp_path / "other.safetensors"
    code = (
        "import pathlib, torch; from lora_foundry.trainer.export import lora_bytes;"
        f"pathlib.Path({str(written)!r}).write_bytes(lora_bytes({{'b': torch.ones(3), 'a': torch.zeros(2)}},"
        " {f'ss_{n}': 'ü' for n in range(30)}))"
    )
    assert start_code(code, tmp_path).wait() == 0
    here = lora_bytes(
        {"a": torch.zeros(2), "b": torch.ones(3)}, {f"ss_{n}": "ü" for n in reversed(range(30))}
    )
    assert here == written.read_bytes()
    assert torch.equal(load(here)["b"], torch.ones(3))


def test_metadata_survives_and_the_hash_is_of_the_weights(exported: Path) -> None:
    import hashlib

    with safe_open(exported, "pt") as file:
        metadata = file.metadata()
    data = exported.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert metadata["ss_a"] == "ü"
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[8 + header :]).hexdigest()
    assert len(metadata["sshs_legacy_hash"]) == 8
    assert json.loads(data[8 : 8 + header])["__metadata__"] == metadata


def test_weights_that_do_not_fit_fp16_are_not_written(base: Base) -> None:
    model = sd.load(base, short_section(), CPU)
    settings = short_section(targets=["projection"])
    adapter = Adapter(model.networks, model.lora_targets(settings), settings, 5)
    with torch.no_grad():
        adapter.modules[0].tensors[UP][0] = 1e6
    with pytest.raises(DivergedError, match=r"train\.learning_rate"):
        kohya_tensors(adapter, adapter.state(), model.export_name)
