"""docs/adding-a-family.md, followed: the folder of a family is copied into another package under another name, registered,
recognised, drawn with and trained, and nothing else is touched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lora_foundry import families
from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.registry import family_names, register, unregister
from lora_foundry.mini import MODEL_DIR
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer.conftest import make_job, pictures  # noqa: F401 - fixtures

DOC = Path(__file__).parents[3] / "docs" / "adding-a-family.md"
SOURCE = Path(families.__path__[0]) / "sd"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    """The bundled model as a base of the new family."""
    package = tmp_path / "their_package"
    files = re.findall(r"^\| `([a-z]+\.py)` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert "detect.py" in files
    for file in ("__init__.py", *files):
        package.mkdir(exist_ok=True)
        text = (SOURCE / file).read_text(encoding="utf-8")
        text = text.replace('"StableDiffusionPipeline": "', '"TheirPipeline": "').replace(
            'FAMILY = "sd"', 'FAMILY = "theirs"'
        )
        (package / file).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    register("theirs", "their_package")
    folder = Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))
    index = folder / "model_index.json"
    index.write_text(
        index.read_text(encoding="utf-8").replace("StableDiffusionPipeline", "TheirPipeline"),
        encoding="utf-8",
    )
    yield find_base(str(folder))
    unregister("theirs")


def draw(base: Base, lora: LoraUse | None = None) -> np.ndarray:
    request = ImageRequest(
        key="1", prompt="1girl, brown hair", negative="", seed=3, width=64, height=64, steps=2, cfg=3.0,
        sampler="euler", scheduler="normal",
    )  # fmt: skip
    generator = DiffusersGenerator(base, GenerateSection(width=64, height=64, suffix="", negative=""), "cpu")
    return np.asarray(next(iter(generator.generate([[request]], lora))).image, dtype=float)


def test_a_copied_folder_draws_and_trains(
    base: Base,
    make_job: Callable[..., TrainingJob],  # noqa: F811
    tmp_path: Path,
) -> None:
    assert base.family == "theirs"
    plain = draw(base)
    assert np.array_equal(plain, draw(find_base("mini")))
    job = make_job(tmp_path / "job", steps=2, learning_rate=5e-2, checkpoint_every=2)
    InProcessTrainer(base, "cpu").train(job, lambda event: None)
    assert np.abs(draw(base, LoraUse(path=job.output)) - plain).max() > 1


def test_every_family_has_the_files_of_the_document() -> None:
    files = re.findall(r"^\| `([a-z]+\.(?:py|toml))` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    for family in family_names():
        folder = Path(families.__path__[0]) / family
        assert not [file for file in files if not (folder / file).is_file()], family
