"""One picture becomes a LoRA through an edit workflow of a ComfyUI: every shot is an edit of that picture, and evaluation and
publication draw through the same server. The base that is trained is the miniature; the server is the stand-in, whose
pictures are noise of what it was told, so that no judge of pictures is asked here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lora_foundry import Character, Foundry
from lora_foundry.testing import comfyui_loras
from lora_foundry.testing.comfyui_stub import StubServer

pytestmark = pytest.mark.slow

CHANGES = (
    "generate.backend=comfyui", "generate.checkpoint=dream.safetensors", "generate.images=6", "generate.width=64",
    "generate.rounds=1",
    "train.regularisation=0",
    "generate.height=64", "generate.steps=1", "generate.sampler=euler", "generate.scheduler=normal",
    "generate.reference_workflow=instruct_pix2pix", "generate.reference_checkpoint=editor.safetensors",
    "model.tagger=none", "model.embedder=none", "model.detector=none",
    "train.steps=4", "train.rank=4", "train.checkpoint_every=4", "train.saves=1", "train.sample_steps=1",
    "evaluate.prompts=1", "evaluate.seeds=1", "evaluate.choice_prompts=1", "publish.min_change=0",
)  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """The server, named as a person names it: by its address and by the folder of its program."""
    # Its checkpoint has the miniature's modules.
    monkeypatch.setattr(comfyui_loras, "_TAKEN", ("lora_unet_", "lora_te_text_model_"))
    loras = tmp_path / "comfy" / "models" / "loras"
    loras.mkdir(parents=True)
    with StubServer(("dream.safetensors", "editor.safetensors"), loras) as server:
        monkeypatch.setenv("LORA_FOUNDRY_COMFYUI_URL", server.url)
        monkeypatch.setenv("LORA_FOUNDRY_COMFYUI", str(tmp_path / "comfy"))
        yield server


def test_one_picture_becomes_a_published_lora_through_an_edit_workflow(
    stub: StubServer, tmp_path: Path
) -> None:
    picture = tmp_path / "elara.png"
    Image.new("RGB", (80, 64), "pink").save(picture)
    elara = Character(name="Elara", description="1girl, pink hair", reference_image=picture)
    result = Foundry(tmp_path / "home").create(elara, "mini", settings=CHANGES)
    assert (result.status, result.published) == ("completed", True)

    made = sorted((result.dataset_dir / "images").glob("*.png"))
    assert len(made) == len({path.read_bytes() for path in made}) == 7
    assert [path.name for path in made if "reference" in path.name] == ["elara_reference.png"], "itself, too"
    for path in made:
        assert path.with_suffix(".txt").read_text().startswith("elara")
    drawn = [row["prompt"][2] for row in stub._history.values()]
    edits = [graph for graph in drawn if "edited" in graph]
    assert len(edits) == 6
    for graph in edits:
        assert graph["model"]["inputs"]["ckpt_name"] == "editor.safetensors"
        assert graph["reference"]["inputs"]["image"].startswith("lora_foundry_")
    assert any("lora-model" in graph for graph in drawn), (
        "the evaluation draws with the LoRA through the server"
    )
    published = list(stub.loras_dir.glob("*.safetensors")) if stub.loras_dir else []
    assert [path.name for path in published] == [result.lora_path.name if result.lora_path else ""], (
        "nothing lent is left"
    )
    proof = json.loads((result.dataset_dir / "publication.json").read_text())["proof"]
    assert proof["keys"] > 0
    assert not list((tmp_path / "home" / "leftovers").glob("*.jsonl"))
