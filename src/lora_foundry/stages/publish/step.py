"""Installs the LoRA, but only one that was proven: sound numbers, every key known to the base, a picture that
changes when it is on, and, where the recipe names the program that will use it, the same shown by that program.
A file that a user loads in vain is worse than none."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from lora_foundry import __version__
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.domain.publication import LoraCard, Proof, Publication
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.domain.sharing import shareable_recipe
from lora_foundry.errors import StageError, VerificationError
from lora_foundry.families._shared.registry import published_name
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import load_picture, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safetensors import read_header
from lora_foundry.files.storage import read_model, require_model, write_bytes, write_model
from lora_foundry.measures import grey
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.stages._shared.report import write_report
from lora_foundry.stages._shared.thumbnails import enlarge
from lora_foundry.stages.publish.soundness import check_numbers

_PREVIEW = 512  # pixels; the cards of ComfyUI and A1111 show no less


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Publication:
    """Proves and installs the LoRA, or says why it stays here. Raises VerificationError for a LoRA that is no
    good.

    That the base takes every key was proven by the evaluation, whose generator refuses a LoRA with others, and is
    proven again by the program that will use it.
    """
    paths = RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    scores = require_model(paths.evaluation_result, Evaluation, "evaluate")
    made_from = _fingerprint(run, lora, scores)
    earlier = read_model(paths.publication, Publication)
    if earlier is not None and earlier.fingerprint == made_from and _still_there(earlier):
        return earlier
    if lora.dry_run:
        return _keep_dry_run(paths, run, lora, scores, made_from)
    _tell(progress, 0, "numbers")
    check_numbers(paths.chosen_lora)
    if scores.trained_sha256 != lora.sha256 or file_hash(paths.chosen_lora) != scores.lora_sha256:
        raise VerificationError(
            f"{paths.chosen_lora} is not the file that was trained and measured; run the same command again."
        )
    _tell(progress, 1, "effect on the pictures")
    change = picture_change(paths, scores)
    if change < run.recipe.publish.min_change:
        raise VerificationError(
            f"The LoRA changes its pictures by {change:.2f} grey levels only (publish.min_change is "
            f"{run.recipe.publish.min_change:g}); train longer or at a higher rate."
        )
    result = Publication(
        published=False, verdict="", sha256=scores.lora_sha256, picture_change=change, fingerprint=made_from
    )
    if reason := _too_bad(run, scores):
        result = result.model_copy(update={"verdict": f"not published: {reason}"})
    else:
        _tell(progress, 2, "loading it where it will be used")
        proof = _prove(run, ports, paths, scores)
        _tell(progress, 3, "installing")
        result = _install(run, ports, paths, _card(run, paths, lora, scores), scores, result)
        result = result.model_copy(update={"proof": proof})
    write_report(run, paths, scores, result)
    write_model(paths.publication, result)
    _tell(progress, 4, result.verdict)
    return result


def _keep_dry_run(
    paths: RunPaths, run: Run, lora: TrainedLora, scores: Evaluation, made_from: str
) -> Publication:
    """What the recipe calls a rehearsal is never installed, whatever it looks like."""
    result = Publication(
        published=False,
        verdict='not published: a dry run trained nothing (train.backend = "dry-run")',
        sha256=lora.sha256,
        picture_change=0.0,
        fingerprint=made_from,
    )
    write_report(run, paths, scores, result)
    write_model(paths.publication, result)
    return result


def _tell(progress: ProgressCallback, done: int, message: str) -> None:
    progress(ProgressEvent(stage="publish", done=done, total=4, unit="check", message=message))


def _fingerprint(run: Run, lora: TrainedLora, scores: Evaluation) -> str:
    """Of everything that decides what is installed, and where."""
    return fingerprint(
        "publish-2",
        run.recipe,
        run.character,
        lora.sha256,
        scores.fingerprint,
        str(run.lora_dir),
        run.output_name,
    )


def _still_there(earlier: Publication) -> bool:
    """Whether what an earlier run installed is still in place, unchanged."""
    if not earlier.published:
        return True
    files = (earlier.lora, earlier.preview, earlier.metadata, earlier.card)
    if not all(file is not None and file.is_file() for file in files):
        return False
    return earlier.lora is not None and file_hash(earlier.lora) == earlier.sha256


def _too_bad(run: Run, scores: Evaluation) -> str:
    """Why the LoRA is not good enough for the recipe; empty if it is."""
    least, identity = run.recipe.evaluate.min_identity, scores.identity_of(scores.after)
    if least <= 0:
        return ""
    if identity is None:
        return f"identity was not measured, and evaluate.min_identity asks for {least:.2f}"
    return f"identity {identity:.2f} is below evaluate.min_identity {least:.2f}" if identity < least else ""


def _prove(run: Run, ports: Ports, paths: RunPaths, scores: Evaluation) -> Proof | None:
    """What the program that will use the LoRA makes of it, with a prompt of the evaluation; None if none is named."""
    if ports.prover is None:
        return None
    record = read_record(paths.evaluation_pictures() / scores.best().file)
    if record is None:
        raise StageError("A picture of the evaluation is missing or damaged; run the same command again.")
    use = LoraUse(path=paths.chosen_lora, strength=scores.strength)
    return ports.prover.prove(use, record.request, run.recipe.publish.min_change)


def _install(
    run: Run, ports: Ports, paths: RunPaths, card: LoraCard, scores: Evaluation, result: Publication
) -> Publication:
    preview = _draw_preview(paths, scores)
    files = ports.publisher.publish(paths.chosen_lora, preview, card, run.lora_dir, run.output_name)
    if ports.prover is not None:
        ports.prover.installed(files)
    return result.model_copy(update={"published": True, "verdict": "published", **files._asdict()})


def picture_change(paths: RunPaths, scores: Evaluation) -> float:
    """Mean absolute difference of grey levels, 0 to 255, between the same seeds without and with the LoRA."""
    differences = []
    for before, after in zip(scores.before.pictures, scores.after.pictures, strict=True):
        pair = [load_picture(paths.evaluation_pictures() / picture.file) for picture in (before, after)]
        if pair[0] is None or pair[1] is None:
            raise StageError("A picture of the evaluation is missing or damaged; run the same command again.")
        differences.append(np.abs(grey(pair[0]) - grey(pair[1])).mean())
    return round(float(np.mean(differences)), 3)


def _draw_preview(paths: RunPaths, scores: Evaluation) -> Path:
    """The best picture that the LoRA made, large enough for a card."""
    best = load_picture(paths.evaluation_pictures() / scores.best().file)
    if best is None:
        raise StageError("A picture of the evaluation is missing or damaged; run the same command again.")
    data = BytesIO()
    enlarge(best, max(_PREVIEW, *best.size)).save(data, format="PNG", optimize=True)
    return write_bytes(paths.preview, data.getvalue())


def _card(run: Run, paths: RunPaths, lora: TrainedLora, scores: Evaluation) -> LoraCard:
    character, minimal = run.character, run.recipe.publish.metadata == "minimal"
    version = read_header(paths.chosen_lora).metadata.get("ss_base_model_version", "")
    return LoraCard(
        character=character.name,
        trigger=run.trigger,
        description="" if minimal else run.described,
        tags=() if minimal else character.tags,
        strength=scores.strength,
        sha256=scores.lora_sha256,
        base_model=scores.model,
        base_version=version,
        base_names=published_name(version),
        steps=scores.step or lora.steps,
        scores=scores.scores,
        recipe={} if minimal else shareable_recipe(run.recipe).model_dump(mode="json"),
        made_by=f"lora-foundry {__version__}",
    )
