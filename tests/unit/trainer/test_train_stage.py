"""The train stage: what it gives to the trainer, what it refuses, and when it does nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import Caption, TaggingResults
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, InputError, StageError
from lora_foundry.families._shared.base import Base
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.ports import GeneratedImage, Ports, ProgressCallback, Trainer, TrainingJob
from lora_foundry.recipe_files import load_recipe
from lora_foundry.stages.train import step as train
from lora_foundry.trainer.dry_run import DryRunTrainer
from lora_foundry.trainer.trainer import InProcessTrainer

pytestmark = pytest.mark.slow


class CountingTrainer(DryRunTrainer):
    """The one that does all but train, which also remembers its jobs: enough for what the stage gives to a trainer."""

    def __init__(self, base: Base) -> None:
        super().__init__(base, "cpu")
        self.jobs: list[TrainingJob] = []

    def train(self, job: TrainingJob, progress: ProgressCallback) -> TrainedLora:
        self.jobs.append(job)
        return super().train(job, progress)


@pytest.fixture
def trainer(base: Base) -> CountingTrainer:
    return CountingTrainer(base)


@pytest.fixture
def real(base: Base) -> InProcessTrainer:
    return InProcessTrainer(base, "cpu")


@pytest.fixture
def ready(tmp_path: Path) -> Run:
    """A run whose captions are written: three pictures in a folder with spaces and an accent."""
    small = (
        "steps=2",
        "batch_size=2",
        "rank=2",
        "checkpoint_every=2",
        "regularisation=0",
        "sample_prompts=[]",
    )
    recipe = load_recipe("mini", [f"train.{each}" for each in small])
    run = Run(
        character=Character(name="Zoë van Dijk", description="1girl, brown hair"),
        recipe=recipe,
        dataset_dir=tmp_path / "Zoë van Dijk",
        lora_dir=tmp_path,
        output_name="zoë_mini",
    )
    paths = RunPaths(run.dataset_dir, run.character.slug)
    paths.images.mkdir(parents=True)
    captions = []
    for index in range(3):
        Image.new("RGB", (64, 64), (80 * index, 100, 150)).save(paths.image(index))
        text = f"zoë van dijk, running, tag {index}"
        paths.caption(paths.image(index)).write_text(text + "\n", encoding="utf-8")
        captions.append(Caption(file=paths.image(index).name, text=text, source="plan"))
    write_model(
        paths.tagging_results,
        TaggingResults(
            character="Zoë van Dijk", trigger="zoë van dijk", captioner="plan", pruned=(), fingerprint="x",
            captions=tuple(captions),
        ),
    )  # fmt: skip
    return run


def run_stage(run: Run, trainer: Trainer, room: Any = nullcontext) -> TrainedLora:
    ports = SimpleNamespace(trainer=trainer, gpu=SimpleNamespace(room=lambda settings: room()))
    return train.run(run, cast(Ports, ports), lambda event: None)


def test_a_training_without_room_is_not_started(ready: Run, trainer: CountingTrainer) -> None:
    @contextmanager
    def full() -> Iterator[None]:
        raise BackendError("Training needs 9000 MiB and 100 MiB are free.")
        yield

    with pytest.raises(BackendError, match="9000 MiB"):
        run_stage(ready, trainer, full)
    assert not trainer.jobs


def paths_of(run: Run) -> RunPaths:
    return RunPaths(run.dataset_dir, run.character.slug)


def changed(run: Run, **settings: Any) -> Run:
    section = run.recipe.train.model_copy(update=settings)
    return run.model_copy(update={"recipe": Recipe.model_copy(run.recipe, update={"train": section})})


def test_it_trains_once_and_remembers(ready: Run, trainer: CountingTrainer) -> None:
    result = run_stage(ready, trainer)
    assert result.path.is_file()
    assert read_model(paths_of(ready).training_result, TrainedLora) == result
    assert run_stage(ready, trainer) == result
    assert run_stage(changed(ready, checkpoint_every=50), trainer) == result
    (job,) = trainer.jobs
    assert [image.caption for image in job.images] == [f"zoë van dijk, running, tag {n}" for n in range(3)]
    assert job.trigger == "zoë van dijk"


def test_whatever_decides_the_result_makes_it_stale(ready: Run, trainer: CountingTrainer) -> None:
    run_stage(ready, trainer)
    caption = paths_of(ready).caption(paths_of(ready).image(1))
    caption.write_text("zoë van dijk, edited by hand\n", encoding="utf-8")
    run_stage(ready, trainer)
    assert len(trainer.jobs) == 2
    assert trainer.jobs[1].images[1].caption == "zoë van dijk, edited by hand"
    Image.new("RGB", (64, 64), "white").save(paths_of(ready).image(0))
    run_stage(ready, trainer)
    run_stage(changed(ready, learning_rate=3e-4), trainer)
    assert len(trainer.jobs) == 4


def test_a_file_that_was_tampered_with_is_made_again(ready: Run, real: InProcessTrainer) -> None:
    result = run_stage(ready, real)
    whole = result.path.read_bytes()
    result.path.write_bytes(whole[:-1])
    run_stage(ready, real)
    assert result.path.read_bytes() == whole


def test_a_picture_of_ones_own_is_trained_with(ready: Run, trainer: CountingTrainer) -> None:
    own = paths_of(ready).images / "my own.jpg"
    Image.new("RGB", (90, 50), "green").save(own)
    with pytest.raises(InputError, match=r"my own\.jpg has no caption; write my own\.txt"):
        run_stage(ready, trainer)
    own.with_suffix(".txt").write_text("\ufeffzoë van dijk,\n  green", encoding="utf-8")
    run_stage(ready, trainer)
    assert {image.caption for image in trainer.jobs[0].images} >= {"zoë van dijk, green"}


@pytest.mark.parametrize("fault", ["gone", "empty", "a folder"])
def test_a_picture_without_its_caption_is_named(ready: Run, trainer: CountingTrainer, fault: str) -> None:
    caption = paths_of(ready).caption(paths_of(ready).image(1))
    caption.unlink()
    if fault == "empty":
        caption.write_text(" \n")
    elif fault == "a folder":
        caption.mkdir()
    with pytest.raises(InputError, match="zoë_van_dijk_002"):
        run_stage(ready, trainer)
    assert not trainer.jobs
    assert not paths_of(ready).training.exists()


def test_a_captioned_picture_that_is_gone_is_named(ready: Run, trainer: CountingTrainer) -> None:
    paths_of(ready).image(2).unlink()
    with pytest.raises(StageError, match=r"zoë_van_dijk_003\.png is gone"):
        run_stage(ready, trainer)


def test_it_needs_the_captions(ready: Run, trainer: CountingTrainer) -> None:
    paths_of(ready).tagging_results.unlink()
    with pytest.raises(StageError, match="'caption' stage"):
        run_stage(ready, trainer)


def test_two_homes_give_the_same_bytes(ready: Run, real: InProcessTrainer, tmp_path: Path) -> None:
    first = run_stage(ready, real)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(ready.dataset_dir, elsewhere, ignore=shutil.ignore_patterns("training"))
    second = run_stage(ready.model_copy(update={"dataset_dir": elsewhere}), real)
    assert first.sha256 == second.sha256


def test_leftovers_of_a_kill_are_cleared(ready: Run, trainer: CountingTrainer) -> None:
    leftover = paths_of(ready).training / ".lora.123.part.safetensors"
    leftover.parent.mkdir()
    leftover.write_bytes(b"x")
    run_stage(ready, trainer)
    assert not leftover.exists()


def test_repeats_come_from_the_folder_or_the_picture(ready: Run, trainer: CountingTrainer) -> None:
    paths = paths_of(ready)
    folder = paths.images / "5_close ups"
    folder.mkdir()
    Image.new("RGB", (64, 64), "green").save(folder / "own.png")
    (folder / "own.txt").write_text("zoë van dijk, close-up", encoding="utf-8")
    name = paths.image(1).name
    run_stage(changed(ready, repeats=2, image_repeats={name: 7}), trainer)
    found = {image.path.name: image.repeats for image in trainer.jobs[0].images}
    assert found == {paths.image(0).name: 2, name: 7, paths.image(2).name: 2, "own.png": 5}
    with pytest.raises(InputError, match=r"train\.image_repeats names 'zo_001\.png'"):
        run_stage(changed(ready, image_repeats={"zo_001.png": 2}), trainer)


def test_masks_lie_beside_the_pictures(ready: Run, trainer: CountingTrainer) -> None:
    paths = paths_of(ready)
    with pytest.raises(InputError, match="has no mask; put"):
        run_stage(changed(ready, mask="folder"), trainer)
    paths.masks.mkdir()
    for index in range(3):
        Image.new("L", (64, 64), 255).save(paths.masks / f"{paths.image(index).stem}.png")
    run_stage(changed(ready, mask="folder"), trainer)
    assert all(image.mask == paths.masks / f"{image.path.stem}.png" for image in trainer.jobs[0].images)


class Painter:
    """NoiseSampler a flat picture for every request, and remembers the prompts."""

    model = "painter"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def generate(self, batches: Any, lora: Any = None, reference: Any = None) -> Any:
        for batch in batches:
            for request in batch:
                self.prompts.append(request.prompt)
                yield GeneratedImage(request, Image.new("RGB", (64, 64), (request.seed % 255, 90, 30)))

    def close(self) -> None:
        """Nothing is held."""


def test_regularisation_pictures_are_drawn_once_and_know_neither_name_nor_looks(
    ready: Run, trainer: CountingTrainer
) -> None:
    painter, run = Painter(), changed(ready, regularisation=3)
    gpu = SimpleNamespace(room=lambda settings: nullcontext())
    ports = cast(Ports, SimpleNamespace(trainer=trainer, generator=painter, gpu=gpu))
    for _ in range(2):
        train.run(run, ports, lambda event: None)
    assert len(painter.prompts) == 3
    assert len(trainer.jobs) == 1
    drawn = [image for image in trainer.jobs[0].images if image.regular]
    assert len(drawn) == 3
    texts = [*painter.prompts, *(image.caption for image in drawn)]
    assert not any("brown hair" in text or "zoë" in text for text in texts)
    assert all(image.path.parent == paths_of(run).regularisation for image in drawn)


def test_regularisation_pictures_of_a_set_that_a_person_brought_differ_by_the_trigger_alone(
    ready: Run, trainer: CountingTrainer
) -> None:
    painter, run = Painter(), changed(ready, regularisation=4)
    dataset = run.recipe.dataset.model_copy(update={"source": "own"})
    run = run.model_copy(update={"recipe": run.recipe.model_copy(update={"dataset": dataset})})
    paths = paths_of(run)
    for index, text in enumerate(
        ("Zoë van Dijk, blue ground", "a sketch of zoë van dijk, red ground", "zoë van dijk")
    ):
        paths.caption(paths.image(index)).write_text(text, encoding="utf-8")
    gpu = SimpleNamespace(room=lambda settings: nullcontext())
    ports = cast(Ports, SimpleNamespace(trainer=trainer, generator=painter, gpu=gpu))
    train.run(run, ports, lambda event: None)
    drawn = sorted(image.caption for image in trainer.jobs[0].images if image.regular)
    assert drawn == ["a sketch of someone, red ground"] * 2 + ["blue ground"] * 2
    assert len(painter.prompts) == 4
    assert all(any(words in prompt for words in drawn) for prompt in painter.prompts)


def test_own_regularisation_pictures_are_read_with_their_captions(
    ready: Run, trainer: CountingTrainer, tmp_path: Path
) -> None:
    folder = tmp_path / "nobody"
    run = changed(ready, regularisation_folder=str(folder))
    with pytest.raises(InputError, match="does not exist"):
        run_stage(run, trainer)
    folder.mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        run_stage(run, trainer)
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("1girl, running", encoding="utf-8")
    run_stage(run, trainer)
    (found,) = (image for image in trainer.jobs[0].images if image.regular)
    assert found.caption == "1girl, running"
