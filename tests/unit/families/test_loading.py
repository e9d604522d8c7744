"""A base loads from a folder and from one file, offline, and gives the same pictures."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared import loading
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.families.sd import load as sd_load
from lora_foundry.mini import MODEL_DIR

pytestmark = pytest.mark.slow


def draw(pipeline: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    result = pipeline(
        "1girl", num_inference_steps=2, generator=generator, output_type="np", width=64, height=64
    )
    return np.asarray(result.images[0])


@pytest.mark.usefixtures("own_configuration")
def test_one_file_gives_the_folders_picture(tiny_file: Path, tiny_folder: Path) -> None:
    from_folder = loading.load_pipeline(find_base(str(tiny_folder)), torch.float32, "cpu")
    from_file = loading.load_pipeline(find_base(str(tiny_file)), torch.float32, "cpu")
    for part in ("unet", "vae", "text_encoder"):
        wanted, found = getattr(from_folder, part).state_dict(), getattr(from_file, part).state_dict()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted), part
    # Where a file's tensors lie in memory decides which of a processor's instructions add them up.
    assert np.allclose(draw(from_file), draw(from_folder), atol=1e-5)


def test_our_configuration_is_stable_diffusion_15s() -> None:
    """Sizes as published: 860 million weights in the UNet, 84 in the VAE, 123 in the text encoder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = sd_load.LOADER.configurations / "sd"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text = CLIPTextModel(CLIPTextConfig.from_json_file(folder / "text_encoder" / "config.json"))
    counts = [sum(weight.numel() for weight in part.parameters()) for part in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


def test_loading_and_drawing_say_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        draw(loading.load_pipeline(find_base("mini"), torch.float32, "cpu"))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_the_libraries_say_is_restored() -> None:
    import diffusers.utils.logging as libraries

    before = libraries.get_verbosity(), libraries.is_progress_bar_enabled()
    with loading.quiet_libraries():
        assert not libraries.is_progress_bar_enabled()
    assert (libraries.get_verbosity(), libraries.is_progress_bar_enabled()) == before


def test_weights_that_do_not_fit_the_configuration_are_one_sentence(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))
    (weights,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["conv_in.weight"] = torch.zeros(3, 4, 3, 3)
    save_file(tensors, weights)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        loading.load_pipeline(find_base(str(folder)), torch.float32, "cpu")


def test_a_missing_vocabulary_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLIP.variable, str(tmp_path))
    with pytest.raises(BaseModelError, match=r"holds no CLIP vocabulary"):
        loading.load_clip_vocabulary()
    monkeypatch.delenv(CLIP.variable)
    monkeypatch.setattr(loading, "CLIP", CLIP._replace(repository="no-one/has-this"))
    with pytest.raises(
        BaseModelError, match=r"could not be fetched; go online once and .*setup.* or set LORA_FOUNDRY_CLIP"
    ):
        loading.load_clip_vocabulary()
