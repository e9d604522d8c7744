"""The families beside Stable Diffusion 1.x, each on a tiny base with random weights: the loss falls, a stopped training
goes on exactly, the export loads in diffusers with every key used and draws the trainer's own picture, and our own
generator takes base and LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import BaseModelError, InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline, quiet_libraries
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.families.sdxl import load as sdxl_load
from lora_foundry.mini import MODEL_DIR
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer import tiny_bases, tiny_qwen
from tests.unit.trainer.conftest import short_section

pytestmark = pytest.mark.slow

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sdxl": tiny_bases.sdxl_folder,
    "z_image": tiny_bases.z_image_folder,
    "klein": tiny_bases.klein_folder,
    "qwen_image": tiny_qwen.qwen_image_folder,
    "krea2": tiny_qwen.krea2_folder,
    "anima": tiny_qwen.anima_folder,
}
SETTINGS: dict[str, dict[str, object]] = {
    "sdxl": {"text_encoder_rate": 1e-2, "conv_rank": 2, "buckets": True, "min_snr_gamma": 5.0},
    "z_image": {},
    "klein": {},
    "qwen_image": {},
    "krea2": {},
    "anima": {},
}
# How the pipeline of each is asked for guidance of 5 against an empty negative prompt; Klein's is always empty.
GUIDED: dict[str, dict[str, object]] = {
    "sdxl": {"guidance_scale": 5.0, "negative_prompt": ""},
    "z_image": {"guidance_scale": 4.0, "negative_prompt": ""},
    "klein": {"guidance_scale": 5.0},
    "qwen_image": {"true_cfg_scale": 5.0, "negative_prompt": ""},
    "krea2": {"guidance_scale": 4.0, "negative_prompt": ""},
    "anima": {"guidance_scale": 5.0, "negative_prompt": ""},
}


class Stopped(Exception):
    """Stands for anything that ends a process between two steps."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(FAMILIES[request.param](tmp_path_factory.mktemp(request.param))))


def draw(pipeline: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    with quiet_libraries():
        result = pipeline(
            prompt="elara, running",
            num_inference_steps=2,
            generator=generator,
            output_type="np",
            width=64,
            height=64,
        )
    return np.asarray(result.images[0])


def losses(job: TrainingJob) -> list[float]:
    return [float(row.split(",")[1]) for row in (job.workdir / "loss.csv").read_text().splitlines()[1:]]


def test_it_learns_loads_and_draws_the_trainers_picture(
    family: Base, make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = make_job(
        tmp_path, steps=20, learning_rate=2e-2, checkpoint_every=20, batch_size=4, rank=8, alpha=8.0, saves=2,
        lr_schedule="constant", sample_prompts=["{trigger}, running"], sample_steps=2, **SETTINGS[family.family],
    )  # fmt: skip
    job = job._replace(images=job.images[:1])
    InProcessTrainer(family, "cpu").train(job, lambda event: None)
    rows = losses(job)
    assert sum(rows[-5:]) < 0.9 * sum(rows[:5])
    assert len(list((job.workdir / "samples").glob("*.png"))) == 2

    pipeline = load_pipeline(family, torch.float32, "cpu")
    plain = draw(pipeline)
    tensors = load_file(job.output)
    with quiet_libraries():
        pipeline.load_lora_weights(job.output)
    used = sum(
        1
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for name, _ in part.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    )
    assert used == sum(
        1 for name in tensors if any(f"lora_{side}" in name for side in ("down", "up", "A", "B"))
    )
    with_lora = draw(pipeline)
    assert np.abs(with_lora - plain).mean() > 1e-3
    # The trainer drew with its own network when the last export was kept.
    with Image.open(job.workdir / "samples" / "step-0020-1.png") as opened:
        ours = np.asarray(opened, dtype=float)
    with quiet_libraries():
        theirs = pipeline(
            prompt="elara, running", **GUIDED[family.family], num_inference_steps=2, width=64, height=64,
            generator=torch.Generator().manual_seed(7),
        ).images[0]  # fmt: skip
    assert np.abs(np.asarray(theirs, dtype=float) - ours).mean() < 1.5

    request = ImageRequest(
        key="1", prompt="elara, running", negative="", seed=3, width=64, height=64, steps=2, cfg=2.0,
        sampler="euler", scheduler="normal",
    )  # fmt: skip
    generator = DiffusersGenerator(
        family, GenerateSection(width=64, height=64, suffix="", negative=""), "cpu"
    )
    without, using = (
        np.asarray(next(iter(generator.generate([[request]], lora))).image, dtype=float)
        for lora in (None, LoraUse(path=job.output))
    )
    assert np.abs(without - using).max() > 2


def test_stopped_it_goes_on_to_the_same_bytes(
    family: Base, make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    given = {"steps": 4, "checkpoint_every": 1, **SETTINGS[family.family]}
    whole, stopped = make_job(tmp_path / "a", **given), make_job(tmp_path / "b", **given)
    trainer = InProcessTrainer(family, "cpu")
    trainer.train(whole, lambda event: None)

    def stop(event: Any) -> None:
        if event.done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        trainer.train(stopped, stop)
    assert trainer.train(stopped, lambda event: None).resumed_from > 0
    assert stopped.output.read_bytes() == whole.output.read_bytes()


@pytest.mark.parametrize("markers", [(), ("v_pred", "ztsnr")])
def test_sdxl_from_one_file(
    markers: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file gives the folder's network, and what it says about its training reaches the scheduler."""
    folder = tiny_bases.sdxl_folder(tmp_path / "folder")
    tiny_bases.configurations(folder, tmp_path / "own" / "sdxl")
    own = replace(sdxl_load.LOADER, configurations=tmp_path / "own")
    monkeypatch.setattr(sdxl_load, "LOADER", own)
    monkeypatch.setenv(CLIP.variable, str(MODEL_DIR / "tokenizer"))
    base = find_base(str(tiny_bases.sdxl_file(folder, tmp_path / "noob.safetensors", *markers)))
    assert (base.family, base.configuration) == ("sdxl", "sdxl")
    theirs = load_pipeline(find_base(str(folder)), torch.float32, "cpu")
    ours = load_pipeline(base, torch.float32, "cpu")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        wanted, found = getattr(theirs, part).state_dict(), getattr(ours, part).state_dict()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted), part
    config = ours.scheduler.config
    expected = ("v_prediction", True) if markers else ("epsilon", False)
    assert (config.prediction_type, bool(config.get("rescale_betas_zero_snr", False))) == expected
    told = base.told("epsilon", "off")
    assert told.identity != base.identity
    assert load_pipeline(told, torch.float32, "cpu").scheduler.config.prediction_type == "epsilon"


def test_settings_that_fit_no_flow_matching_transformer_are_refused(tmp_path: Path) -> None:
    from lora_foundry.families._shared.family import load_family

    base = find_base(str(tiny_bases.z_image_folder(tmp_path)))
    for given, word in (
        ({"min_snr_gamma": 5.0}, "min_snr_gamma"),
        ({"text_encoder_rate": 1e-4}, "text_encoder_rate"),
        ({"conv_rank": 4}, "conv_rank"),
    ):
        with pytest.raises(InputError, match=word):
            load_family(base, short_section(**given), torch.device("cpu"))


def test_an_sdxl_file_without_its_encoders_is_named(tmp_path: Path) -> None:
    folder = tiny_bases.sdxl_folder(tmp_path / "folder")
    path = tiny_bases.sdxl_file(folder, tmp_path / "x.safetensors")
    tensors = {name: tensor for name, tensor in load_file(path).items() if "embedders.1" not in name}
    from safetensors.torch import save_file

    save_file(tensors, path)
    with pytest.raises(BaseModelError, match=r"an SDXL model .* without its text encoder"):
        find_base(str(path))
