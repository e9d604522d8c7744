"""Cutting a part of a picture of the set into a file of its own, with the same part of its mask. The picture itself is only
read."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from lora_foundry.domain.dataset import Crop
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import picture_size, read_brightness, read_layers
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_bytes
from lora_foundry.files.training_set import SetPicture, mask_place


def cut(paths: RunPaths, source: SetPicture, name: str, crop: Crop) -> Crop:
    """Writes the part of `source` that the crop's box says as `name` in images/, and that of its mask, where it has one, in
    masks/; returns the crop with its hash. Raises InputError, StorageError."""
    target = paths.images / name
    if source.mask is not None:
        mask, size = read_brightness(source.mask), picture_size(source.path)
        across, down = mask.width / size[0], mask.height / size[1]
        left, top, right, bottom = crop.box
        place = (round(left * across), round(top * down), round(right * across), round(bottom * down))
        write_bytes(mask_place(target, paths), _png(mask.crop(place)))
    write_bytes(target, _png(read_layers(source.path).crop(crop.box)))
    return crop.model_copy(update={"sha256": file_hash(target)})


def _png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
