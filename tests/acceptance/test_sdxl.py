"""`create --recipe sdxl` as it ships: one checkpoint file in Illustrious' layout, WD's tagger and CCIP from the hub's cache,
rounds that complete the description, curation by identity, pruned captions. Reduced are the networks' width and the
numbers of pictures and steps; no backend, instrument or way of working is chosen here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_foundry import Character, Foundry
from lora_foundry.backends.comfyui.keys import loaded_modules
from lora_foundry.backends.onnx.embedders import CcipEmbedder
from lora_foundry.backends.onnx.wd_tagger import WdTagger
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.families.sdxl import load as sdxl_load
from lora_foundry.files.download import Source
from lora_foundry.files.safetensors import read_header
from lora_foundry.mini import MODEL_DIR
from lora_foundry.recipe_files import load_recipe
from tests.contract.test_onnx_instruments import make_mean_embedder, make_tagger
from tests.unit.trainer import tiny_bases

pytestmark = pytest.mark.slow

SMALL = (
    "generate.images=6", "generate.steps=2", "generate.width=64", "generate.height=64", "generate.round_images=4",
    "train.epochs=2", "train.repeats=1", "train.resolution=64", "train.rank=4", "train.checkpoint_every=2",
    "evaluate.prompts=1", "evaluate.seeds=1", "evaluate.choice_prompts=1", "publish.min_change=0",
)  # fmt: skip


def in_the_hubs_cache(cache: Path, source: Source, file: Path) -> None:
    """Where the hub's client would have put a file that it fetched."""
    place = cache / f"models--{source.repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text("0" * 40)
    target = place / "snapshots" / ("0" * 40) / source.path
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `setup sdxl` leaves behind, at reduced width."""
    home, cache, made = tmp_path / "home", tmp_path / "hub", tmp_path / "made"
    (home / "models").mkdir(parents=True)
    made.mkdir()
    folder = tiny_bases.sdxl_folder(tmp_path / "sdxl")
    tiny_bases.sdxl_file(folder, home / "models" / load_recipe("sdxl").model.base)
    tiny_bases.configurations(folder, tmp_path / "configurations" / "sdxl")
    monkeypatch.setattr(
        sdxl_load, "LOADER", replace(sdxl_load.LOADER, configurations=tmp_path / "configurations")
    )
    make_tagger(made)
    make_mean_embedder(made / CcipEmbedder.source.name, 384, tokens=False)
    for source in (WdTagger.model, WdTagger.names, CcipEmbedder.source):
        in_the_hubs_cache(cache, source, made / source.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv(CLIP.variable, str(MODEL_DIR / "tokenizer"))
    return home


def test_the_sdxl_recipe_makes_a_lora_from_illustrious_file_with_nothing_set(home: Path) -> None:
    elara = Character(name="Elara", description="1girl, brown hair, long hair")
    result = Foundry(home).create(elara, "sdxl", settings=SMALL)
    assert (result.status, result.published) == ("completed", True)

    folder = result.dataset_dir
    captions = [path.read_text(encoding="utf-8") for path in sorted((folder / "images").glob("*.txt"))]
    assert len(captions) == 6
    for caption in captions:
        assert caption.startswith("elara, ")
        assert not {"1girl", "brown hair", "long hair"} & set(caption.split(", ")), (
            "what defines her is left out"
        )
    assert any("from behind" in caption for caption in captions), "the tagger has looked"
    assert (folder / "rounds" / "01" / "round.json").is_file()
    curation = json.loads((folder / "curation.json").read_text(encoding="utf-8"))
    assert all(picture["measures"]["likeness"] is not None for picture in curation["accepted"])

    assert result.lora_path is not None
    lora, base = (
        read_header(path) for path in (result.lora_path, home / "models" / load_recipe("sdxl").model.base)
    )
    modules = {name.split(".")[0] for name in lora.shapes}
    known = loaded_modules(base.shapes)
    assert modules
    assert modules <= known, "ComfyUI loads every key"
    card = json.loads(result.lora_path.with_suffix(".metadata.json").read_text(encoding="utf-8"))
    assert (card["base_model"], card["base_version"]) == ("SDXL 1.0", "sdxl_base_v1-0")
