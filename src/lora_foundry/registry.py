"""Every backend by kind and name: one row each. A backend is a class with `make(context)`; another package adds its own
as an entry point in the group `lora_foundry.<kind>`, named as recipes shall name it:

    [project.entry-points."lora_foundry.embedder"]
    my-embedder = "my_package.embedder:MyEmbedder"

What a recipe field may say, its help text and the sentence for a wrong word all come from these rows. A backend's module
is imported when a recipe first uses it, never to list it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, cast

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from lora_foundry.errors import InputError, did_you_mean
from lora_foundry.extras import missing_package

Kind = Literal[
    "generator", "captioner", "tagger", "embedder", "detector", "trainer", "gpu", "prover", "publisher"
]


@dataclass(frozen=True)
class Backend:
    """One row. `target` is "module:Class"; `purpose` says in a few words what it is, for help texts. `ahead` is the
    "module:function" that looks at a run before it begins, where a backend has one: it must be light, is called with the
    run and the settings, and raises what the run would raise."""

    kind: Kind
    name: str
    target: str
    purpose: str
    ahead: str = ""


BACKENDS: tuple[Backend, ...] = (
    Backend("generator", "diffusers", "lora_foundry.backends.diffusers:DiffusersGenerator", "in this process"),
    Backend(
        "generator", "comfyui", "lora_foundry.backends.comfyui.generator:ComfyUIGenerator",
        "by a ComfyUI server (LORA_FOUNDRY_COMFYUI_URL)", "lora_foundry.backends.comfyui.ahead:check_run",
    ),
    Backend("captioner", "mini", "lora_foundry.backends.mini_instruments:MiniTagger", "the bundled one"),
    Backend("captioner", "wd", "lora_foundry.backends.onnx.wd_tagger:WdTagger", "a WD v3 tagger"),
    Backend(
        "captioner", "vlm", "lora_foundry.backends.vlm:VisionCaptioner",
        "a vision-language model behind an OpenAI-compatible address (LORA_FOUNDRY_VLM_URL)",
    ),
    Backend("tagger", "mini", "lora_foundry.backends.mini_instruments:MiniTagger", "the bundled one"),
    Backend("tagger", "wd", "lora_foundry.backends.onnx.wd_tagger:WdTagger", "a WD v3 tagger"),
    Backend("embedder", "mini", "lora_foundry.backends.mini_instruments:MiniEmbedder", "the bundled one"),
    Backend("embedder", "dinov2", "lora_foundry.backends.onnx.embedders:DinoEmbedder", "DINOv2, for anything"),
    Backend("embedder", "style", "lora_foundry.backends.style:StyleEmbedder", "for styles, no network"),
    Backend("embedder", "ccip", "lora_foundry.backends.onnx.embedders:CcipEmbedder", "CCIP, for anime"),
    Backend("embedder", "sface", "lora_foundry.backends.onnx.faces:SFaceEmbedder", "SFace, for real faces"),
    Backend(
        "embedder", "arcface", "lora_foundry.backends.onnx.faces:ArcFaceEmbedder",
        "ArcFace, whose file you have to bring since its licence is non-commercial",
    ),
    Backend("detector", "yunet", "lora_foundry.backends.onnx.faces:YuNetDetector", "YuNet, which finds faces"),
    Backend(
        "trainer", "inprocess", "lora_foundry.trainer.trainer:InProcessTrainer", "the trainer of this project"
    ),
    Backend(
        "trainer", "kohya", "lora_foundry.backends.kohya.trainer:KohyaTrainer",
        "a checkout of sd-scripts (LORA_FOUNDRY_KOHYA)",
    ),
    Backend(
        "trainer", "dry-run", "lora_foundry.trainer.dry_run:DryRunTrainer",
        "prepares everything, trains nothing and is never published",
    ),
    Backend("gpu", "local", "lora_foundry.backends.gpu:LocalGpu", "a GPU that no ComfyUI uses"),
    Backend("gpu", "comfyui", "lora_foundry.backends.comfyui.handover:ComfyUIGpu", "a GPU shared with ComfyUI"),
    Backend("prover", "comfyui", "lora_foundry.backends.comfyui.verify:ComfyUIProver", "a ComfyUI server"),
    Backend("publisher", "folder", "lora_foundry.backends.folder:FolderPublisher", "copied to the LoRA folder"),
)  # fmt: skip


class Makes(Protocol):
    """What every backend's class has."""

    def make(self, context: Any) -> Any:
        """The backend for one run. context: context.Context."""
        ...


@cache
def backends(kind: Kind) -> dict[str, Backend]:
    """The backends of a kind by name: ours, and those of other installed packages. Ours cannot be replaced."""
    ours = {row.name: row for row in BACKENDS if row.kind == kind}
    others = {
        point.name: Backend(kind, point.name, point.value, f"from the package {_package(point)}")
        for point in entry_points(group=f"lora_foundry.{kind}")
    }
    return others | ours


def _package(point: Any) -> str:
    return str(point.dist.name if point.dist is not None else point.module)


def load(kind: Kind, name: str) -> Makes:
    """The class of a backend.

    Raises InputError with the nearest known name for an unknown one, MissingExtraError where a package is missing.
    """
    known = backends(kind)
    if name not in known:
        raise InputError(f"There is no {kind} {name!r}; {did_you_mean(name, known)}")
    module, _, attribute = known[name].target.partition(":")
    try:
        return cast(Makes, getattr(import_module(module), attribute))
    except ModuleNotFoundError as error:
        raise missing_package(f"The {kind} {name!r}", error) from error


@dataclass(frozen=True)
class OneOf:
    """Marks a recipe field (`Annotated[str, OneOf("tagger")]`) whose value is the name of a backend, or one of `also`."""

    kind: Kind
    also: tuple[str, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        return (*self.also, *backends(self.kind))

    @property
    def help(self) -> str:
        """What the choices are, as the end of a field's description."""
        return "; ".join(f"`{row.name}`: {row.purpose}" for row in backends(self.kind).values()) + "."

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        """pydantic has made sure of the type. Raises its error with the nearest known name for an unknown one."""
        if name not in self.choices:
            hint = did_you_mean(name, self.choices)
            message = "there is no {kind} of that name; {hint}"
            raise PydanticCustomError("unknown_backend", message, {"kind": self.kind, "hint": hint})
        return name


def choice_of(metadata: Sequence[Any]) -> OneOf | None:
    """The marker in a field's metadata, if it has one."""
    return next((each for each in metadata if isinstance(each, OneOf)), None)
