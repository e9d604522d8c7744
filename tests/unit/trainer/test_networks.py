"""LoCon, DoRA, LoHa and LoKr: what a file says is what the trainer learned, for every reader there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_foundry.backends.diffusers.lora import check_lora, lora_source
from lora_foundry.backends.diffusers.lycoris import is_lycoris, put_on
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.drawing import make_drawing
from lora_foundry.families._shared.loading import load_pipeline, quiet_libraries
from lora_foundry.families.sd import train as sd
from lora_foundry.recipe_files import load_recipe
from lora_foundry.trainer.export import kohya_tensors, write_lora
from lora_foundry.trainer.lora import Adapter
from tests.unit.trainer.conftest import short_section

pytestmark = pytest.mark.slow

pytest.importorskip("lycoris")


def answer(unet: Any, encoder: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    ids = torch.arange(encoder.config.max_position_embeddings)[None]
    with torch.no_grad():
        text = encoder(ids).last_hidden_state
        result: Tensor = unet(latents, torch.tensor([300]), text, return_dict=False)[0]
    return result


@pytest.mark.parametrize("network", ["lora", "dora", "loha", "lokr"])
def test_the_file_does_what_was_learned(network: str, base: Base, tmp_path: Path) -> None:
    text_rate = 0.0 if network == "dora" else 1e-3
    settings = short_section(network=network, conv_rank=2, text_encoder_rate=text_rate, alpha=3.0)
    model = sd.load(base, settings, torch.device("cpu"))
    networks = model.networks
    theirs: Any = load_pipeline(base, torch.float32, "cpu")
    encoder = networks.get("te", theirs.text_encoder)
    plain = answer(networks["unet"], encoder)
    adapter = Adapter(networks, model.lora_targets(settings), settings, 5)
    assert torch.allclose(answer(networks["unet"], encoder), plain, atol=1e-4), "it begins without any effect"
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in adapter.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    learned = answer(networks["unet"], encoder)
    path = tmp_path / "lora.safetensors"
    write_lora(path, kohya_tensors(adapter, adapter.state(), model.export_name), {})

    drawing = make_drawing(theirs, base, load_recipe("mini").generate)
    keys = check_lora(path, drawing)
    assert any(".alpha" in key for key in keys)
    applied = []
    if is_lycoris(keys):
        applied = put_on(path, drawing, 1.0)
        assert len(applied) == len(adapter.modules)
    else:
        with quiet_libraries():
            theirs.load_lora_weights(lora_source(path, keys, drawing))
    read = answer(theirs.unet, theirs.text_encoder)
    effect = float((learned - plain).norm())
    assert effect > 0.05 * float(plain.norm())
    assert float((read - learned).norm()) < 0.02 * effect
    for module in applied:
        module.restore()
    if applied:
        assert torch.equal(answer(theirs.unet, theirs.text_encoder), plain)
