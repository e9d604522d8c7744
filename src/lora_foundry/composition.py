"""The composition root: joins a recipe's choices to backends, by their rows in `registry` and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import cast

from pydantic import BaseModel

from lora_foundry import registry
from lora_foundry.backends.plan_captions import PlanCaptioner
from lora_foundry.context import Context
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import Run
from lora_foundry.families._shared.base import Base
from lora_foundry.pipeline import STAGE_NAMES, Stage, run_pipeline
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
from lora_foundry.settings import Settings
from lora_foundry.stages._shared.reference import check_references


class RecipePorts:
    """The ports of one recipe; each backend is made when it is first asked for."""

    def __init__(self, recipe: Recipe, base: Base, settings: Settings) -> None:
        self._recipe, self._context = recipe, Context(recipe, base, settings)
        self._learning = replace(self._context, base=base.learned_on)

    @cached_property
    def generator(self) -> Generator:
        return cast(Generator, self._make("generator", self._recipe.generate.backend))

    @cached_property
    def captioner(self) -> Captioner:
        """What the plan asked for, as captions."""
        return PlanCaptioner()

    @cached_property
    def captioners(self) -> Sequence[Captioner]:
        """What looks at pictures for their captions, beside the plan."""
        return tuple(cast(Captioner, self._make("captioner", name)) for name in self._recipe.caption.look)

    @cached_property
    def tagger(self) -> Tagger | None:
        return cast(Tagger | None, self._instrument("tagger", self._recipe.model.tagger))

    @cached_property
    def embedder(self) -> Embedder | None:
        return cast(Embedder | None, self._instrument("embedder", self._recipe.model.embedder))

    @cached_property
    def detector(self) -> Detector | None:
        return cast(Detector | None, self._instrument("detector", self._recipe.model.detector))

    @cached_property
    def trainer(self) -> Trainer:
        self.close()  # a small GPU does not hold the generator's base and the trainer's; the generator loads again
        return cast(Trainer, registry.load("trainer", self._recipe.train.backend).make(self._learning))

    @cached_property
    def gpu(self) -> Gpu:
        # A program that draws for us and has a hand-over of its own is asked for its memory before a training.
        drawn_by = self._recipe.generate.backend
        used = drawn_by in registry.backends("gpu")
        shared = self._context.settings.comfyui_shares_gpu(used=used)
        return cast(Gpu, registry.load("gpu", "comfyui" if shared else "local").make(self._learning))

    @cached_property
    def prover(self) -> Prover | None:
        name = self._recipe.publish.verify
        if name == "auto":  # the program that made the pictures, where it can be asked
            name = self._recipe.generate.backend
            name = name if name in registry.backends("prover") else "none"
        if name == "none":
            return None
        self.close()  # the program that draws with the LoRA now may need the GPU that our own generator holds
        return cast(Prover, self._make("prover", name))

    @cached_property
    def publisher(self) -> Publisher:
        return cast(Publisher, self._make("publisher", self._recipe.publish.backend))

    def close(self) -> None:
        """Gives back the memory of the generator, if it was ever made."""
        if "generator" in self.__dict__:
            self.generator.close()

    def _instrument(self, kind: registry.Kind, name: str) -> object | None:
        return None if name == "none" else self._make(kind, name)

    def _make(self, kind: registry.Kind, name: str) -> object:
        return cast(object, registry.load(kind, name).make(self._context))


def check_ahead(run: Run, settings: Settings) -> None:
    """Raises what drawing would raise before its first picture, as far as it can be told before the run begins: of
    the reference images, and of what draws."""
    check_references(run)
    row = registry.backends("generator").get(run.recipe.generate.backend)
    if row is not None and row.ahead:
        module, _, function = row.ahead.partition(":")
        getattr(import_module(module), function)(run, settings)


def notifier_of(settings: Settings) -> Notifier | None:
    """Who tells people when a run is over, if the settings name any address. Raises InputError for a wrong one."""
    addresses = settings.notify.get_secret_value() if settings.notify else ""
    if not addresses.strip():
        return None
    from lora_foundry.backends.apprise import AppriseNotifier

    return AppriseNotifier(addresses)


def do_stages(
    run: Run,
    base: Base,
    settings: Settings,
    progress: ProgressCallback,
    finished: Callable[[Stage, BaseModel, float], None],
    *,
    begins: Callable[[Stage], None] = lambda stage: None,
    names: Sequence[str] = STAGE_NAMES,
) -> dict[str, float]:
    """The stages of a run in its folder, which is the caller's, with the backends that its recipe names: the work itself,
    the same for a task's child and for a program that calls the foundry. Returns the seconds of each."""
    ports = RecipePorts(run.recipe, base, settings)
    try:
        return run_pipeline(run, ports, progress, finished, begins=begins, names=names)
    finally:
        ports.close()
