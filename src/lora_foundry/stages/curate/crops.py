"""Copies of a person's own pictures, cut around their one face: a LoRA that has only seen whole figures draws small faces
badly. The originals stay as they are; a copy lies beside its original, as `name.face.png`, and crops.json says what it was
cut from. Whoever changes a copy has made it their own: it is neither written over nor moved away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from lora_foundry.domain.curation import Verdict
from lora_foundry.domain.dataset import Crop, Crops
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.sections.dataset import Framing
from lora_foundry.files.cropping import cut
from lora_foundry.files.hashing import file_hash, readable_hash
from lora_foundry.files.images import picture_size
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.files.training_set import SetPicture, list_set, move_picture, was_cut
from lora_foundry.ports import ProgressCallback

# Width and height of a framing, and how much of it lies above the face; all in sides of the face.
_FRAMES: dict[Framing, tuple[float, float, float]] = {"face": (2.2, 2.2, 0.6), "upper_body": (3.6, 4.8, 0.9)}
_MOST = 0.85  # of the picture's area: what is more is the picture itself
_NO_FACE, _CLOSE, _SMALL = "show no single face", "are that close already", "would be too small"


def cut_crops(run: Run, paths: RunPaths, own: Sequence[Verdict], progress: ProgressCallback) -> Crops:
    """Cuts what the recipe asks for and is not there yet, moves aside what nothing asks for any more, and writes
    crops.json. `own`: what was measured of the own pictures. Raises StorageError, InputError."""
    framings = run.recipe.dataset.crops
    known = read_model(paths.crops, Crops) or Crops()
    if not framings and not known.files:
        return known
    listed = {picture.name: picture for picture in list_set(paths).pictures}
    faces = {verdict.file: verdict.measures.face for verdict in own}
    plan = _Plan(paths, known.files)
    least = run.recipe.dataset.min_side or run.recipe.train.resolution // 2
    for picture in listed.values():
        file = picture.path.relative_to(paths.root).as_posix()
        if picture.own and file in faces:
            plan.add(picture, faces[file], framings, least)
    plan.keep_what_people_cut(listed)
    if plan.files != known.files:
        write_model(paths.crops, Crops(files={**known.files, **plan.files}))
        _move_aside(
            paths, [listed[name] for name in known.files if name in listed and name not in plan.files]
        )
        todo = [(name, crop) for name, crop in plan.files.items() if not crop.sha256]
        for number, (name, crop) in enumerate(todo, 1):
            plan.files[name] = cut(paths, listed[crop.source], name, crop)
            progress(_event(number, len(todo), f"cut {name}", paths.images / name))
        write_model(paths.crops, Crops(files=plan.files))
    if framings and faces:
        message = "; ".join([f"{len(plan.files)} crops of own pictures", *plan.left_out()])
        progress(_event(len(plan.files), len(plan.files), message))
    return Crops(files=plan.files)


def _move_aside(paths: RunPaths, crops: Sequence[SetPicture]) -> None:
    """Takes crops that nothing asks for any more out of images/, but for those that a person has changed."""
    aside = paths.previous_images()
    for crop in crops:
        if was_cut(crop):
            move_picture(paths, crop.path, aside / crop.name)


def _event(done: int, total: int, message: str, image: Path | None = None) -> ProgressEvent:
    return ProgressEvent(stage="curate", done=done, total=total, unit="image", message=message, image=image)


class _Plan:
    """Which crops there are to be; those that are there already have their hash."""

    def __init__(self, paths: RunPaths, known: Mapping[str, Crop]) -> None:
        self._paths, self._known = paths, known
        self._reasons: Counter[str] = Counter()
        self.files: dict[str, Crop] = {}

    def add(
        self,
        picture: SetPicture,
        face: tuple[float, float, float, float] | None,
        framings: Sequence[Framing],
        least: int,
    ) -> None:
        """Plans the crops of one picture, none with a side of less than `least` pixels."""
        if face is None:
            self._reasons[_NO_FACE] += 1
            return
        size = picture_size(picture.path)
        for framing in framings:
            box = frame(face, size, framing)
            width, height = box[2] - box[0], box[3] - box[1]
            if width * height > _MOST * size[0] * size[1]:
                self._reasons[_CLOSE] += 1
            elif min(width, height) < least:
                self._reasons[_SMALL] += 1
            else:
                self._place(picture, framing, box)

    def keep_what_people_cut(self, listed: Container[str]) -> None:
        """Crops that a person made stay, and beside them those of the same picture, which they took out of the set."""
        by_hand = {name: crop for name, crop in self._known.items() if crop.by_hand and name in listed}
        sources = {crop.source for crop in by_hand.values()}
        beside = {
            name: crop for name, crop in self._known.items() if crop.source in sources and name in listed
        }
        self.files = {**by_hand, **beside, **self.files}

    def _place(self, picture: SetPicture, framing: Framing, box: tuple[int, int, int, int]) -> None:
        crop = Crop(
            source=picture.name,
            source_sha256=readable_hash(picture.path),
            framing=framing,
            box=box,
            mask_sha256="" if picture.mask is None else readable_hash(picture.mask),
        )
        for name in _names(picture.name, framing):
            path, before = self._paths.images / name, self._known.get(name)
            if name in self.files:
                continue  # of another picture with the same stem
            if before is not None and before.sha256 and before.same_cut(crop) and path.is_file():
                self.files[name] = before  # as it was cut, or as a person has changed it since
                return
            ours = (
                before is not None
                and before.source == crop.source
                and (not before.sha256 or not path.is_file() or file_hash(path) == before.sha256)
            )
            if ours or not path.exists():
                self.files[name] = crop
                return

    def left_out(self) -> list[str]:
        """How many pictures have none, and why."""
        return [f"{count} {reason}" for reason, count in self._reasons.items()]


def frame(
    face: tuple[float, float, float, float], size: tuple[int, int], framing: Framing
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a framing around a face, in pixels of a picture of `size`; within the picture, moved
    where the face is near its edge. face: left, top, width, height as shares of the picture."""
    left, top, width, height = (value * size[axis % 2] for axis, value in enumerate(face))
    side = max(width, height)
    across, down, above = (factor * side for factor in _FRAMES[framing])
    wide, high = min(round(across), size[0]), min(round(down), size[1])
    start = min(max(round(left + width / 2 - wide / 2), 0), size[0] - wide)
    begin = min(max(round(top - above), 0), size[1] - high)
    return start, begin, start + wide, begin + high


def _names(source: str, framing: Framing) -> Iterator[str]:
    """What a crop may be called: beside its original, so that it is shown as often."""
    stem = str(Path(source).with_suffix("").as_posix())
    yield f"{stem}.{framing}.png"
    number = 2
    while True:
        yield f"{stem}.{framing}-{number}.png"
        number += 1
