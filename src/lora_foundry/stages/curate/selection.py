"""The choice among the pictures that were made for a set. Those that are made again wait in candidates/ until the whole
set is decided; only then files move. What was decided follows from the files alone, so a run that was stopped decides
the same again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lora_foundry.domain.curation import Verdict
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import StageError
from lora_foundry.files.images import read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, move_file
from lora_foundry.files.training_set import move_picture
from lora_foundry.ports import ProgressCallback
from lora_foundry.stages._shared.drawing import GenerationContext, ShotAttempt, in_batches, make_pictures
from lora_foundry.stages.curate.quality import Key, QualityFilter, own_reasons

_SHOWN_MISSING = 5


class Selection:
    """Which pictures of one set are kept: looks at what is there, has made again what was rejected, until the set is
    full or the budget is spent."""

    def __init__(
        self,
        paths: RunPaths,
        plan: PicturePlan,
        context: GenerationContext,
        quality: QualityFilter,
        own: Sequence[Verdict],
        progress: ProgressCallback,
    ) -> None:
        self._paths, self._plan, self._context, self._filter = paths, plan, context, quality
        self._progress = progress
        self._tried: dict[int, list[Verdict]] = {index: [] for index in range(len(plan.shots))}
        self._accepted = 0
        self.made = 0
        self.budget = math.floor(quality.rules.budget * len(plan.shots) + 1e-9)
        self.own = tuple(own)

    def decide(self) -> None:
        """Looks and makes again until nothing more is to be made. Reads and makes pictures, moves none."""
        pending = list(self._tried)
        while pending:
            attempts = [ShotAttempt(index, len(self._tried[index])) for index in pending]
            self._make_missing(attempts)
            self.made += len(attempts)
            for attempt in attempts:
                self._look_at_one(attempt)
            self._identify()
            pending = [index for index, tried in self._tried.items() if not any(v.accepted for v in tried)]
            self._report("", None, len(self._tried) - len(pending))
            pending = pending[: self.budget - self.made]

    def _identify(self) -> None:
        """Says anew of every picture seen so far whether it shows the character: with more of them, that changes."""
        verdicts = [verdict for tried in self._tried.values() for verdict in tried]
        sound: list[Key] = [_key(each) for each in verdicts if not own_reasons(each)]
        found = self._filter.identify([*sound, *(verdict.file for verdict in self.own)])
        for tried in self._tried.values():
            tried[:] = [self._filter.identified(verdict, found.get(_key(verdict))) for verdict in tried]
        self.own = tuple(self._filter.identified(verdict, found.get(verdict.file)) for verdict in self.own)

    def chosen(self) -> dict[int, Verdict]:
        """The picture for every shot: the accepted one, else the best that can be used at all, as far as the recipe
        wants the gaps filled. Raises StageError."""
        best: dict[int, Verdict] = {}
        for index, tried in self._tried.items():
            usable = [verdict for verdict in tried if verdict.usable]
            if usable:
                best[index] = min(usable, key=Verdict.badness)
        total = len(self._tried)
        wanted = math.ceil(self._filter.rules.fill * total - 1e-9)
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
                self._put_in_place(ShotAttempt(index, taken))
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

    def _make_missing(self, attempts: Sequence[ShotAttempt]) -> None:
        """Has every picture of this round made that is not there, in the same batches whatever is there."""
        missing = {attempt for attempt in attempts if self._find(attempt) is None}
        batches = in_batches(attempts, self._plan.settings.batch_size)
        unfinished = [batch for batch in batches if missing.intersection(batch)]
        if not unfinished:
            return

        def place(attempt: ShotAttempt) -> Path | None:
            return self._paths.attempt(self._paths.candidates, *attempt) if attempt in missing else None

        make_folder(self._paths.candidates)
        for attempt, path in make_pictures(self._context, self._plan, unfinished, place):
            self._report(f"{self._paths.image(attempt.shot).name} made again", path)

    def _look_at_one(self, attempt: ShotAttempt) -> None:
        path = self._find(attempt)
        if path is None:
            raise StageError(
                f"A picture for shot {attempt.shot + 1:03d} vanished from {self._paths.root}; run again."
            )
        record = self._plan.record(*attempt)
        measures, reasons = self._filter.look(
            path, (attempt.shot, attempt.number), bool(record.shot.expression)
        )
        verdict = Verdict(
            file=path.relative_to(self._paths.root).as_posix(),
            index=attempt.shot,
            attempt=attempt.number,
            seed=record.request.seed,
            accepted=not reasons,
            reasons=reasons,
            measures=measures,
        )
        self._tried[attempt.shot].append(verdict)
        if reasons:
            self._report(f"{record.file} rejected: {reasons[0].text}", path)

    def _find(self, attempt: ShotAttempt) -> Path | None:
        """Where the picture of an attempt lies now. A picture in images/ that does not say is taken for the
        first."""
        for folder in (self._paths.candidates, self._paths.rejected):
            if (path := self._paths.attempt(folder, *attempt)).exists():
                return path
        image = self._paths.image(attempt.shot)
        return image if image.exists() and self._attempt_in_place(attempt.shot) == attempt.number else None

    def _attempt_in_place(self, index: int) -> int:
        record = read_record(self._paths.image(index))
        return record.attempt if record is not None and self._plan.fits(record, index) else 0

    def _put_in_place(self, attempt: ShotAttempt) -> None:
        """Makes the picture of `attempt` the one in images/; what lies there goes to rejected/."""
        found, image = self._find(attempt), self._paths.image(attempt.shot)
        if found is None or found == image:
            return
        if image.exists():
            home = self._paths.attempt(
                self._paths.rejected, attempt.shot, self._attempt_in_place(attempt.shot)
            )
            target = self._paths.previous_images() / image.name if home.exists() else home
            move_picture(
                self._paths, image, target, captions=False
            )  # the shot's caption fits the new picture, too
        move_file(found, image)

    def _put_aside(self, index: int) -> None:
        """Takes what lies in images/ for a shot that the set leaves out to rejected/, with its caption."""
        image = self._paths.image(index)
        if image.exists():
            home = self._paths.attempt(self._paths.rejected, index, self._attempt_in_place(index))
            target = self._paths.previous_images() / image.name if home.exists() else home
            move_picture(self._paths, image, target)

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
