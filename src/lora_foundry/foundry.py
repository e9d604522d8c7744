"""The composition root and the public Python API: the one place that joins a recipe's choices to backends.

foundry = Foundry()
result = foundry.create(Character(name="Elara", description="1girl, brown hair, armor"), recipe="mini")
result.lora_path
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from lora_foundry.announcements import of_failure, of_finish
from lora_foundry.domain.character import Character, file_name
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.news import News
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, FoundryError, InputError, MissingExtraError, did_you_mean
from lora_foundry.families._shared.inspect import Base, find_base
from lora_foundry.files.locks import FolderLock, claim
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, read_model, storage_errors
from lora_foundry.pipeline import Stage, run_pipeline
from lora_foundry.ports import (
    Captioner,
    Detector,
    Embedder,
    Generator,
    Gpu,
    Notifier,
    ProgressCallback,
    Prover,
    Publisher,
    Tagger,
    Trainer,
)
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)

# Every backend a recipe can name: kind -> name -> "module:Class". Imported at first use only.
BACKENDS: dict[str, dict[str, str]] = {
    "generator": {
        "diffusers": "lora_foundry.backends.diffusers:DiffusersGenerator",
        "comfyui": "lora_foundry.backends.comfyui.generator:comfyui_generator",
    },
    "captioner": {"plan": "lora_foundry.backends.plan_captions:PlanCaptioner"},
    "looker": {
        "wd": "lora_foundry.backends.onnx.wd_tagger:WdTagger",
        "vlm": "lora_foundry.backends.vlm:VisionCaptioner",
    },
    "tagger": {
        "mini": "lora_foundry.backends.mini_instruments:MiniTagger",
        "wd": "lora_foundry.backends.onnx.wd_tagger:WdTagger",
    },
    "embedder": {
        "mini": "lora_foundry.backends.mini_instruments:MiniEmbedder",
        "dinov2": "lora_foundry.backends.onnx.embedders:DinoEmbedder",
        "ccip": "lora_foundry.backends.onnx.embedders:CcipEmbedder",
        "sface": "lora_foundry.backends.onnx.faces:SFaceEmbedder",
        "arcface": "lora_foundry.backends.onnx.faces:ArcFaceEmbedder",
    },
    "detector": {"yunet": "lora_foundry.backends.onnx.faces:YuNetDetector"},
    "trainer": {
        "inprocess": "lora_foundry.trainer.trainer:InProcessTrainer",
        "kohya": "lora_foundry.backends.kohya.trainer:KohyaTrainer",
        "dry-run": "lora_foundry.trainer.dry_run:DryRunTrainer",
    },
    "gpu": {
        "local": "lora_foundry.backends.gpu:LocalGpu",
        "comfyui": "lora_foundry.backends.comfyui.handover:ComfyUIGpu",
    },
    "prover": {"comfyui": "lora_foundry.backends.comfyui.verify:comfyui_prover"},
    "publisher": {"folder": "lora_foundry.backends.folder:FolderPublisher"},
    "notifier": {"apprise": "lora_foundry.backends.apprise:AppriseNotifier"},
}

# Packages whose extra bears another name than the backend.
EXTRAS = {"onnxruntime": "onnx", "httpx": "comfyui"}


def load_backend(kind: str, name: str) -> Callable[..., Any]:
    """The class of a backend. Raises InputError with the nearest known name for an unknown one."""
    known = BACKENDS[kind]
    if name not in known:
        raise InputError(f"There is no {kind} {name!r}; {did_you_mean(name, known)}")
    module, _, attribute = known[name].partition(":")
    try:
        return cast(Callable[..., Any], getattr(import_module(module), attribute))
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"The {kind} {name!r} needs the package {error.name!r}; install it with: "
            f"pip install 'lora-foundry[{EXTRAS.get(error.name or '', name)}]'."
        ) from error


def notifier_of(settings: Settings) -> Notifier | None:
    """Who tells people when a run is over, if the settings name any address. Raises InputError for a wrong one."""
    addresses = settings.notify.get_secret_value() if settings.notify else ""
    return cast(Notifier, load_backend("notifier", "apprise")(addresses)) if addresses.strip() else None


class RecipePorts:
    """The ports of one recipe; each backend is made when it is first asked for."""

    def __init__(self, recipe: Recipe, base: Base, settings: Settings) -> None:
        self._recipe, self._settings = recipe, settings
        self._base = base.told(recipe.model.prediction, recipe.model.zero_terminal_snr)

    @cached_property
    def generator(self) -> Generator:
        make = load_backend("generator", self._recipe.generate.backend)
        if self._recipe.generate.backend == "comfyui":
            return cast(Generator, make(self._base, self._recipe.generate, self._settings))
        return cast(Generator, make(self._base, self._recipe.generate, self._settings.device))

    @cached_property
    def captioner(self) -> Captioner:
        return cast(Captioner, load_backend("captioner", self._recipe.caption.backend)())

    @cached_property
    def lookers(self) -> Sequence[Captioner]:
        """What looks at pictures for their captions, beside the captioner itself."""
        settings, made = self._settings, list[Captioner]()
        for name in self._recipe.caption.look:
            if name == "vlm":
                make = load_backend("looker", name)
                made.append(cast(Captioner, make(settings.vlm_url, settings.vlm_model, settings.vlm_key)))
            else:
                made.append(cast(Captioner, self._instrument("looker", name)))
        return tuple(made)

    @cached_property
    def tagger(self) -> Tagger | None:
        name = self._recipe.model.tagger
        return None if name == "none" else cast(Tagger, self._instrument("tagger", name))

    @cached_property
    def embedder(self) -> Embedder | None:
        name = self._recipe.model.embedder
        return None if name == "none" else cast(Embedder, self._instrument("embedder", name))

    @cached_property
    def detector(self) -> Detector | None:
        name = self._recipe.model.detector
        return None if name == "none" else cast(Detector, self._instrument("detector", name))

    def _instrument(self, kind: str, name: str) -> Any:
        """An instrument; those that are files look for them in the recipe's folder first."""
        make = load_backend(kind, name)
        folder = self._recipe.model.instruments
        return make() if name == "mini" else make(Path(folder).expanduser() if folder else None)

    @cached_property
    def trainer(self) -> Trainer:
        self.close()  # a small GPU does not hold the generator's base and the trainer's; the generator loads again
        name, device = self._recipe.train.backend, self._settings.device
        make = load_backend("trainer", name)
        if name == "kohya":
            return cast(Trainer, make(self._base, self._settings.kohya, self._settings.kohya_python, device))
        return cast(Trainer, make(self._base, device))

    @cached_property
    def gpu(self) -> Gpu:
        shared = self._settings.comfyui_shares_gpu(used=self._recipe.generate.backend == "comfyui")
        return cast(Gpu, load_backend("gpu", "comfyui" if shared else "local")(self._base, self._settings))

    @cached_property
    def prover(self) -> Prover | None:
        name, generate = self._recipe.publish.verify, self._recipe.generate
        if name == "none" or (name == "auto" and generate.backend != "comfyui"):
            return None
        self.close()  # the program that draws with the LoRA now may need the GPU that our own generator holds
        make = load_backend("prover", "comfyui")
        return cast(Prover, make(self._base, generate, self._settings))

    @cached_property
    def publisher(self) -> Publisher:
        return cast(Publisher, load_backend("publisher", self._recipe.publish.backend)())

    def close(self) -> None:
        """Gives back the memory of the generator, if it was ever made."""
        if "generator" in self.__dict__:
            self.generator.close()


class Scores(BaseModel):
    """Shares from 0 to 1; None where the recipe names no instrument that could tell."""

    model_config = ConfigDict(frozen=True)

    identity_before: float | None = None
    identity_after: float | None = None
    adherence_before: float | None = None
    adherence_after: float | None = None


class CreateResult(BaseModel):
    """What a run left behind."""

    model_config = ConfigDict(frozen=True)

    status: Literal["completed"]
    published: bool
    verdict: str
    lora_path: Path | None
    report_path: Path
    dataset_dir: Path
    trigger: str
    scores: Scores
    seconds: dict[str, float]


class Foundry:
    """Makes LoRAs. `home` and the other settings default to the environment (see Settings)."""

    def __init__(self, home: Path | str | None = None, settings: Settings | None = None) -> None:
        if settings is None:
            settings = Settings() if home is None else Settings(home=Path(home))
        self.settings = settings

    def create(
        self,
        character: Character,
        recipe: str | Recipe | None = None,
        *,
        settings: Iterable[str] = (),
        seed: int | None = None,
        output_name: str | None = None,
        progress: ProgressCallback = lambda event: None,
        finished: Callable[[Stage, BaseModel, float], None] = lambda stage, result, seconds: None,
    ) -> CreateResult:
        """Runs the whole pipeline here and returns what it made; an interrupted run goes on where it stopped.

        recipe: a shipped recipe's name, a TOML file's path, or a Recipe; `settings` are "section.key=value" changes.
        progress: called often, from this thread. finished: called after each stage.
        Raises PermanentError kinds before anything is written if the input cannot be used.
        """
        run, base = self.prepare(character, recipe, settings=settings, seed=seed, output_name=output_name)
        paths = RunPaths(run.dataset_dir, character.slug)
        told = _told(notifier_of(self.settings), character.name, paths)
        check_writable(run.dataset_dir, run.lora_dir)
        make_folder(run.dataset_dir)
        with FolderLock(paths.lock), told:
            claim(paths, run)
            ports = RecipePorts(run.recipe, base, self.settings)
            try:
                seconds = run_pipeline(run, ports, progress, finished)
            except (RuntimeError, MemoryError) as error:
                raise BackendError(
                    f"A stage stopped working: {error}. Run the same command to go on."
                ) from error
            finally:
                ports.close()
        return result_of(run, seconds)

    async def acreate(
        self, character: Character, recipe: str | Recipe | None = None, **options: Any
    ) -> CreateResult:
        """`create` in a thread, for callers that have an event loop; takes the same options."""
        return await asyncio.to_thread(self.create, character, recipe, **options)

    def prepare(
        self,
        character: Character,
        recipe: str | Recipe | None = None,
        *,
        settings: Iterable[str] = (),
        seed: int | None = None,
        output_name: str | None = None,
    ) -> tuple[Run, Base]:
        """Checks every input and says where the run will work, without writing anything."""
        changes = [*settings, *([] if seed is None else [f"seed={seed}"])]
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe or self.settings.recipe, changes)
        elif changes:
            raise InputError(
                "Settings change a recipe that is named or read from a file, not a Recipe object."
            )
        base = find_base(recipe.model.base, self.settings.model_folders)
        run = Run(
            character=character,
            recipe=recipe,
            dataset_dir=self.settings.datasets_dir / character.name,
            lora_dir=self.settings.loras_dir,
            output_name=file_name(output_name or f"{character.slug}_{recipe.name}"),
        )
        return run, base


@contextmanager
def _told(notifier: Notifier | None, character: str, paths: RunPaths) -> Iterator[None]:
    """Tells people how the block ended. That nobody could be told is logged; it changes nothing about the run."""

    def tell(news: News) -> None:
        try:
            if notifier is not None:
                notifier.notify(news)
        except FoundryError as error:
            logger.warning("%s", error)

    try:
        yield
    except FoundryError as error:
        tell(of_failure(character, "the run", str(error), paths))
        raise
    tell(of_finish(character, paths))


def check_writable(*folders: Path) -> None:
    """Raises StorageError for a folder that cannot be made or written, before any work is done."""
    for folder in folders:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with storage_errors(folder):
            probe = existing / f".lora-foundry-{id(folder)}"
            probe.touch(exist_ok=False)
            probe.unlink()


def result_of(run: Run, seconds: dict[str, float]) -> CreateResult:
    """What a finished run left in its folders. `seconds`: of each stage, by name."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    evaluation = read_model(paths.evaluation_result, Evaluation)
    publication = read_model(paths.publication, Publication)
    if evaluation is None or publication is None:
        raise FoundryError(f"The run in {paths.root} left no result; run it again.")
    return CreateResult(
        status="completed",
        published=publication.published,
        verdict=publication.verdict,
        lora_path=publication.lora,
        report_path=paths.report,
        dataset_dir=run.dataset_dir,
        trigger=run.character.trigger,
        scores=Scores(
            identity_before=evaluation.identity_of(evaluation.before),
            identity_after=evaluation.identity_of(evaluation.after),
            adherence_before=evaluation.before.adherence,
            adherence_after=evaluation.after.adherence,
        ),
        seconds=seconds,
    )
