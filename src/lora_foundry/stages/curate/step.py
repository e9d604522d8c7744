"""Looks at every picture before it is trained on, and has the bad ones made again for the same shot, because
one blank or foreign picture among forty is learned like the others.

Pictures that are made again wait in candidates/ until the whole set is decided; only then files move. What
was decided follows from the files alone, so a run that was stopped decides the same again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from lora_foundry.domain.curation import CurationResult, Reason, Verdict, cover
from lora_foundry.domain.dataset import GenerationMetadata, PictureRecord
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import StageError
from lora_foundry.files.images import file_hash, own_pictures, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import (
    make_folder,
    move_file,
    read_model,
    remove_leftovers,
    require_model,
    write_model,
)
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.stages.curate.judging import Judge, Key, make_judge
from lora_foundry.stages.drawing import Brush, Slot, make_pictures, record_of, slices
from lora_foundry.stages.generate.rounds import last_brush

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

    brush = last_brush(run, ports, progress)
    plan = brush.plan(run)
    for folder in (paths.root, paths.images, paths.candidates):
        remove_leftovers(folder)
    size = plan.settings.width, plan.settings.height
    reference = None if brush.reference is None else brush.reference.path
    judge = make_judge(run, ports, size, reference)
    curation = Curation(paths, plan, brush, judge, progress)
    curation.decide()
    chosen = curation.chosen()
    verdicts, rejected = curation.settle(chosen)
    pictures = tuple(_record(paths, plan, metadata, index) for index in sorted(chosen))
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
        own=curation.own,
        left_out=tuple(index for index in range(len(plan.shots)) if index not in chosen),
        distance=judge.distance([(index, verdict.attempt) for index, verdict in chosen.items()]),
        cohesion=None if judge.core is None else round(judge.core.cohesion, 4),
        least_likeness=judge.least,
        seconds=round(perf_counter() - started, 3),
    )
    write_model(paths.curation, result)
    return result


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
    ) -> None:
        self._paths, self._plan, self._brush, self._judge = paths, plan, brush, judge
        self._progress = progress
        self._tried: dict[int, list[Verdict]] = {index: [] for index in range(len(plan.shots))}
        self._accepted = 0
        self.made = 0
        self.budget = math.floor(judge.rules.budget * len(plan.shots) + 1e-9)
        self.own: tuple[Verdict, ...] = ()

    def decide(self) -> None:
        """Judges round after round. Reads and makes pictures, moves none."""
        self.own = tuple(self._judge_own(path) for path in own_pictures(self._paths))
        pending = list(self._tried)
        while pending:
            slots = [Slot(index, len(self._tried[index])) for index in pending]
            self._make_missing(slots)
            self.made += len(slots)
            for slot in slots:
                self._judge_one(slot)
            self._identify()
            pending = [index for index, tried in self._tried.items() if not any(v.accepted for v in tried)]
            self._report("", None, len(self._tried) - len(pending))
            pending = pending[: self.budget - self.made]

    def _identify(self) -> None:
        """Says anew of every picture seen so far whether it shows the character: with more of them, that changes."""
        verdicts = [verdict for tried in self._tried.values() for verdict in tried]
        sound: list[Key] = [_key(each) for each in verdicts if not _faults(each)]
        found = self._judge.identify([*sound, *(verdict.file for verdict in self.own)])
        for tried in self._tried.values():
            tried[:] = [self._identified(verdict, found.get(_key(verdict))) for verdict in tried]
        self.own = tuple(self._identified(verdict, found.get(verdict.file)) for verdict in self.own)

    def _identified(self, verdict: Verdict, likeness: float | None) -> Verdict:
        reasons, least = _faults(verdict), self._judge.least
        if likeness is not None and least is not None and likeness < least:
            text = f"unlike the character: likeness {likeness:.2f} < {least:g}"
            reasons = (*reasons, Reason(fault="identity", text=text))
        rounded = None if likeness is None else round(likeness, 4)
        measures = verdict.measures.model_copy(update={"likeness": rounded})
        update = {"reasons": reasons, "measures": measures, "accepted": not reasons}
        return verdict.model_copy(update=update)

    def chosen(self) -> dict[int, Verdict]:
        """The picture for every shot: the accepted one, else the best that can be used at all, as far as the recipe
        wants the gaps filled. Raises StageError."""
        best: dict[int, Verdict] = {}
        for index, tried in self._tried.items():
            usable = [verdict for verdict in tried if verdict.usable]
            if usable:
                best[index] = min(usable, key=Verdict.badness)
        total = len(self._tried)
        wanted = math.ceil(self._judge.rules.fill * total - 1e-9)
        if len(best) < wanted or not best:
            raise StageError(self._too_few([index for index in self._tried if index not in best]))
        accepted = {index for index, verdict in best.items() if verdict.accepted}
        gaps = sorted(best.keys() - accepted, key=lambda index: best[index].badness())
        kept = accepted | set(gaps[: max(0, wanted - len(accepted))])
        return {index: best[index] for index in sorted(kept)}

    def _too_few(self, lacking: Sequence[int]) -> str:
        reasons = "; ".join(
            f"{index + 1:03d}: {self._tried[index][-1].reasons[0].text}" for index in lacking[:_SHOWN_MISSING]
        )
        more = f" and {len(lacking) - _SHOWN_MISSING} more" if len(lacking) > _SHOWN_MISSING else ""
        return (
            f"{len(lacking)} of {len(self._tried)} pictures are missing after {self.made} were made, "
            f"which is the budget ({reasons}{more}); raise curate.budget, or look at {self._paths.root}."
        )

    def settle(self, chosen: dict[int, Verdict]) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
        """Moves the chosen pictures into images/ and the others to rejected/; returns both lists with their
        files."""
        paths = self._paths
        accepted: list[Verdict] = []
        rejected: list[Verdict] = []
        for index, tried in self._tried.items():
            taken = chosen[index].attempt if index in chosen else None
            if taken is None:
                self._put_aside(index)
            else:
                self._put_in_place(Slot(index, taken))
            for verdict in tried:
                is_chosen = verdict.attempt == taken
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
        record = self._plan.record(*slot)
        measures, reasons = self._judge.look(path, (slot.shot, slot.attempt), bool(record.shot.expression))
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
        if reasons:
            self._report(f"{record.file} rejected: {reasons[0].text}", path)

    def _judge_own(self, path: Path) -> Verdict:
        """A user's picture is measured, and kept whatever is found."""
        measures, reasons = self._judge.look(path, file := path.relative_to(self._paths.root).as_posix())
        return Verdict(
            file=file, index=-1, attempt=0, seed=0, accepted=not reasons, reasons=reasons, measures=measures
        )

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

    def _put_aside(self, index: int) -> None:
        """Takes what lies in images/ for a shot that the set leaves out to rejected/, with its caption."""
        image = self._paths.image(index)
        if image.exists():
            home = self._paths.attempt(self._paths.rejected, index, self._attempt_in_place(index))
            caption = self._paths.caption(image)
            if caption.exists():
                move_file(caption, self._paths.caption(home))
            move_file(image, self._paths.previous_images() / image.name if home.exists() else home)

    def _report(self, message: str, image: Path | None, accepted: int | None = None) -> None:
        self._accepted = self._accepted if accepted is None else accepted
        self._progress(
            ProgressEvent(
                stage="curate",
                done=self._accepted,
                total=len(self._tried),
                unit="image",
                message=message,
                image=image,
            )
        )


def _key(verdict: Verdict) -> Key:
    return verdict.index, verdict.attempt


def _faults(verdict: Verdict) -> tuple[Reason, ...]:
    """What is wrong with the picture itself, whoever it shows."""
    return tuple(reason for reason in verdict.reasons if reason.fault != "identity")


def _fingerprint(run: Run, metadata: GenerationMetadata) -> str:
    """Over all that decides the set: the plan of the pictures, the rules, and what the trait check looks
    for."""
    rules = run.recipe.curate
    checked = (run.recipe.model.tagger, run.character.tags) if rules.check_traits else ()
    eyes = (run.recipe.model.embedder if rules.identity else "none", run.recipe.model.detector)
    own = [file_hash(path) for path in own_pictures(RunPaths(run.dataset_dir, run.character.slug))]
    return fingerprint("curate-2", metadata.fingerprint, rules, checked, eyes, own)


def _in_place(paths: RunPaths, metadata: GenerationMetadata) -> bool:
    """Whether the files in images/ are those that were accepted."""
    files = [(paths.images / picture.file, picture.sha256) for picture in metadata.pictures]
    return all(file.exists() and file_hash(file) == digest for file, digest in files)


def _record(paths: RunPaths, plan: PicturePlan, metadata: GenerationMetadata, index: int) -> PictureRecord:
    """What is true of the picture in images/; one that carries no record is described by what was asked
    for."""
    path = paths.image(index)
    known = {picture.file: picture for picture in metadata.pictures}
    return record_of(path, plan, index) or known.get(path.name, plan.record(index)).model_copy(
        update={"sha256": file_hash(path)}
    )
