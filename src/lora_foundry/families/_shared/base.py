"""A base model that was looked at and found usable, before anything of it is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError

Layout = Literal["folder", "file", "split"]


class Base(BaseModel):
    """A base model, as it is handed to generator and trainer.

    identity: digest of its content that is cheap to take (headers, configurations and samples of the weights).
    layout: a diffusers folder, a file with everything in it, or ComfyUI's split files, of which `path` is the denoiser
    and `parts` has the others. variant: the weights' file variant in a folder ("fp16"), empty for the plain one.
    configuration: which of the family's configurations a file is loaded with. prediction: what the network answers
    where that is known beside its configuration (epsilon, v_prediction), empty where it is not. zero_terminal: the
    same for a noise schedule that ends in pure noise. distilled: draws in few steps, and is not to be trained as it is.
    undistilled: what is trained in its place. adapter: the training adapter's file, where the recipe names one.
    clip_skip: which of CLIP's last layers is read, 1 being the last.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    layout: Layout
    family: str
    name: str
    identity: str
    variant: str = ""
    configuration: str = ""
    prediction: str = ""
    zero_terminal: bool | None = None
    distilled: bool = False
    clip_skip: int = 1
    parts: dict[str, Path] = {}
    undistilled: Base | None = None
    adapter: Path | None = None

    @property
    def learned_on(self) -> Base:
        """The base that a LoRA for this one is trained on: the undistilled model where the recipe names one."""
        return self.undistilled or self

    def with_adapter(self, file: Path) -> Base:
        """The base with a training adapter for whatever of it is trained."""
        twin = self.undistilled and self.undistilled.model_copy(update={"adapter": file})
        return self.model_copy(update={"adapter": file, "undistilled": twin})

    def told(self, prediction: str = "auto", zero_terminal: str = "auto", clip_skip: int = 1) -> Base:
        """The base as a recipe has it: "auto" (and a clip_skip of 1) leaves what was found, anything else stands in its
        place and makes it another base."""
        found: dict[str, Any] = {}
        if prediction != "auto":
            found["prediction"] = prediction
        if zero_terminal != "auto":
            found["zero_terminal"] = zero_terminal == "on"
        changed = self
        if found:
            identity = hashlib.sha256(f"{self.identity}/{prediction}/{zero_terminal}".encode()).hexdigest()
            changed = changed.model_copy(update={**found, "identity": identity})
        if clip_skip > 1:
            identity = hashlib.sha256(f"{changed.identity}/clip skip {clip_skip}".encode()).hexdigest()
            changed = changed.model_copy(update={"clip_skip": clip_skip, "identity": identity})
        return changed


def check_trainable(base: Base, settings: TrainSection) -> None:
    """Raises InputError for a distilled base without a training adapter: what it learnt in place of many steps would be
    unlearnt, and its few-step pictures blur."""
    if base.distilled and not settings.training_adapter and settings.backend != "dry-run":
        raise InputError(
            f"{base.name} is a distilled model that draws in few steps; a LoRA trained on it as it is blurs its pictures. "
            "Name the undistilled model in model.train_base (it is trained, and the distilled one draws), or a training "
            "adapter's file in train.training_adapter."
        )
