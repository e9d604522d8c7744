"""Tells what a base model is before anything of it is loaded, by its file names and safetensors headers alone; which
family it belongs to is asked of the families.

A wrong base found here costs a second and one sentence; found later it costs a traceback out of another
library, or, with a pickle, the machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import AbsentModelError, BaseModelError, did_you_mean
from lora_foundry.families._shared.base import Base, check_trainable
from lora_foundry.families._shared.kinds import (
    Kind,
    PartFile,
    other_kind,
    packed_format,
    strange_pipeline,
    stranger,
)
from lora_foundry.families._shared.ldm import training_of
from lora_foundry.families._shared.registry import family_names, family_of_recipe, family_part
from lora_foundry.families._shared.split import (
    INDICES,
    find_part,
    find_parts,
    index_of,
    part_folders,
    read_json,
)
from lora_foundry.files.safetensors import PICKLES, Header, gguf_error, pickle_error, read_header
from lora_foundry.mini import MODEL_DIR

BUNDLED = "mini"
_SAMPLES, _SAMPLE_BYTES = 64, 65_536
_FORMER_VAE = "first_stage_model."


def supported() -> str:
    """What can be used as a base, in words."""
    return "supported are " + "; ".join(family_part(name, "detect").SUPPORTED for name in family_names())


def recipe_base(
    recipe: Recipe, folders: Sequence[Path] = (), *, training: bool = False, anywhere: bool = True
) -> Base:
    """The base that a recipe names, with the VAE, the text encoder and the rest that it says about it. training: it is
    to be trained, too. anywhere: a relative name may also be one in the current folder. Raises BaseModelError, and
    InputError for a distilled one that would be trained as it is."""
    model = recipe.model
    given = {
        part: locate(name, part_folders(folders), anywhere, what=f"The file model.{part} =")
        for part, name in (("vae", model.vae), ("text_encoder", model.text_encoder))
        if name
    }
    try:
        base = find_base(model.base, folders, given, anywhere=anywhere)
    except AbsentModelError as error:
        if (
            not model.source or family_of_recipe(model.base) is None
        ):  # `setup` fetches what a recipe of ours names
            raise
        raise AbsentModelError(f"{error}. Fetch it with: lora-foundry setup {recipe.name}") from error
    if model.train_base:
        twin = find_base(
            model.train_base, folders, {} if base.layout == "folder" else given, anywhere=anywhere
        )
        if twin.family != base.family:
            raise BaseModelError(
                f"model.train_base = {model.train_base!r} is of the family {twin.family}, and model.base of "
                f"{base.family}; a LoRA fits its own family only."
            )
        base = base.model_copy(update={"undistilled": twin})
    if recipe.train.training_adapter:
        base = base.with_adapter(
            locate(
                recipe.train.training_adapter,
                part_folders(folders),
                anywhere,
                what="The file train.training_adapter =",
            )
        )
    if training:
        check_trainable(base.learned_on, recipe.train)
    return base.told(model.prediction, model.zero_terminal_snr, model.clip_skip)


def find_base(
    name: str,
    folders: Sequence[Path] = (),
    given: Mapping[str, Path] | None = None,
    *,
    anywhere: bool = True,
) -> Base:
    """The base model called `name`: `mini`, a path, or a file or folder name looked for in `folders`. `given` are parts
    that stand in the place of the base's own, or belong to it. anywhere: a relative name that is in none of the
    folders may also be one in the current folder.

    Raises BaseModelError in one sentence: not there, a pickle, damaged, or of a kind that is not supported.
    """
    path = MODEL_DIR if name == BUNDLED else locate(name, folders, anywhere)
    called = BUNDLED if name == BUNDLED else path.stem if path.is_file() else path.name
    return inspect_base(path, called, given or {}, folders)


def inspect_base(
    path: Path, name: str = "", given: Mapping[str, Path] | None = None, folders: Sequence[Path] = ()
) -> Base:
    """Looks at the folder or file at `path`. Raises BaseModelError."""
    given = given or {}
    try:
        if path.is_dir():
            return _with_parts(_inspect_folder(path, name), given)
        return _inspect_file(path, name, given, folders)
    except OSError as error:
        raise BaseModelError(f"The base model {path} cannot be read ({error.strerror or error}).") from error


def companions(path: Path, folders: Sequence[Path] = ()) -> list[tuple[PartFile, Path | None]]:
    """The files that the one at `path` needs beside it, each with where it is, None where it is not here; none of a folder
    or of a file with everything in it. Raises BaseModelError for a file that cannot be read."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return []
    kind = kind_of_file(read_header(path), path.stem)
    return [(part, find_part(path, part, folders)) for part in kind.needs]


def family_of_file(path: Path) -> str:
    """The family that a .safetensors file is of, though a part of it may be missing; empty for none. Raises
    BaseModelError for a file that cannot be read."""
    return kind_of_file(read_header(path), path.stem).family


def family_of_folder(path: Path) -> str:
    """The family that a diffusers folder is of, by its index alone; empty for none. Raises BaseModelError for an index that
    cannot be read."""
    return _kind_of_pipeline(str(read_json(index_of(path)).get("_class_name", ""))).family


def locate(name: str, folders: Sequence[Path], anywhere: bool = True, what: str = "The base model") -> Path:
    """The path meant by `name`, links left as they are: the hub's cache has files under their hashes, and only the link
    bears the name. `what` begins the sentence about what is not there. Raises BaseModelError, saying where it looked."""
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
            return Path(os.path.abspath(place))
    known: dict[str, Path] = {}
    for folder in folders:
        for found in sorted(models_below(folder)):
            known.setdefault(found.name, found)
    for wanted in (name, f"{name}.safetensors"):
        if wanted in known:
            return Path(os.path.abspath(known[wanted]))
    looked = ", ".join(str(folder) for folder in folders)
    where = f" (looked in {looked})" if looked and not direct.is_absolute() else ""
    raise AbsentModelError(f"{what} {name!r} does not exist{where}; {did_you_mean(name, [BUNDLED, *known])}")


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:
        return False


def models_below(folder: Path) -> Iterable[Path]:
    """Model files and diffusers folders at any depth below `folder`, linked folders too, each real one once."""
    seen: set[str] = set()
    for where, below, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            below.clear()
            continue
        seen.add(real)
        if any(index in files for index in INDICES):
            yield Path(where)
        yield from (Path(where) / file for file in files if file.endswith(".safetensors"))


def _inspect_file(path: Path, name: str, given: Mapping[str, Path], folders: Sequence[Path]) -> Base:
    if path.suffix.lower() in PICKLES:
        raise pickle_error(path)
    if path.suffix.lower() == ".gguf":
        raise gguf_error(path)
    if path.suffix.lower() != ".safetensors":
        raise BaseModelError(f"{path} is no .safetensors file and no diffusers folder; {supported()}.")
    header = read_header(path)
    packed = packed_format(header)
    if packed:
        raise BaseModelError(
            f"{path} has weights in {packed}, which cannot be read back exactly; get the bf16, fp16 or fp8 version."
        )
    kind = kind_of_file(header, path.stem)
    if not kind.family:
        raise BaseModelError(f"{path} is {kind.name}; {supported()}.")
    prediction, zero_terminal = training_of(header)
    base = Base(
        path=path,
        layout="split" if kind.needs else "file",
        family=kind.family,
        name=name or path.stem,
        identity=_identity([path]),
        configuration=kind.configuration,
        prediction=prediction,
        zero_terminal=zero_terminal,
        distilled=kind.distilled,
    )
    return _with_parts(base, find_parts(path, kind, given, folders) if kind.needs else given)


def kind_of_file(header: Header, name: str) -> Kind:
    """What a safetensors file is: not a base at all, a base or a part of one by the families' own judgement, or a
    stranger."""
    found = other_kind(header.shapes)
    if found is not None:
        return found
    for family in family_names():
        kind: Kind | None = family_part(family, "detect").look(header, name)
        if kind is not None:
            return kind
    return stranger(header.shapes)


def _with_parts(base: Base, parts: Mapping[str, Path]) -> Base:
    """The base with files in the place of its own parts, which makes it another one."""
    if not parts:
        return base
    for file in parts.values():
        if file.suffix.lower() in PICKLES:
            raise pickle_error(file)
    vae = parts.get("vae")
    if base.layout != "split" and vae is not None:
        header = read_header(vae)
        if not any(key.removeprefix(_FORMER_VAE).startswith("decoder.") for key in header.shapes):
            raise BaseModelError(f"model.vae = {str(vae)!r} is no VAE; give a VAE's .safetensors file.")
    if base.layout != "split" and "text_encoder" in parts:
        raise BaseModelError(
            f"model.text_encoder is for ComfyUI's split files; {base.path.name} brings its own. Leave it out."
        )
    identity = hashlib.sha256(f"{base.identity}/{_identity(list(parts.values()))}".encode()).hexdigest()
    return base.model_copy(update={"parts": dict(parts), "identity": identity})


def _inspect_folder(path: Path, name: str) -> Base:
    index = index_of(path)
    if not index.exists():
        raise BaseModelError(
            f"{path} is no diffusers model folder (it has no model_index.json); {supported()}."
        )
    contents = read_json(index)
    kind = _kind_of_pipeline(str(contents.get("_class_name", "")))
    if not kind.family:
        raise BaseModelError(f"{path} is {kind.name}; {supported()}.")
    parts = list(_parts(contents, path))
    narrow = any(not _plain(_found(path / part)) for part in parts)
    files = [index]
    for part in parts:
        weights = _weights_of(path / part, narrow)
        for file in weights:
            read_header(file)
        files += [path / part / "config.json", *weights]
    if not any((path / "tokenizer" / file).exists() for file in ("vocab.json", "tokenizer.json")):
        raise BaseModelError(f"{path} has no tokenizer; download or copy the model again.")
    detect = family_part(kind.family, "detect")
    kind = (detect.examine(path, contents) if hasattr(detect, "examine") else None) or kind
    if not kind.family:
        raise BaseModelError(f"{path} is {kind.name}; {supported()}.")
    files.append(path / "scheduler" / "scheduler_config.json")
    return Base(
        path=path,
        layout="folder",
        family=kind.family,
        name=name or path.name,
        identity=_identity(files),
        variant="fp16" if narrow else "",
        distilled=kind.distilled,
    )


def _kind_of_pipeline(class_name: str) -> Kind:
    """What a folder is by the class of its pipeline."""
    for family in family_names():
        words: Mapping[str, str] = family_part(family, "detect").PIPELINES
        if class_name in words:
            return Kind(words[class_name], family)
    return strange_pipeline(class_name)


def _parts(index: Mapping[str, Any], path: Path) -> Iterator[str]:
    """The components of a pipeline that have weights, in a fixed order."""
    named = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_conditioner")
    found = [part for part in named if _is_part(index.get(part))]
    # An index that names nothing (an old one) is taken for Stable Diffusion's.
    yield from found if {"unet", "transformer"} & set(found) else ("unet", "vae", "text_encoder", *found[3:])


def _is_part(entry: object) -> bool:
    if isinstance(entry, list) and len(entry) == 3:  # of the modular form, with where it was loaded from
        return True
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _found(part: Path) -> list[Path]:
    return sorted(part.glob("*.safetensors"))


def _plain(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if not any(mark in file.name for mark in (".fp16", ".non_ema"))]


def _weights_of(part: Path, narrow: bool) -> list[Path]:
    """The safetensors files of one component: the plain ones, or, where another component has none, the fp16 ones
    first, since a pipeline is loaded in one variant."""
    found = _found(part)
    if not found:
        pickles = [file for file in sorted(part.glob("*")) if file.suffix in PICKLES]
        if pickles:
            raise pickle_error(pickles[0])
        raise BaseModelError(
            f"{part.parent} has no {part.name} weights in safetensors; download or copy it again."
        )
    if not (part / "config.json").exists():
        raise BaseModelError(f"{part} has no config.json; download or copy the model again.")
    half = [file for file in found if ".fp16" in file.name]
    return (half or found) if narrow else (_plain(found) or half or found)


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


__all__ = ["BUNDLED", "Base", "find_base", "inspect_base", "read_header", "recipe_base", "supported"]
