"""Looks at every picture before it is trained on. Of those that were drawn the bad ones are made again for the same
shot, because one blank or foreign picture among forty is learned like the others; of a person's own none is taken away,
and what was found is reported before the training begins."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from lora_foundry.domain.curation import CurationResult, Verdict, cover
from lora_foundry.domain.dataset import GenerationMetadata, PictureRecord
from lora_foundry.domain.exclusion import Exclusions
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.files.hashing import file_hash, readable_hash
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, remove_leftovers, require_model, write_model
from lora_foundry.files.training_set import SetPicture, is_excluded, list_set
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.stages._shared.drawing import context_of, record_of
from lora_foundry.stages.curate.crops import cut_crops
from lora_foundry.stages.curate.quality import QualityFilter, make_filter
from lora_foundry.stages.curate.selection import Selection
from lora_foundry.stages.curate.triage import triage


def run(run: Run, ports: Ports, progress: ProgressCallback) -> CurationResult:
    """Decides on the set, puts it into images/ and writes curation.json; what was found of own pictures is in
    triage.json, and what was cut from them in crops.json. Raises StageError if too few are usable."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    metadata = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    stamp = _fingerprint(run, paths, metadata)
    result = read_model(paths.curation, CurationResult)
    if result is None or result.fingerprint != stamp or not _in_place(paths, metadata):
        curate = _select if run.draws else _look_at_own
        result = curate(run, ports, paths, metadata, progress).model_copy(update={"fingerprint": stamp})
        write_model(paths.curation, result)
    triage(run, paths, result.own, progress)
    cut_crops(run, paths, result.own, progress)
    return result


def _select(
    run: Run, ports: Ports, paths: RunPaths, metadata: GenerationMetadata, progress: ProgressCallback
) -> CurationResult:
    """The drawn pictures of the set, chosen and put in place, beside a person's own."""
    started = perf_counter()
    context = context_of(run, ports, metadata)
    plan = context.plan(run)
    for folder in (paths.root, paths.images, paths.candidates):
        remove_leftovers(folder)
    size = plan.settings.width, plan.settings.height
    quality = make_filter(run, ports, size, None if context.reference is None else context.reference.path)
    selection = Selection(paths, plan, context, quality, _verdicts(paths, quality, progress), progress)
    selection.decide()
    chosen = selection.chosen()
    verdicts, rejected = selection.settle(chosen)
    pictures = tuple(_record(paths, plan, metadata, index) for index in sorted(chosen))
    write_model(paths.generation_metadata, metadata.model_copy(update={"pictures": pictures}))
    return CurationResult(
        character=run.character.name,
        fingerprint="",
        wanted=len(plan.shots),
        made=selection.made,
        budget=selection.budget,
        accepted=verdicts,
        rejected=rejected,
        coverage=cover(run.recipe.shots, [picture.shot for picture in pictures]),
        own=selection.own,
        left_out=tuple(index for index in range(len(plan.shots)) if index not in chosen),
        distance=quality.distance([(index, verdict.attempt) for index, verdict in chosen.items()]),
        cohesion=None if quality.core is None else round(quality.core.cohesion, 4),
        least_likeness=quality.least,
        seconds=round(perf_counter() - started, 3),
    )


def _look_at_own(
    run: Run, ports: Ports, paths: RunPaths, metadata: GenerationMetadata, progress: ProgressCallback
) -> CurationResult:
    """A set of own pictures alone: measured, identified by one another, and all kept."""
    started = perf_counter()
    quality = make_filter(run, ports, (0, 0), None)
    own = _verdicts(paths, quality, progress)
    found = quality.identify([verdict.file for verdict in own])
    own = [quality.identified(verdict, found.get(verdict.file)) for verdict in own]
    return CurationResult(
        character=run.character.name,
        fingerprint="",
        wanted=0,
        made=0,
        budget=0,
        accepted=(),
        rejected=(),
        coverage=(),
        own=tuple(own),
        distance=quality.distance([verdict.file for verdict in own]),
        cohesion=None if quality.core is None else round(quality.core.cohesion, 4),
        least_likeness=quality.least,
        seconds=round(perf_counter() - started, 3),
    )


def _verdicts(paths: RunPaths, quality: QualityFilter, progress: ProgressCallback) -> list[Verdict]:
    """A person's own pictures, one after another: measured, and kept whatever is found."""
    own, verdicts = _own(paths), list[Verdict]()
    for number, picture in enumerate(own, 1):
        file = picture.path.relative_to(paths.root).as_posix()
        measures, reasons = quality.look_at_own(picture.path, file)
        verdicts.append(
            Verdict(
                file=file,
                index=-1,
                attempt=0,
                seed=0,
                accepted=not reasons,
                reasons=reasons,
                measures=measures,
            )
        )
        progress(
            ProgressEvent(
                stage="curate",
                done=number,
                total=len(own),
                unit="image",
                message="own pictures",
                image=picture.path,
            )
        )
    return verdicts


def _own(paths: RunPaths) -> Sequence[SetPicture]:
    """A person's own pictures that are not thrown out, those that cannot be read included."""
    exclusions = read_model(paths.exclusions, Exclusions) or Exclusions()
    return [picture for picture in list_set(paths).own if not is_excluded(exclusions, picture)]


def _fingerprint(run: Run, paths: RunPaths, metadata: GenerationMetadata) -> str:
    """Over all that decides the set: the plan of the pictures, the rules, and what the trait check looks
    for."""
    rules = run.recipe.curate
    checked = (run.recipe.model.tagger, run.character.tags) if rules.check_traits else ()
    eyes = (run.recipe.model.embedder if rules.identity else "none", run.recipe.model.detector)
    own = [(picture.name, readable_hash(picture.path)) for picture in _own(paths)]
    return fingerprint("curate-4", metadata.fingerprint, rules, checked, eyes, own)


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
