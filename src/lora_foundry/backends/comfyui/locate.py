"""Finds files under the names that the server has for them. One file has several: the recipe's, a link's target, the
server's own with its subfolder, and the same in the words of another machine (a container, WSL, Windows)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from lora_foundry.backends.comfyui.faults import nearest
from lora_foundry.errors import InputError

Pairs = Mapping[str, Path]
# The kinds of folders that the models of a loader's input lie in.
KINDS = {"ckpt_name": ("checkpoints",), "unet_name": ("diffusion_models", "unet")}


def seen_from_here(folder: str, pairs: Pairs) -> Path:
    """A path of the server's as this machine has it. pairs: the beginnings of paths there, and what they are here."""
    windows = "\\" in folder or (len(folder) > 1 and folder[1] == ":")
    kind = PureWindowsPath if windows else PurePosixPath
    there = kind(folder)
    for beginning in sorted(pairs, key=len, reverse=True):
        if there.is_relative_to(kind(beginning)):
            return pairs[beginning].expanduser() / there.relative_to(kind(beginning)).as_posix()
    return Path(folder)


def files_of(name: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Where a file that the server lists as `name` lies here, if this machine sees the server's folders."""
    for folder in folders:
        path = folder / name.replace("\\", "/")
        if path.is_file():
            yield path


def listed_as(file: Path | None, listed: Sequence[str], folders: Sequence[Path]) -> str | None:
    """The server's name for this very file, whatever links lead to it; None where this machine cannot tell."""
    if file is None or not file.is_file():
        return None
    return next(
        (name for name in listed if any(found.samefile(file) for found in files_of(name, folders))), None
    )


def find_listed(name: str, listed: Sequence[str]) -> str | None:
    """The server's spelling of a file, found by its path, with slashes of either kind, or by its bare name; None where it
    lists none."""
    if name in listed:
        return name
    spelt = {other.replace("\\", "/"): other for other in reversed(listed)}
    bare = {path.rsplit("/", 1)[-1]: other for path, other in spelt.items()}
    return spelt.get(name.replace("\\", "/")) or bare.get(name)


def find_model(name: str, listed: Sequence[str], kind: str = "checkpoint") -> str:
    """The server's spelling of a model. Raises InputError with the nearest one for a model that is not there."""
    known = find_listed(name, listed)
    if known is None:
        raise InputError(f"{kind} {name} is not installed in ComfyUI; {nearest(name, listed)}")
    return known
