"""What a reference image is to a run beside what its pictures are drawn after: it tells what the description leaves open,
and it is a picture of the set itself, since of all of them it is the one that surely shows the character."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from lora_foundry.domain.captions import open_features
from lora_foundry.domain.dataset import own_record
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.files.hashing import readable_hash
from lora_foundry.files.images import read_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_bytes
from lora_foundry.files.training_set import list_set, move_picture
from lora_foundry.ports import Ports


def check_references(run: Run) -> None:
    """Raises InputError for a reference image that cannot be read, of any character of the run."""
    for each in run.member_runs:
        _read(each, RunPaths(each.dataset_dir, each.character.slug))


def _read(run: Run, paths: RunPaths) -> Image.Image | None:
    """The character's reference image; None where there is none. Raises InputError."""
    given = run.character.reference_image
    if given is None:
        return None
    # The file may have gone since it was taken in.
    path = given if given.exists() or not paths.reference.exists() else paths.reference
    try:
        return read_picture(path)
    except InputError as error:
        raise InputError(f"The reference image {error}") from error


def take_in_reference(run: Run, paths: RunPaths) -> bool:
    """Copies the character's reference image into the run's folder, as every stage reads it; False where there is none.

    Raises InputError for one that is no picture.
    """
    picture = _read(run, paths)
    if picture is None:
        return False
    content = BytesIO()
    picture.save(content, format="PNG")
    known = paths.reference.read_bytes() if paths.reference.exists() else None
    if known != content.getvalue():
        if known is not None:  # another one: the set holds the former
            put_reference_in_set(paths, wanted=False)
        write_bytes(paths.reference, content.getvalue())
    return True


def put_reference_in_set(paths: RunPaths, wanted: bool) -> None:
    """Has the reference image among the pictures of the set, or has it there no longer. A file of a person's that has its
    name stays as it is."""
    place = paths.reference_in_set
    if wanted and not place.exists():
        write_bytes(place, paths.reference.read_bytes())
    elif not wanted and any(picture.reference for picture in list_set(paths).pictures):
        move_picture(paths, place, paths.previous_images() / place.name)


def told_by_reference(run: Run, ports: Ports) -> tuple[str, ...]:
    """What the instruments see in the reference image of the features that the description leaves open; empty without a
    reference, or without an instrument that looks."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    if run.character.reference_image is None or not paths.reference.exists():
        return ()
    record = own_record(paths.reference.name, readable_hash(paths.reference), "")
    seen = [
        tag for tagger in ports.captioners for tag in tagger.describe(run.character, [record], paths.root)[0]
    ]
    # A feature is settled where two pictures agree on it; this one needs no second.
    return open_features(run.character.description, [seen, seen], run.recipe.caption.identity_share)
