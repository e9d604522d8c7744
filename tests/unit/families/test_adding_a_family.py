"""docs/adding-a-family.md, followed: `families/example` is copied into another package under another name, registered,
recognised, drawn with and trained, and nothing else is touched; the example itself does the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch

from lora_foundry import families
from lora_foundry.domain.lora import LoraUse
from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.memory import footprint
from lora_foundry.families._shared.registry import family_names, family_part, register, unregister
from lora_foundry.mini import MODEL_DIR
from lora_foundry.ports import TrainingJob
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.families.test_split import draw
from tests.unit.trainer.conftest import make_job, pictures, short_section  # noqa: F401 - fixtures

DOC = (Path(__file__).parents[3] / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
EXAMPLE = Path(families.__path__[0]) / "example"
FILES = re.findall(r"^\| `([a-z]+\.(?:py|toml))` \|", DOC, re.MULTILINE)


def followed(tmp_path: Path) -> str:
    """The document's steps; returns the new package's name."""
    package = Path(shutil.copytree(EXAMPLE, tmp_path / "their_package"))
    steps = re.search(r"replace `([\w.]+)` by [^`]*`(\w+)` by [^`]*`(\w+)` by", DOC)
    assert steps, "the document no longer says what to replace"
    ours, pipeline, name = steps.groups()
    for file in package.glob("*.*"):
        text = (
            file.read_text(encoding="utf-8").replace(ours, "their_package").replace(pipeline, "TheirPipeline")
        )
        text = text.replace(f'"{name}"', '"theirs"').replace(f'"_{name}"', '"theirs"')
        file.write_text(text, encoding="utf-8")
    return "their_package"


@pytest.fixture(params=["example", "theirs"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    """A base of the family with random weights, and the bundled model's VAE and text encoder."""
    family, package = request.param, f"{families.__name__}.example"
    if family == "theirs":
        monkeypatch.syspath_prepend(tmp_path)
        package = followed(tmp_path)
    register(family, package)
    folder = tmp_path / "model"
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(MODEL_DIR / part, folder / part)
    kind = resolve_name(family_part(family, "load").LOADER.denoiser_class)
    torch.manual_seed(5)
    kind().save_pretrained(folder / "transformer")
    index = {
        "_class_name": next(iter(family_part(family, "detect").PIPELINES)),
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": [kind.__module__, kind.__name__],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    yield find_base(str(folder))
    unregister(family)


@pytest.mark.slow
def test_the_example_and_a_copy_of_it_draw_and_train(
    base: Base,
    make_job: Callable[..., TrainingJob],  # noqa: F811
    tmp_path: Path,
) -> None:
    plain = draw(base)
    losses: list[float] = []
    job = make_job(
        tmp_path / "job", steps=120, learning_rate=2e-2, checkpoint_every=120, sample_prompts=["{trigger}"],
        sample_steps=1, saves=1, validation=0.5,
    )  # fmt: skip
    trainer = InProcessTrainer(base, "cpu")
    trainer.train(job, lambda event: losses.extend([event.loss] if event.loss is not None else []))
    assert losses[-1] < 0.9 * losses[0]
    assert list((job.workdir / "samples").glob("*.png"))
    assert np.abs(draw(base, LoraUse(path=job.output)) - plain).max() > 1
    checkpointed = short_section(gradient_checkpointing=True, targets=["attention"])
    assert footprint(base, checkpointed).total < footprint(base, short_section(targets=["attention"])).total
    again = make_job(tmp_path / "again", steps=1, gradient_checkpointing=True, checkpoint_every=1)
    trainer.train(again, lambda event: None)
    assert again.output.is_file()


def test_the_example_is_in_no_list_and_its_recipe_holds() -> None:
    assert "example" not in family_names()
    with pytest.raises(BaseModelError, match="no family 'example'"):
        family_part("example", "detect")
    assert not [name for name in recipe_names() if "example" in name]
    assert load_recipe("_example").model.base == "example"


def test_the_document_names_every_file_of_the_example_and_no_family_lacks_one() -> None:
    own = {"network.py", "pipeline.py"}  # only where diffusers has none
    assert set(FILES) | {"__init__.py"} == {path.name for path in EXAMPLE.iterdir() if path.is_file()}
    for family in family_names():
        folder = Path(families.__path__[0]) / family
        assert not [file for file in FILES if file not in own and not (folder / file).is_file()], family


def test_the_copys_recipe_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    register("theirs", followed(tmp_path))
    try:
        assert "theirs" in recipe_names()
        assert load_recipe("theirs").name == "theirs"
    finally:
        unregister("theirs")
