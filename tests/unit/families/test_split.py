"""ComfyUI's split files of each family that has them, tiny, all the way: found, loaded, drawn with and trained, with the
weights and pictures of the diffusers folder that they were made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline
from lora_foundry.families._shared.qwen import language_tensors
from lora_foundry.families._shared.registry import family_part
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer import tiny_bases, tiny_qwen
from tests.unit.trainer.conftest import make_job, pictures  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow

Names = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Case(NamedTuple):
    """How the folder is made, and its files in ComfyUI's folders; ComfyUI's names; the file's name and configuration; the
    sizes by which files are told."""

    folder: Callable[[Path], Path]
    split: Callable[[Path, Path, str, dict[str, Tensor]], Path]
    names: Names
    name: str
    configuration: str
    sizes: dict[str, int]


FAMILIES: dict[str, Case] = {
    "z_image": Case(
        tiny_bases.z_image_folder, tiny_bases.split_files, tiny_bases.z_image_names, "z_image_bf16", "base",
        {"_WIDTH": 32, "_TEXT_WIDTH": 24, "_TEXT_LAYERS": 2},
    ),
    "klein": Case(
        tiny_bases.klein_folder, tiny_bases.split_files, tiny_bases.klein_names, "flux-2-klein-base-4b", "base",
        {"WIDTH_4B": 32, "_TEXT_WIDTH": 8, "_TEXT_LAYERS": 28},
    ),
    "qwen_image": Case(
        tiny_qwen.qwen_image_folder, tiny_qwen.split_files, dict, "qwen_image_2512_bf16", "base",
        {"_WIDTH": 32, "_TEXT_WIDTH": 24, "_TEXT_LAYERS": 2},
    ),
    "anima": Case(
        tiny_qwen.anima_folder, tiny_qwen.anima_split, tiny_qwen.anima_names, "anima-base-v1.0", "base",
        {"_WIDTH": 48, "_TEXT_WIDTH": 24, "_TEXT_LAYERS": 2},
    ),
    "krea2": Case(
        tiny_qwen.krea2_folder, tiny_qwen.split_files, tiny_qwen.krea2_names, "krea2_raw_bf16", "raw",
        {"_WIDTH": 32, "_TEXT_WIDTH": 24, "_TEXT_LAYERS": 2},
    ),
}  # fmt: skip
LAYOUTS: dict[str, Callable[[dict[str, Tensor], Names], dict[str, Tensor]]] = {
    "as comfyui has it": lambda tensors, names: names(tensors),
    "as comfyui saves it": lambda tensors, names: {
        f"model.diffusion_model.{name}": tensor for name, tensor in names(tensors).items()
    },
    "with a short prefix": lambda tensors, names: {
        f"diffusion_model.{name}": tensor for name, tensor in names(tensors).items()
    },
    "under diffusers' names": lambda tensors, names: tensors,
    "with the rest in one file": lambda tensors, names: {
        "text_encoders.qwen3_4b.model.norm.weight": torch.zeros(3),
        **{f"model.diffusion_model.{name}": tensor for name, tensor in names(tensors).items()},
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, FAMILIES[request.param].folder(tmp_path_factory.mktemp(request.param))


@pytest.fixture
def split(folder: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Base]:
    """The folder's weights as split files in a layout; sizes and configurations are those of the tiny model."""
    family, place = folder
    case, detect = FAMILIES[family], family_part(family, "detect")
    for constant, value in case.sizes.items():
        monkeypatch.setattr(detect, constant, value)
    own_configurations(family, place, tmp_path / "configurations" / case.configuration)
    load = family_part(family, "load")
    monkeypatch.setattr(load, "LOADER", replace(load.LOADER, configurations=tmp_path / "configurations"))
    for vocabulary in detect.VOCABULARIES:
        monkeypatch.setenv(vocabulary.variable, str(place / "tokenizer"))

    def make(layout: str) -> Base:
        transformer = LAYOUTS[layout](tiny_bases.read_part(place, "transformer"), case.names)
        return find_base(str(case.split(place, tmp_path / "models", case.name, transformer)))

    return make


def own_configurations(family: str, place: Path, target: Path) -> None:
    """The tiny model's, in the shape that the family's own have: of some text encoders only the language is loaded."""
    tiny_bases.configurations(place, target)
    if (target / "modular_model_index.json").exists():  # ours are in the plain form
        (target / "modular_model_index.json").unlink()
        shutil.copy(family_part(family, "load").LOADER.configurations / "base" / "model_index.json", target)
    text = target / "text_encoder" / "config.json"
    config = json.loads(text.read_text())
    loader = family_part(family, "load").LOADER
    if loader.text_class not in config["architectures"]:
        text.write_text(json.dumps(config["text_config"] | {"architectures": [loader.text_class]}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_of_the_folder_is_loaded(
    folder: tuple[str, Path], split: Callable[[str], Base], layout: str
) -> None:
    if folder[0] == "anima" and layout == "under diffusers' names":
        with pytest.raises(BaseModelError, match="without Anima's adapter; give the folder"):
            split(layout)  # there the adapter is a file of its own
        return
    base = split(layout)
    assert (base.family, base.layout, sorted(base.parts)) == (folder[0], "split", ["text_encoder", "vae"])
    theirs = load_pipeline(find_base(str(folder[1])), torch.float32, "cpu")
    ours = load_pipeline(base, torch.float32, "cpu")
    for part in [
        part for part in ("transformer", "vae", "text_encoder", "text_conditioner") if hasattr(ours, part)
    ]:
        wanted, found = (
            language_tensors(getattr(each, part).state_dict())
            if part == "text_encoder"
            else getattr(each, part).state_dict()
            for each in (theirs, ours)
        )
        assert wanted.keys() == found.keys(), part
        assert all(torch.equal(wanted[name], found[name]) for name in wanted), part


def draw(base: Base, lora: LoraUse | None = None) -> np.ndarray[Any, Any]:
    request = ImageRequest(
        key="1", prompt="elara, running", negative="", seed=3, width=64, height=64, steps=2, cfg=2.0,
        sampler="euler", scheduler="normal",
    )  # fmt: skip
    generator = DiffusersGenerator(base, GenerateSection(width=64, height=64, suffix="", negative=""), "cpu")
    return np.asarray(next(iter(generator.generate([[request]], lora))).image, dtype=float)


def test_it_draws_and_learns_what_the_folder_does(
    folder: tuple[str, Path],
    split: Callable[[str], Base],
    make_job: Callable[..., TrainingJob],  # noqa: F811
    tmp_path: Path,
) -> None:
    split_base, folder_base = split("as comfyui has it"), find_base(str(folder[1]))
    plain = draw(split_base)
    assert np.abs(plain - draw(folder_base)).max() <= 1
    trained = {}
    for base in (split_base, folder_base):
        job = make_job(
            tmp_path / base.layout, steps=1, learning_rate=5e-2, warmup_steps=0, checkpoint_every=1,
            sample_prompts=["{trigger}"], sample_steps=2, saves=1,
        )  # fmt: skip
        InProcessTrainer(base, "cpu").train(job, lambda event: None)
        trained[base.layout] = load_file(job.output)
        assert list((job.workdir / "samples").glob("*.png"))
    assert trained["split"].keys() == trained["folder"].keys()
    for name, tensor in trained["folder"].items():
        assert torch.allclose(trained["split"][name].float(), tensor.float(), atol=2e-3), name
    use = LoraUse(path=tmp_path / "split" / "lora.safetensors")
    assert np.abs(draw(split_base, use) - plain).max() > 1
