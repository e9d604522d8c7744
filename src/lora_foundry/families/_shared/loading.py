"""Loads a base model for use: from a diffusers folder, from one checkpoint file or from ComfyUI's split files, without
asking any server for configurations (each family has its own), and without the noise that the libraries make while
loading. What differs between families they say in a `Loader`."""

from __future__ import annotations

import json
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from lora_foundry.errors import BaseModelError
from lora_foundry.failures import lacks_memory, not_enough_memory
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.devices import choose_dtype, cuda_has_bf16
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.split import index_of, read_json
from lora_foundry.families._shared.tensors import has_scales, read_tensors
from lora_foundry.families._shared.vocabularies import CLIP, Vocabulary
from lora_foundry.files.safetensors import read_header

_DENOISER_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "net.",
)  # what files may have before its names
_HUB_SECONDS = 3.0
_SMALLEST_VOCABULARY = 256
# What diffusers, transformers and safetensors raise for files that are cut, of other sizes or of another kind: they check
# little themselves, so it comes from wherever the first wrong value is used. The cause is kept in the traceback.
FAULTS = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, NotImplementedError)


def _nothing(base: Base) -> dict[str, Any]:
    return {}


def half_precision(device: torch.device) -> torch.dtype:
    """fp16, or what a CPU computes instead."""
    return choose_dtype("fp16", device)


def brain_precision(device: torch.device) -> torch.dtype:
    """bf16 for networks whose activations overflow fp16, fp32 where the device does not know bf16 or is a CPU."""
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not cuda_has_bf16():
        return torch.float32
    return torch.bfloat16


def flow_precision(precision: str, device: torch.device) -> torch.dtype:
    """What such a network is trained in where the recipe names `precision`: never fp16, and neither where an older GPU
    would take it for bf16."""
    dtype = choose_dtype(precision, device)
    return brain_precision(device) if dtype == torch.float16 else dtype


def full_precision(device: torch.device) -> torch.dtype:
    """fp32 everywhere."""
    return torch.float32


@dataclass(frozen=True)
class Loader:
    """What is special about loading a family: the classes of pipeline and denoiser (`library_class`), the denoiser's name
    in the pipeline, the options that its configuration gets, the beginnings of names in its file that belong to other
    parts, our configurations for files, the parts that nobody needs, what the files of VAE and text encoder must be turned
    into, further parts and how they are loaded, whether a folder's parts are loaded one by one, too (`assembled`, where
    the library has no loader for the whole), what is told to the scheduler, the
    tokenizers that files do not contain, the types in which the network is trained (by the recipe's precision), pictures
    are drawn and texts encoded for training, and what the pipeline calls its guidance scale and what that is where it
    means none (cfg means none at 1)."""

    pipeline: str
    denoiser: str
    denoiser_class: str
    configurations: Path
    denoiser_options: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    left_out: Mapping[str, Any] = field(default_factory=dict)
    vae_class: str = "AutoencoderKL"
    vae_tensors: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], dict[str, torch.Tensor]] | None = (
        None
    )
    text_class: str = ""
    text_tensors: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
    more_parts: Mapping[str, Callable[[Base, torch.dtype], Any]] = field(default_factory=dict)
    assembled: bool = False
    scheduler: Callable[[Base], dict[str, Any]] = _nothing
    tokenizers: Callable[[Base], dict[str, Any]] = _nothing
    training: Callable[[str, torch.device], torch.dtype] = choose_dtype
    drawing: Callable[[torch.device], torch.dtype] = half_precision
    encoding: Callable[[torch.device], torch.dtype] = full_precision
    guidance_name: str = "guidance_scale"
    no_guidance: float = 1.0

    def guidance(self, cfg: float) -> dict[str, float]:
        """The pipeline's argument for a recipe's cfg."""
        return {self.guidance_name: cfg - (1.0 - self.no_guidance)}

    def configuration(self, base: Base) -> Path:
        """The folder with the base's configurations: its own, or ours for a file."""
        return base.path if base.layout == "folder" else self.configurations / base.configuration


def loader_of(base: Base) -> Loader:
    """How this base is loaded."""
    loader: Loader = family_part(base.family, "load").LOADER
    return loader


def load_pipeline(
    base: Base, dtype: torch.dtype, device: torch.device | str | None, parts: Mapping[str, Any] | None = None
) -> Any:
    """The base as its family's diffusers pipeline: safety checker off, progress bars off, nothing fetched but, for
    files, the vocabulary once. `parts` are taken as they are given and not loaded, or left out where they are None.
    Everything is on `device`; without one, where it was loaded. Raises BaseModelError where the base does not
    fit what it claims to be."""
    loader, given = loader_of(base), dict(parts or {})
    with quiet_libraries(), translated(base.path):
        if "vae" in base.parts and "vae" not in given:
            given["vae"] = load_vae(base, dtype)
        make = {"folder": _from_folder, "file": _from_file, "split": _from_parts}[base.layout]
        make = _from_parts if loader.assembled else make
        pipeline = make(base, loader, dtype, given)
        told = loader.scheduler(base)
        if told:
            pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **told)
        pipeline.set_progress_bar_config(disable=True)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        return pipeline if device is None else pipeline.to(device)


def denoiser(pipeline: Any, base: Base) -> Any:
    """The network that learns: a pipeline's UNet or transformer."""
    return getattr(pipeline, loader_of(base).denoiser)


def library_class(name: str) -> Any:
    """A class of diffusers by its name, or any by `module:name`."""
    import diffusers

    return resolve_name(name) if ":" in name else getattr(diffusers, name)


def _from_folder(base: Base, loader: Loader, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    return library_class(loader.pipeline).from_pretrained(
        base.path,
        torch_dtype=dtype,
        variant=base.variant or None,
        local_files_only=True,
        use_safetensors=True,
        **loader.left_out,
        **given,
    )


def _from_file(base: Base, loader: Loader, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    chosen = dict(given)
    if has_scales(base.path):
        # The library would take scaled fp8 numbers for the weights themselves.
        chosen.setdefault(loader.denoiser, load_denoiser(base, dtype))
    return library_class(loader.pipeline).from_single_file(
        str(base.path),
        config=str(loader.configuration(base)),
        torch_dtype=dtype,
        local_files_only=True,
        **loader.tokenizers(base),
        **loader.left_out,
        **chosen,
    )


def _from_parts(base: Base, loader: Loader, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    import diffusers

    folder = loader.configuration(base)
    index = read_json(index_of(folder))
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")["_class_name"]
    parts: dict[str, Any] = {
        "scheduler": getattr(diffusers, scheduler).from_pretrained(folder, subfolder="scheduler")
    }
    ways = {loader.denoiser: load_denoiser, "vae": load_vae, "text_encoder": load_text_encoder}
    for name, load in (ways | dict(loader.more_parts)).items():
        parts[name] = given[name] if name in given else load(base, dtype)
    options = {name: value for name, value in index.items() if _is_option(value)}
    return library_class(loader.pipeline)(**parts, **loader.tokenizers(base), **loader.left_out, **options)


def _is_option(value: object) -> bool:
    """Whether an entry of a pipeline's index is an option of it: a number or several, where a part is two words."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(each, (bool, int, float)) for each in values)


def load_denoiser(base: Base, dtype: torch.dtype, tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
    """The denoiser alone, on the CPU; `tensors` are the file's, where they were read already. Raises BaseModelError."""
    loader = loader_of(base)
    kind = library_class(loader.denoiser_class)
    with quiet_libraries(), translated(base.path):
        if base.layout == "folder":
            network: Any = kind.from_pretrained(
                base.path, subfolder=loader.denoiser, torch_dtype=dtype, variant=_variant(base, loader.denoiser),
                local_files_only=True, use_safetensors=True, **loader.denoiser_options,
            )  # fmt: skip
        else:
            read = denoiser_tensors(base, dtype) if tensors is None else tensors
            network = _in_own_layout(kind, loader, base, read) or kind.from_single_file(
                dict(read), config=str(loader.configuration(base)), subfolder=loader.denoiser, torch_dtype=dtype,
                local_files_only=True, **loader.denoiser_options,
            )  # fmt: skip
        _check_whole(network, base.path)
    return in_type(network, dtype).requires_grad_(False).eval()


def in_type(network: Any, dtype: torch.dtype) -> Any:
    """A denoiser in `dtype`, but for what its class keeps in fp32, as the library does while it loads a folder."""
    wide = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if wide & set(name.split(".")) else dtype)
    return network


def _in_own_layout(kind: Any, loader: Loader, base: Base, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The denoiser of a file that has diffusers' own names already, which the library's converters would rename; None
    for any other file."""
    if base.layout != "split":
        return None
    config = kind.load_config(loader.configuration(base), subfolder=loader.denoiser)
    network = _with_tensors(kind, {**config, **loader.denoiser_options}, tensors)
    return None if any(tensor.is_meta for tensor in network.parameters()) else network


def _with_tensors(kind: Any, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    """A network of the library with these weights; those that are missing are left without numbers."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = kind.from_config(dict(config))
    network.load_state_dict(dict(tensors), strict=False, assign=True)
    return network


def denoiser_tensors(base: Base, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A file's tensors that make up the denoiser, under the names that the library converts: of a checkpoint with what
    stands before them, of a split file without, whether a program has put something there or not."""
    if base.layout == "file":
        return read_tensors(base.path, _DENOISER_PREFIXES[0], dtype)
    names = read_header(base.path).shapes
    prefix = next((each for each in _DENOISER_PREFIXES if any(name.startswith(each) for name in names)), "")
    tensors = read_tensors(base.path, prefix, dtype)
    others = tuple(prefix + beginning for beginning in loader_of(base).beside)
    return {name.removeprefix(prefix): each for name, each in tensors.items() if not name.startswith(others)}


def load_vae(base: Base, dtype: torch.dtype) -> Any:
    """The VAE alone, on the CPU. Raises BaseModelError."""
    import diffusers

    loader = loader_of(base)
    folder = loader.configuration(base)
    with quiet_libraries(), translated(base.parts.get("vae", base.path)):
        config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        kind = getattr(diffusers, config.get("_class_name", loader.vae_class))
        if base.layout == "folder" and "vae" not in base.parts:
            vae: Any = kind.from_pretrained(
                base.path, subfolder="vae", torch_dtype=dtype, variant=_variant(base, "vae"),
                local_files_only=True, use_safetensors=True,
            )  # fmt: skip
        elif loader.vae_tensors is not None:
            tensors = loader.vae_tensors(read_tensors(base.parts.get("vae", base.path), "", dtype), config)
            vae = _with_tensors(kind, config, tensors)
        else:
            vae = kind.from_single_file(
                str(base.parts.get("vae", base.path)), config=str(folder), subfolder="vae", torch_dtype=dtype,
                local_files_only=True,
            )  # fmt: skip
        _check_whole(vae, base.parts.get("vae", base.path))
    return vae.requires_grad_(False).eval()


def model_with_tensors(kind: Any, folder: Path, tensors: Mapping[str, torch.Tensor], path: Path) -> Any:
    """A model of the library with the configuration in `folder` and these weights of the file at `path`. Raises
    BaseModelError where they are not all of it."""
    network = _with_tensors(kind, kind.load_config(folder), tensors)
    _check_whole(network, path)
    return network.requires_grad_(False).eval()


def load_text_encoder(base: Base, dtype: torch.dtype) -> Any:
    """The language model of split files, or of a folder whose parts are loaded one by one, on the CPU. Raises
    BaseModelError."""
    import transformers

    loader = loader_of(base)
    kind = getattr(transformers, loader.text_class)
    if base.layout == "folder":
        with quiet_libraries(), translated(base.path):
            whole: Any = kind.from_pretrained(base.path / "text_encoder", dtype=dtype, local_files_only=True)
        return whole.requires_grad_(False).eval()
    path = base.parts["text_encoder"]
    with quiet_libraries(), translated(path):
        config = transformers.AutoConfig.from_pretrained(loader.configuration(base) / "text_encoder")
        model = kind.from_pretrained(
            None, config=config, state_dict=loader.text_tensors(read_tensors(path, "", dtype)), dtype=dtype
        )
        _check_whole(model, path)
    return model.requires_grad_(False).eval()


def _check_whole(network: Any, path: Path) -> None:
    """Raises BaseModelError for weights that no file brought: the libraries leave them without numbers."""
    missing = [name for name, tensor in network.named_parameters() if tensor.is_meta]
    if missing:
        raise BaseModelError(
            f"{path} lacks {len(missing)} of the weights of its {type(network).__name__}, such as {missing[0]}; it is "
            "of another model, or cut: download it again."
        )


def _variant(base: Base, part: str) -> str | None:
    """The variant of one part: where a folder mixes them, a part without it is loaded plain."""
    here = any(f".{base.variant}" in file.name for file in (base.path / part).glob("*.safetensors"))
    return base.variant if base.variant and here else None


def load_clip_vocabulary(pad: str = "") -> Any:
    """CLIP's tokenizer, which checkpoint files do not contain. `pad` is the token that fills up a window where it is
    not the closing one (OpenCLIP's is "!"). Raises BaseModelError where there is none."""
    from transformers import CLIPTokenizer

    options = {"pad_token": pad} if pad else {}
    return load_vocabulary(CLIPTokenizer, CLIP, **options)


def hub_answers() -> bool:
    """Whether the model hub can be reached at all: its client tries for minutes where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies().get("https"):
        return True
    place = urlsplit(constants.ENDPOINT)
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        with socket.create_connection((place.hostname or "", port), timeout=_HUB_SECONDS):
            return True
    except OSError:
        return False


def load_vocabulary(kind: Any, vocabulary: Vocabulary, **options: Any) -> Any:
    """A tokenizer: from the folder in the environment variable, from ComfyUI's own, from the Hugging Face cache, or
    fetched into it once. Raises BaseModelError where none of them has it."""
    own = vocabulary.own_folder(os.environ.get("LORA_FOUNDRY_COMFYUI"))
    given, repository = os.environ.get(vocabulary.variable), vocabulary.repository
    places: list[tuple[str, bool]] = [(str(own), True)] if own else []
    for source, offline in places if given else (*places, (repository, True), (repository, False)):
        if not offline and not hub_answers():
            break
        try:
            tokenizer = kind.from_pretrained(source, local_files_only=offline, **options)
            if len(tokenizer) >= _SMALLEST_VOCABULARY:  # a folder without its files gives an empty one
                return tokenizer
        except Exception:  # the hub's client raises a different type for every way of being offline
            logging.getLogger(__name__).debug("no vocabulary from %s", source, exc_info=True)
    files = ", ".join(vocabulary.files)
    if given:
        raise BaseModelError(
            f"{vocabulary.variable}={given} holds no {vocabulary.words} vocabulary ({files})."
        )
    raise BaseModelError(
        f"This base's file needs {vocabulary.words}'s vocabulary ({repository}), which could not be fetched; "
        "go online once and let `lora-foundry setup` fetch it, or set "
        f"{vocabulary.variable} to a folder that holds its {files}."
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """The libraries' errors as ours. Raises BaseModelError, BackendError where there was no memory for it."""
    try:
        yield
    except BaseModelError:
        raise
    except FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        if lacks_memory(error):
            raise not_enough_memory(reason) from error
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            raise BaseModelError(
                f"The base model {path} is not whole any more: {error.filename} is gone. Put it back, or name another base "
                "with model.base."
            ) from error
        raise BaseModelError(
            f"The base model {path} cannot be loaded: {reason.rstrip('.')}. See whether its files are whole, or name another "
            "base with model.base."
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences progress bars, notices and warnings of diffusers and transformers, and restores them
    afterwards."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    kept = [(module, module.get_verbosity()) for module in (diffusers_logging, transformers_logging)]
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    try:
        for module, _ in kept:
            module.set_verbosity_error()
            module.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for (module, level), bar in zip(kept, bars, strict=True):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()
