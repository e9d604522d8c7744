"""Tells what a base model is before anything of it is loaded, by its file names and safetensors headers
alone.

A wrong base found here costs a second and one sentence; found later it costs a traceback out of another
library, or, with a pickle, the machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from lora_foundry.errors import BaseModelError, did_you_mean
from lora_foundry.families._shared.kinds import SUPPORTED, kind_of_keys, kind_of_pipeline
from lora_foundry.mini import MODEL_DIR

BUNDLED = "mini"
Layout = Literal["folder", "file"]

_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LARGEST_HEADER = 100_000_000
_SAMPLES, _SAMPLE_BYTES = 64, 65_536


class Base(BaseModel):
    """A base model that was looked at and found usable.

    identity: digest of its content that is cheap to take (headers, configurations and samples of the
    weights). variant: the weights' file variant in a folder ("fp16"), empty for the plain one. configuration: which of
    our configurations a single file is loaded with. prediction: what the network answers where that is known beside
    its configuration (epsilon, v_prediction), empty where it is not. zero_terminal: the same for a noise schedule
    that ends in pure noise.
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

    def told(self, prediction: str, zero_terminal: str) -> Base:
        """The base as a recipe has it: "auto" leaves what was found, anything else stands in its place and makes it
        another base."""
        found: dict[str, Any] = {}
        if prediction != "auto":
            found["prediction"] = prediction
        if zero_terminal != "auto":
            found["zero_terminal"] = zero_terminal == "on"
        if not found:
            return self
        identity = hashlib.sha256(f"{self.identity}/{prediction}/{zero_terminal}".encode()).hexdigest()
        return self.model_copy(update={**found, "identity": identity})


class Header(NamedTuple):
    """What a safetensors file says about itself: the shape of each tensor, and its free text."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def find_base(name: str, folders: Sequence[Path] = (), *, anywhere: bool = True) -> Base:
    """The base model called `name`: `mini`, a path, or a file or folder name looked for in `folders`.

    anywhere: a relative name that is in none of the folders may also be one in the current folder.
    Raises BaseModelError in one sentence: not there, a pickle, damaged, or of a kind that is not supported.
    """
    path = MODEL_DIR if name == BUNDLED else _locate(name, folders, anywhere)
    return inspect_base(path, BUNDLED if name == BUNDLED else path.stem if path.is_file() else path.name)


def inspect_base(path: Path, name: str = "") -> Base:
    """Looks at the folder or file at `path`. Raises BaseModelError."""
    try:
        return _inspect_folder(path, name) if path.is_dir() else _inspect_file(path, name)
    except OSError as error:
        raise BaseModelError(f"The base model {path} cannot be read ({error.strerror or error}).") from error


def read_header(path: Path) -> Header:
    """The header of a safetensors file, which must be whole. Raises BaseModelError for a pickle or a damaged
    file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLE_MAGIC):
            raise _pickle(path)
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise _damaged(path, size)
        raw = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(raw)
        metadata = {str(key): str(value) for key, value in (entries.pop("__metadata__", None) or {}).items()}
        shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, size) from error
    if 8 + length + end > size:
        raise BaseModelError(
            f"{path} is truncated: it has {size:,} of {8 + length + end:,} bytes; download or copy it again."
        )
    return Header(shapes, metadata)


def _locate(name: str, folders: Sequence[Path], anywhere: bool) -> Path:
    """The path meant by `name`. Raises BaseModelError, saying where it looked."""
    if not name.strip() or "\0" in name:
        raise BaseModelError(
            "The recipe names no base model; set model.base to 'mini', a folder or a .safetensors file."
        )
    direct = Path(name).expanduser()
    places = [
        *(folder / name for folder in folders),
        *(folder / f"{name}.safetensors" for folder in folders),
        *([direct] if anywhere or direct.is_absolute() else []),
    ]
    for place in places:
        if _exists(place):
            return place.resolve()
    known: dict[str, Path] = {}
    for folder in folders:
        for found in sorted(_models_below(folder)):
            known.setdefault(found.name, found)
    for wanted in (name, f"{name}.safetensors"):
        if wanted in known:
            return known[wanted].resolve()
    looked = ", ".join(str(folder) for folder in folders)
    where = f" (looked in {looked})" if looked and not direct.is_absolute() else ""
    raise BaseModelError(
        f"The base model {name!r} does not exist{where}; {did_you_mean(name, [BUNDLED, *known])}"
    )


def _exists(path: Path) -> bool:
    """Whether there is something at `path`; a name that no file can have is nowhere."""
    try:
        return path.exists()
    except OSError:
        return False


def _models_below(folder: Path) -> Iterable[Path]:
    """Model files and diffusers folders at any depth below `folder`."""
    for where, _, files in os.walk(folder):
        if "model_index.json" in files:
            yield Path(where)
        yield from (Path(where) / file for file in files if file.endswith(".safetensors"))


def _inspect_file(path: Path, name: str) -> Base:
    if path.suffix.lower() in _PICKLES:
        raise _pickle(path)
    if path.suffix.lower() != ".safetensors":
        raise BaseModelError(f"{path} is no .safetensors file and no diffusers folder; {SUPPORTED}.")
    header = read_header(path)
    kind = kind_of_keys(header.shapes)
    if not kind.family:
        raise BaseModelError(f"{path} is {kind.name}; {SUPPORTED}.")
    prediction, zero_terminal = _training_of(header)
    return Base(
        path=path,
        layout="file",
        family=kind.family,
        name=name or path.stem,
        identity=_identity([path]),
        configuration=kind.configuration,
        prediction=prediction,
        zero_terminal=zero_terminal,
    )


def _training_of(header: Header) -> tuple[str, bool | None]:
    """What a checkpoint says about its own training: marker tensors (NoobAI, and all that descends from it) or
    metadata."""
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    v = "v_pred" in header.shapes or said in {"v", "v_prediction", "vpred"}
    v = v or header.metadata.get("ss_v_parameterization", "").lower() == "true"
    zero = "ztsnr" in header.shapes or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    epsilon = "epsilon" if said == "epsilon" else ""
    return "v_prediction" if v else epsilon, True if zero else None


def _inspect_folder(path: Path, name: str) -> Base:
    index = path / "model_index.json"
    if not index.exists():
        raise BaseModelError(
            f"{path} is no diffusers model folder (it has no model_index.json); {SUPPORTED}."
        )
    parts = _read_json(index)
    kind = kind_of_pipeline(str(parts.get("_class_name", "")))
    if not kind.family:
        raise BaseModelError(f"{path} is {kind.name}; {SUPPORTED}.")
    files, variants = [index], set()
    for part in _parts(parts):
        weights = _weights_of(path / part)
        for file in weights:
            read_header(file)
        variants |= {"fp16" if ".fp16." in file.name or ".fp16-" in file.name else "" for file in weights}
        files += [path / part / "config.json", *weights]
    if not any((path / "tokenizer" / file).exists() for file in ("vocab.json", "tokenizer.json")):
        raise BaseModelError(f"{path} has no tokenizer; download or copy the model again.")
    if "transformer" not in _parts(parts):
        _check_unet(path)
    files.append(path / "scheduler" / "scheduler_config.json")
    variant = "fp16" if variants == {"fp16"} else ""
    return Base(
        path=path,
        layout="folder",
        family=kind.family,
        name=name or path.name,
        identity=_identity(files),
        variant=variant,
    )


def _parts(index: dict[str, Any]) -> list[str]:
    """The components of a pipeline that have weights, in a fixed order."""
    parts = ["transformer" if _is_part(index.get("transformer")) else "unet", "vae", "text_encoder"]
    return parts + ["text_encoder_2"] * _is_part(index.get("text_encoder_2"))


def _is_part(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _weights_of(part: Path) -> list[Path]:
    """The safetensors files of one component: the plain ones, or else the fp16 variant's."""
    found = sorted(part.glob("*.safetensors"))
    if not found:
        if any(file.suffix in _PICKLES for file in part.glob("*")):
            raise _pickle(next(file for file in sorted(part.glob("*")) if file.suffix in _PICKLES))
        raise BaseModelError(
            f"{part.parent} has no {part.name} weights in safetensors; download or copy it again."
        )
    plain = [file for file in found if not any(mark in file.name for mark in (".fp16", ".non_ema"))]
    if not (part / "config.json").exists():
        raise BaseModelError(f"{part} has no config.json; download or copy the model again.")
    return plain or [file for file in found if ".fp16" in file.name] or found


def _check_unet(path: Path) -> None:
    """Inpainting and depth models have more input channels than a latent has."""
    channels = _read_json(path / "unet" / "config.json").get("in_channels", 4)
    latent = _read_json(path / "vae" / "config.json").get("latent_channels", 4)
    if channels != latent:
        raise BaseModelError(
            f"{path} is an inpainting or depth model ({channels} input channels); {SUPPORTED}."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path} is missing or damaged; download or copy the model again.") from error
    if not isinstance(data, dict):
        raise BaseModelError(f"{path} is damaged; download or copy the model again.")
    return data


def _identity(files: Sequence[Path]) -> str:
    """One digest of several files, remembered while none of them changes."""
    stamps = ((file, file.stat()) for file in files if file.exists())
    return _digest(tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stamps))


@lru_cache(maxsize=64)
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """SHA-256 over names, sizes, starts and evenly spaced samples: any training of the weights changes nearly
    all."""
    digest = hashlib.sha256()
    for name, size, _ in stamps:
        digest.update(f"{Path(name).parent.name if len(stamps) > 1 else ''}:{size}\n".encode())
        with open(name, "rb") as file:
            for sample in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
                if size <= _SAMPLE_BYTES:
                    break
    return digest.hexdigest()


def _pickle(path: Path) -> BaseModelError:
    return BaseModelError(
        f"{path} is a pickle, which can run any code when it is loaded, and is refused; "
        "get the .safetensors version."
    )


def _damaged(path: Path, size: int) -> BaseModelError:
    return BaseModelError(
        f"{path} is not a whole safetensors file ({size:,} bytes); download or copy it again."
    )
