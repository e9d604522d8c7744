"""A recipe is every choice of a run as typed data: one section a stage, one TOML file, nothing else to configure.

Unknown keys are refused with the nearest known one, since a misspelt option that is silently ignored costs hours.
Every field's description here is its documentation; docs/recipes.md is made from it and tested against it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_foundry.domain.shots import Vocabulary
from lora_foundry.errors import InputError, did_you_mean


class Section(BaseModel):
    """Base of every section: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=64, le=2048, multiple_of=8)]
Share = Annotated[float, Field(ge=0, le=1)]


class ModelSection(Section):
    """[model]: the base model and the instruments that look at pictures."""

    base: str = Field(
        description="Base model: `mini` (bundled), a diffusers folder, or one .safetensors file; a bare "
        "file name is looked for in the models folder and in ComfyUI's checkpoints folder."
    )
    tagger: Literal["mini", "none"] = Field(
        description="Instrument that reads visible traits; `none` leaves identity and adherence unmeasured."
    )
    embedder: Literal["mini", "none"] = Field(
        description="Instrument that tells characters apart by their looks."
    )


class GenerateSection(Section):
    """[generate]: how the training pictures are made."""

    backend: Literal["diffusers", "comfyui"] = Field(
        "diffusers", description="Where pictures are made: in this process, or by a ComfyUI server."
    )
    workflow: str = Field(
        "sd15",
        description="ComfyUI workflow: a shipped one's name or an API-format .json file. Other backends ignore it.",
    )
    images: Annotated[int, Field(ge=1, le=1000)] = Field(40, description="Pictures in the training set.")
    width: Size = Field(512, description="Picture width in pixels.")
    height: Size = Field(512, description="Picture height in pixels.")
    steps: Annotated[int, Field(ge=1, le=200)] = Field(28, description="Sampling steps.")
    cfg: Annotated[float, Field(ge=1, le=30)] = Field(7.5, description="Classifier-free guidance scale.")
    guidance_rescale: Share = Field(
        0.0,
        description="Guidance rescale (arXiv 2305.08891, eq. 16); for zero-terminal-SNR models about 0.5.",
    )
    sampler: Literal["dpmpp_2m", "euler", "euler_ancestral", "ddim"] = Field(
        "dpmpp_2m", description="Sampler."
    )
    scheduler: Literal["karras", "normal"] = Field(
        "karras",
        description="Noise schedule of the sampler; DDIM and zero-terminal-SNR bases keep their own instead of `karras`.",
    )
    batch_size: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Pictures made at once.")
    prefix: str = Field("", description="Words before the description in every prompt.")
    suffix: str = Field(description="Quality words after the shot in every prompt.")
    negative: str = Field(description="Negative prompt.")


class CurateSection(Section):
    """[curate]: which pictures are good enough to train on."""

    min_sharpness: float = Field(
        0.0, ge=0, description="Least variance of the Laplacian (0-255 grey); below is blurred."
    )
    min_contrast: float = Field(
        4.0, ge=0, description="Least standard deviation of grey levels; below is blank."
    )
    duplicate_distance: int = Field(
        0,
        ge=0,
        le=64,
        description="Most differing bits of the 64-bit difference hash at "
        "which two pictures of the set count as duplicates.",
    )
    duplicate_difference: float = Field(
        0.02,
        ge=0,
        le=2,
        description="Most difference (1 minus the correlation of grey levels at 32 px) of two such pictures; "
        "it tells simple drawings apart whose hashes are alike.",
    )
    check_traits: bool = Field(
        False,
        description="Reject pictures in which the tagger sees less than "
        "`min_traits` of the described traits.",
    )
    min_traits: Share = Field(
        0.75, description="Least share of described traits seen, where `check_traits` is on."
    )
    budget: float = Field(
        2.0, ge=1, le=10, description="Most pictures made in all, as a multiple of `images`."
    )


class CaptionSection(Section):
    """[caption]: what the trainer is told about each picture."""

    backend: Literal["plan"] = Field(
        "plan", description="Where captions come from: `plan` is what was asked for."
    )
    prune_identity: bool = Field(
        description="Leave the character's features out of captions, so that the trigger word "
        "alone learns to stand for them."
    )
    keep: tuple[str, ...] = Field(
        (), description="Features that are never pruned, such as accessories to swap."
    )
    scene: tuple[Literal["angle", "lighting", "background"], ...] = Field(
        ("angle", "lighting", "background"),
        description="Parts of the shot that captions name after pose and expression.",
    )
    quality_tags: tuple[str, ...] = Field(description="Tags that close every caption.")


class TrainSection(Section):
    """[train]: the LoRA and how it is learned."""

    backend: Literal["inprocess"] = Field("inprocess", description="Which trainer.")
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="Rank of the LoRA matrices (network_dim)."
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="LoRA alpha; the update is scaled by alpha / rank."
    )
    steps: int = Field(
        0, ge=0, description="Optimizer steps; 0 derives them from epochs, repeats and batch size."
    )
    epochs: Positive = Field(15, description="Passes over the set, where `steps` is 0.")
    repeats: Positive = Field(10, description="How often an epoch shows each picture.")
    batch_size: Annotated[int, Field(ge=1, le=256)] = Field(1, description="Pictures a step.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-4, description="Peak learning rate of the UNet LoRA."
    )
    lr_schedule: Literal["constant", "cosine", "cosine_with_restarts"] = Field(
        "cosine_with_restarts", description="Learning-rate schedule."
    )
    restarts: Positive = Field(1, description="Cycles of cosine_with_restarts.")
    warmup_steps: int = Field(100, ge=0, description="Steps over which the rate rises linearly from 0.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by global norm; 0 turns it off.")
    min_snr_gamma: float = Field(
        5.0, ge=0, description="Min-SNR loss weighting (arXiv 2303.09556); 0 turns it off."
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="Noise offset: share of noise that is constant a channel."
    )
    caption_dropout: Share = Field(0.0, description="Share of samples trained with an empty caption.")
    shuffle_tags: bool = Field(
        False, description="Shuffle a caption's tags at every use, the first `keep_tokens` kept."
    )
    keep_tokens: int = Field(1, ge=0, description="Tags at the start of a caption that stay in place.")
    targets: tuple[Literal["attention", "feed_forward", "projection"], ...] = Field(
        ("attention", "feed_forward", "projection"), description="Which UNet modules get a LoRA."
    )
    resolution: Size = Field(
        512,
        description="Pictures are scaled and cut around their centre to this area (the square of it), "
        "in the set's commonest shape.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp16",
        description="Type of the frozen base while training; "
        "LoRA weights are always fp32. A CPU computes fp16 as fp32.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    checkpoint_every: Positive = Field(200, description="Steps between checkpoints; the newest two are kept.")
    seed: int = Field(42, ge=0, description="Seed of noise, timesteps and order.")


class EvaluateSection(Section):
    """[evaluate]: held-out prompts and seeds on which the LoRA is measured."""

    prompts: Annotated[int, Field(ge=1, le=500)] = Field(
        12, description="Held-out shots, drawn like the plan from another seed, on which both are measured."
    )
    seeds: Annotated[int, Field(ge=1, le=50)] = Field(2, description="Seeds a prompt.")
    strength: float = Field(1.0, gt=0, le=2, description="Strength at which the LoRA is measured.")
    min_identity: Share = Field(
        0.0, description="Least identity for publishing; below, the run ends without it."
    )


class PublishSection(Section):
    """[publish]: where a proven LoRA goes."""

    backend: Literal["folder"] = Field(
        "folder", description="How it is installed: copied to the LoRA folder."
    )
    min_change: float = Field(
        1.0,
        ge=0,
        description="Least mean difference of grey levels (0-255) that the LoRA must "
        "make to a picture of the same seed.",
    )


class Recipe(Section):
    """All choices of a run. `name` and `description` are for people."""

    name: str = Field(description="The recipe's name.")
    description: str = Field(description="One line on what it is for.")
    seed: int = Field(42, ge=0, lt=2**32, description="Fixes plan, picture seeds and evaluation.")
    model: ModelSection
    shots: Vocabulary
    generate: GenerateSection
    curate: CurateSection
    caption: CaptionSection
    train: TrainSection
    evaluate: EvaluateSection
    publish: PublishSection

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a full set: `train.steps`, or epochs x repeats x images / batch size, rounded up."""
        train = self.train
        samples = self.generate.images * train.repeats * train.epochs
        return train.steps or -(-samples // train.batch_size)


def parse_recipe(text: str, source: str, settings: Iterable[str] = ()) -> Recipe:
    """A recipe from TOML text with `--set` settings ("train.rank=8") applied. Raises InputError naming `source`."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The recipe {source} is not valid TOML: {error}.") from error
    for setting in settings:
        apply_setting(data, setting)
    return build_recipe(data, source)


def build_recipe(data: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested values. Raises InputError with the first fault in plain words."""
    refuse_unknown_keys(Recipe, data, ())
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            raise InputError(f"The recipe {source} lacks {where}.") from error
        raise InputError(f"{where} = {fault['input']!r} is not possible: {_plain(fault['msg'])}.") from error


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Applies one "section.key=value" to nested recipe values; the value is TOML, or else taken as text."""
    path, equals, raw = setting.partition("=")
    keys = tuple(part.strip() for part in path.split("."))
    if not equals or not all(keys):
        raise InputError(
            f"--set {setting!r} is not of the form section.key=value, as in --set train.rank=16."
        )
    refuse_unknown_keys(Recipe, _nest(keys, raw), ())
    target = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise InputError(f"--set {setting!r} is not possible: {key!r} is a single value, not a section.")
    target[keys[-1]] = _toml_value(raw.strip())


def setting_values(settings: Iterable[str]) -> dict[str, Any]:
    """Settings as nested values, checked for unknown keys: {"train": {"rank": 8}} for "train.rank=8"."""
    data: dict[str, Any] = {}
    for setting in settings:
        apply_setting(data, setting)
    return data


def refuse_unknown_keys(section: type[BaseModel], data: Any, path: tuple[str, ...]) -> None:
    """Raises InputError for the first key of `data` that `section` does not have."""
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        if key not in section.model_fields:
            full = ".".join((*path, str(key)))
            raise InputError(f"The recipe has no {full!r}; {_suggest(section, str(key), path)}")
        kind = section.model_fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            refuse_unknown_keys(kind, value, (*path, key))


def _suggest(section: type[BaseModel], key: str, path: tuple[str, ...]) -> str:
    """The nearest key of this section, with its path, or else the same key of another section."""
    elsewhere = [full for full in field_paths() if full.rsplit(".", 1)[-1] == key]
    if elsewhere and not path:
        return f"did you mean {elsewhere[0]!r}?"
    hint = did_you_mean(key, section.model_fields)
    return hint.replace("did you mean '", "did you mean '" + "".join(part + "." for part in path))


def field_paths(section: type[BaseModel] | None = None, prefix: str = "") -> list[str]:
    """Every setting of a recipe as "section.key", in order."""
    paths: list[str] = []
    for name, field in (section or Recipe).model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not get_args(kind):
            paths += field_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def _nest(keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return dict(nested)


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _plain(message: str) -> str:
    """pydantic's message as the end of a sentence."""
    return message[:1].lower() + message[1:].rstrip(".")
