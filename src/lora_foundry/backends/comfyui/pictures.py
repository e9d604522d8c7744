"""What is done to a picture on its way: the name under which the server saves it, and the checks that it passes before it
counts, since a server's word for success says nothing of what the picture shows."""

from __future__ import annotations

import copy

from PIL import Image

from lora_foundry.backends.comfyui.graphs import Graph, fits
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.images import COMMON_FORMATS, read_picture


class FlatPictureError(BackendError):
    """The server made a picture of one colour, as from a NaN."""


def with_prefix(graph: Graph, prefix: str) -> Graph:
    """A copy in which every saving node writes under `prefix`: an equal prompt would give old files
    otherwise."""
    changed = copy.deepcopy(graph)
    for node in changed.values():
        if "filename_prefix" in node.get("inputs", {}):
            node["inputs"]["filename_prefix"] = prefix
    return changed


def check_picture(data: bytes, name: str, size: tuple[int, int] | None) -> Image.Image:
    """The decoded picture, scaled down where it is larger than asked. Raises BackendError where it is damaged, smaller
    or of another shape, or of one flat colour."""
    try:
        picture = read_picture(data, formats=COMMON_FORMATS)
    except InputError as error:
        raise BackendError(f"ComfyUI's picture {name} is damaged: {error}") from error
    if size is not None and picture.size != size:
        if not fits(picture.size, size):
            asked, got = f"{size[0]}x{size[1]}", f"{picture.width}x{picture.height}"
            raise BackendError(
                f"ComfyUI made {name} in {got} where {asked} was asked; use multiples of 8, and where the workflow "
                f"has a size of its own, set generate.width={picture.width} and generate.height={picture.height}."
            )
        picture = picture.resize(size, Image.Resampling.LANCZOS)  # a workflow that enlarges its pictures
    extremes = [band.getextrema() for band in picture.split()]
    if all(low == high for low, high in extremes):
        colour = "black" if not any(high for _, high in extremes) else "of one colour"
        raise FlatPictureError(
            f"ComfyUI's picture {name} is {colour}, as from a NaN in the VAE or a broken LoRA; "
            "try ComfyUI's --fp32-vae, or another LoRA."
        )
    return picture
