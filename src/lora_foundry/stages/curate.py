"""Looks at every picture before it is trained on, and has the bad ones made again for the same shot, because
one blank or foreign picture among forty is learned like the others.

Pictures that are made again wait in candidates/ until the whole set is decided; only then files move. What
was decided follows from the files alone, so a run that was stopped decides the same again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lora_foundry.domain.curation import CurationResult, Measures, Reason, Verdict, cover
from lora_foundry.domain.dataset import GenerationMetadata, PictureRecord
from lora_foundry.domain.picture_plan import PicturePlan, plan_pictures
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.domain.sections import CurateSection
from lora_foundry.errors import InputError, StageError
from lora_foundry.measures import (
    Grey,
    contrast,
    difference,
    difference_hash,
    grey,
    hash_distance,
    sharpness,
    thumbnail,
)
from lora_foundry.paths import RunPaths
from lora_foundry.pictures import file_hash, load_picture, read_record
from lora_foundry.ports import Ports, ProgressCallback, Tagger, Trait
from lora_foundry.stages.generate import Brush, Slot, make_pictures, record_of, slices, take_brush
from lora_foundry.storage import (
    make_folder,
    move_file,
    read_model,
    remove_leftovers,
    require_model,
    write_model,
)

_SHOWN_MISSING = 5


def run(run: Run, ports: Ports, progress: ProgressCallback) -> CurationResult:
    """Decides on the set, puts it into images/ and writes curation.json. Raises StageError if too few are
    usable."""
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    metadata = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    stamp = _fingerprint(run, metadata)
    finished = read_model(paths.curation, CurationResult)
    if finished is not None and finished.fingerprint == stamp and _in_place(paths, metadata):
        return finished

    plan = plan_pictures(run.character, run.recipe, metadata.model)
    for folder in (paths.root, paths.images, paths.candidates):
        remove_leftovers(folder)
    judge = Judge(run.recipe.curate, (plan.settings.width, plan.settings.height), *_traits(run, ports))
    curation = Curation(paths, plan, take_brush(run, ports), judge, progress, run.recipe.curate.budget)
    curation.decide()
    accepted = curation.chosen()
    verdicts, rejected = curation.settle(accepted)
    pictures = tuple(_record(paths, plan, metadata, index) for index in range(len(plan.shots)))
    write_model(paths.generation_metadata, metadata.model_copy(update={"pictures": pictures}))
    result = CurationResult(
        character=run.character.name,
        fingerprint=stamp,
        wanted=len(plan.shots),
        made=curation.made,
        budget=curation.budget,
        accepted=verdicts,
        rejected=rejected,
        coverage=cover(run.recipe.shots, [picture.shot for picture in pictures]),
        seconds=round(perf_counter() - started, 3),
    )
    write_model(paths.curation, result)
    return result


@dataclass
class Judge:
    """Tells what is wrong with a picture, given those that were accepted before it."""

    rules: CurateSection
    size: tuple[int, int]
    tagger: Tagger | None = None
    traits: Sequence[Trait] = ()
    _seen: dict[int, tuple[int, Grey]] = field(default_factory=dict)

    def look(self, path: Path, index: int) -> tuple[Measures, tuple[Reason, ...]]:
        """What was measured, and every reason to reject the picture; without one, it counts as accepted."""
        image = load_picture(path)
        if image is None:
            return Measures(), (Reason(fault="undecodable", text="the file is no whole picture"),)
        if image.size != self.size:
            text = f"{image.width}x{image.height} instead of {self.size[0]}x{self.size[1]}"
            return Measures(), (Reason(fault="wrong_size", text=text),)
        levels, bits, small = grey(image), difference_hash(image), thumbnail(image)
        right, seen = None, None
        if self.tagger is not None and self.traits:
            reading = self.tagger.read([image])[0]
            visible = [trait for trait in self.traits if trait.attribute in reading]
            right, seen = sum(reading[trait.attribute] == trait.value for trait in visible), len(visible)
        measures = Measures(
            contrast=round(contrast(levels), 3),
            sharpness=round(sharpness(levels), 3),
            hash=f"{bits:016x}",
            traits_right=right,
            traits_seen=seen,
        )
        reasons = (*self._faults(measures), *self._duplicate(bits, small))
        if not reasons:
            self._seen[index] = (bits, small)
        return measures, reasons

    def _faults(self, measures: Measures) -> list[Reason]:
        rules, faults = self.rules, []
        if measures.contrast is not None and measures.contrast < rules.min_contrast:
            faults.append(
                Reason(fault="blank", text=f"blank: contrast {measures.contrast:g} < {rules.min_contrast:g}")
            )
        elif measures.sharpness is not None and measures.sharpness < rules.min_sharpness:
            text = f"blurred: sharpness {measures.sharpness:g} < {rules.min_sharpness:g}"
            faults.append(Reason(fault="blurred", text=text))
        if measures.trait_share < rules.min_traits and self.tagger is not None:
            text = (
                f"shows {measures.traits_right} of {measures.traits_seen} described traits that can be seen"
            )
            faults.append(Reason(fault="traits", text=text))
        return faults

    def _duplicate(self, bits: int, small: Grey) -> list[Reason]:
        """Two pictures are one only if hash and thumbnail both say so."""
        for other, (other_bits, other_small) in sorted(self._seen.items()):
            if (
                hash_distance(bits, other_bits) <= self.rules.duplicate_distance
                and difference(small, other_small) <= self.rules.duplicate_difference
            ):
                return [Reason(fault="duplicate", text=f"nearly the same as picture {other + 1:03d}")]
        return []


class Curation:
    """The rounds of one set: judge what is there, make again what was rejected, until full or out of
    budget."""

    def __init__(
        self,
        paths: RunPaths,
        plan: PicturePlan,
        brush: Brush,
        judge: Judge,
        progress: ProgressCallback,
        budget: float,
    ) -> None:
        self._paths, self._plan, self._brush, self._judge = paths, plan, brush, judge
        self._progress = progress
        self._tried: dict[int, list[Verdict]] = {index: [] for index in range(len(plan.shots))}
        self._accepted: set[int] = set()
        self.made = 0
        self.budget = math.floor(budget * len(plan.shots) + 1e-9)

    def decide(self) -> None:
        """Judges round after round. Reads and makes pictures, moves none."""
        pending, attempt = list(self._tried), 0
        while pending:
            slots = [Slot(index, attempt) for index in pending]
            self._make_missing(slots)
            self.made += len(slots)
            for slot in slots:
                self._judge_one(slot)
            pending = [index for index in pending if index not in self._accepted][: self.budget - self.made]
            attempt += 1

    def chosen(self) -> dict[int, Verdict]:
        """The picture for every shot: the accepted one, else the best that can be used at all. Raises
        StageError."""
        chosen: dict[int, Verdict] = {}
        for index, tried in self._tried.items():
            usable = [verdict for verdict in tried if verdict.usable]
            if usable:
                chosen[index] = min(usable, key=Verdict.badness)
        lacking = [index for index in self._tried if index not in chosen]
        if lacking:
            reasons = "; ".join(
                f"{index + 1:03d}: {self._tried[index][-1].reasons[0].text}"
                for index in lacking[:_SHOWN_MISSING]
            )
            more = f" and {len(lacking) - _SHOWN_MISSING} more" if len(lacking) > _SHOWN_MISSING else ""
            raise StageError(
                f"{len(lacking)} of {len(self._tried)} pictures are missing after {self.made} were made, "
                f"which is the budget ({reasons}{more}); raise curate.budget, or look at {self._paths.root}."
            )
        return chosen

    def settle(self, chosen: dict[int, Verdict]) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
        """Moves the chosen pictures into images/ and the others to rejected/; returns both lists with their
        files."""
        paths = self._paths
        accepted: list[Verdict] = []
        rejected: list[Verdict] = []
        for index, tried in self._tried.items():
            self._put_in_place(Slot(index, chosen[index].attempt))
            for verdict in tried:
                is_chosen = verdict.attempt == chosen[index].attempt
                home = (
                    paths.image(index) if is_chosen else paths.attempt(paths.rejected, index, verdict.attempt)
                )
                file = home.relative_to(paths.root).as_posix()
                update = {"file": file, "accepted": is_chosen}
                (accepted if is_chosen else rejected).append(verdict.model_copy(update=update))
        if paths.candidates.exists():
            for left in sorted(paths.candidates.glob("*.png")):
                move_file(left, paths.rejected / left.name)
            if not any(paths.candidates.iterdir()):
                paths.candidates.rmdir()
        return tuple(accepted), tuple(rejected)

    def _make_missing(self, slots: Sequence[Slot]) -> None:
        """Has every picture of this round made that is not there, in the same batches whatever is there."""
        missing = {slot for slot in slots if self._find(slot) is None}
        batches = slices(slots, self._plan.settings.batch_size)
        unfinished = [batch for batch in batches if missing.intersection(batch)]
        if not unfinished:
            return

        def place(slot: Slot) -> Path | None:
            return self._paths.attempt(self._paths.candidates, *slot) if slot in missing else None

        make_folder(self._paths.candidates)
        for slot, path in make_pictures(self._brush, self._plan, unfinished, place):
            self._report(f"{self._paths.image(slot.shot).name} made again", path)

    def _judge_one(self, slot: Slot) -> None:
        path = self._find(slot)
        if path is None:
            raise StageError(
                f"A picture for shot {slot.shot + 1:03d} vanished from {self._paths.root}; run again."
            )
        measures, reasons = self._judge.look(path, slot.shot)
        record = self._plan.record(*slot)
        verdict = Verdict(
            file=path.relative_to(self._paths.root).as_posix(),
            index=slot.shot,
            attempt=slot.attempt,
            seed=record.request.seed,
            accepted=not reasons,
            reasons=reasons,
            measures=measures,
        )
        self._tried[slot.shot].append(verdict)
        if verdict.accepted:
            self._accepted.add(slot.shot)
            self._report("", path)
        else:
            self._report(f"{record.file} rejected: {reasons[0].text}", path)

    def _find(self, slot: Slot) -> Path | None:
        """Where the picture of an attempt lies now. A picture in images/ that does not say is taken for the
        first."""
        for folder in (self._paths.candidates, self._paths.rejected):
            if (path := self._paths.attempt(folder, *slot)).exists():
                return path
        image = self._paths.image(slot.shot)
        return image if image.exists() and self._attempt_in_place(slot.shot) == slot.attempt else None

    def _attempt_in_place(self, index: int) -> int:
        record = read_record(self._paths.image(index))
        return record.attempt if record is not None and self._plan.fits(record, index) else 0

    def _put_in_place(self, slot: Slot) -> None:
        """Makes the picture of `slot` the one in images/; what lies there goes to rejected/."""
        found, image = self._find(slot), self._paths.image(slot.shot)
        if found is None or found == image:
            return
        if image.exists():
            home = self._paths.attempt(self._paths.rejected, slot.shot, self._attempt_in_place(slot.shot))
            move_file(image, self._paths.previous_images() / image.name if home.exists() else home)
        move_file(found, image)

    def _report(self, message: str, image: Path) -> None:
        self._progress(
            ProgressEvent(
                stage="curate",
                done=len(self._accepted),
                total=len(self._tried),
                unit="image",
                message=message,
                image=image,
            )
        )


def _traits(run: Run, ports: Ports) -> tuple[Tagger | None, Sequence[Trait]]:
    """The instrument and the described traits, if the recipe wants them checked."""
    if not run.recipe.curate.check_traits:
        return None, ()
    tagger = ports.tagger
    if tagger is None:
        raise InputError(
            "curate.check_traits needs an instrument that reads traits; set model.tagger, or turn it off."
        )
    return tagger, tagger.understand(run.character.tags)


def _fingerprint(run: Run, metadata: GenerationMetadata) -> str:
    """Over all that decides the set: the plan of the pictures, the rules, and what the trait check looks
    for."""
    rules = run.recipe.curate
    checked = (run.recipe.model.tagger, run.character.tags) if rules.check_traits else ()
    return fingerprint("curate", metadata.fingerprint, rules, checked)


def _in_place(paths: RunPaths, metadata: GenerationMetadata) -> bool:
    """Whether the files in images/ are those that were accepted."""
    files = [(paths.images / picture.file, picture.sha256) for picture in metadata.pictures]
    return all(file.exists() and file_hash(file) == digest for file, digest in files)


def _record(paths: RunPaths, plan: PicturePlan, metadata: GenerationMetadata, index: int) -> PictureRecord:
    """What is true of the picture in images/; one that carries no record is described by what was asked
    for."""
    path = paths.image(index)
    return record_of(path, plan, index) or metadata.pictures[index].model_copy(
        update={"sha256": file_hash(path)}
    )
