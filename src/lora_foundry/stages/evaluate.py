"""Measures what the LoRA learned: the same held-out prompts and seeds without it and with it, where the trigger word
alone has to bring the character back. Nothing in the prompts names a trait, or the measure would test the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from lora_foundry.domain.dataset import GenerationMetadata, ImageRequest, PictureRecord
from lora_foundry.domain.evaluation import Evaluation, EvaluationPicture, ScoreRow
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.domain.picture_plan import picture_seed, prompt_of
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.domain.shots import Shot, plan_shots
from lora_foundry.paths import RunPaths
from lora_foundry.pictures import load_picture, read_record, save_picture
from lora_foundry.ports import Embedder, FloatArray, Ports, ProgressCallback, Tagger, Trait
from lora_foundry.stages.before_after import draw_before_after
from lora_foundry.stages.report import write_report
from lora_foundry.storage import read_model, require_model, write_model

_OTHER_SEED = 1_000_003  # keeps the held-out plan and its noise apart from the training set's
SIDES = ("before", "after")


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """Makes the pictures that are not there yet, scores both sides, draws the grid and the report."""
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    training = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    recipe = run.recipe
    made_from = fingerprint(
        recipe.evaluate, recipe.generate, recipe.model, run.character, lora.sha256, recipe.seed
    )
    earlier = read_model(paths.evaluation_result, Evaluation)
    if earlier is not None and earlier.fingerprint == made_from and paths.report.exists():
        return earlier
    records = evaluation_records(run, [picture.shot for picture in training.pictures], ports.generator.model)
    pictures = {
        side: _pictures(paths, side, records, ports, use, run, progress)
        for side, use in zip(
            SIDES, (None, LoraUse(path=lora.path, strength=recipe.evaluate.strength)), strict=True
        )
    }
    own = _own_embeddings(paths, training, ports.embedder)
    rows = {
        side: _score(run, records, pictures[side], side, ports.tagger, ports.embedder, own) for side in SIDES
    }
    result = Evaluation(
        before=rows["before"],
        after=rows["after"],
        strength=recipe.evaluate.strength,
        lora_sha256=lora.sha256,
        self_similarity=None if own is None else _similarity(own, own),
        note=""
        if ports.tagger
        else "The recipe names no tagger, so identity and adherence were not measured.",
        fingerprint=made_from,
        seconds=round(perf_counter() - started, 2),
    )
    draw_before_after(paths.before_after, run.character, records, pictures["before"], pictures["after"])
    write_report(run, paths, result)
    write_model(paths.evaluation_result, result)
    return result


def held_out_shots(run: Run, trained: Sequence[Shot]) -> list[Shot]:
    """Shots that show a face and that the training set does not have, spread evenly like the training plan."""
    section, vocabulary = run.recipe.evaluate, run.recipe.shots
    plan = plan_shots(vocabulary, section.prompts * 3, run.recipe.seed + _OTHER_SEED)
    fresh = (shot for shot in plan if shot.expression and shot not in set(trained))
    return list(islice(fresh, section.prompts))


def evaluation_records(run: Run, trained: Sequence[Shot], model: str) -> list[PictureRecord]:
    """Every picture of one side: the trigger word, a held-out shot, a seed of its own."""
    recipe = run.recipe
    records = []
    for number, shot in enumerate(held_out_shots(run, trained)):
        for repeat in range(recipe.evaluate.seeds):
            made = recipe.generate
            request = ImageRequest(
                key=f"{number + 1:03d}.{repeat}",
                prompt=prompt_of(made, run.character.trigger, shot),
                negative=made.negative,
                seed=picture_seed(recipe.seed + _OTHER_SEED, number, repeat),
                width=made.width,
                height=made.height,
                steps=made.steps,
                cfg=made.cfg,
                sampler=made.sampler,
                scheduler=made.scheduler,
            )
            file = f"{number + 1:03d}_{repeat + 1}.png"
            rescale = made.guidance_rescale
            records.append(
                PictureRecord(file=file, shot=shot, request=request, model=model, guidance_rescale=rescale)
            )
    return records


def _pictures(
    paths: RunPaths,
    side: str,
    records: Sequence[PictureRecord],
    ports: Ports,
    lora: LoraUse | None,
    run: Run,
    progress: ProgressCallback,
) -> list[Image.Image]:
    """One side's pictures, those of an unchanged LoRA taken from the folder."""
    folder = paths.evaluation_pictures(side)
    mark = fingerprint(lora.strength, lora.path.read_bytes().hex()) if lora else "base"
    wanted = [record.model_copy(update={"model": f"{record.model} {mark}"}) for record in records]
    missing = [record for record in wanted if not _is_there(folder / record.file, record)]
    size = run.recipe.generate.batch_size
    batches = [batch for batch in _slices(wanted, size) if any(record in missing for record in batch)]
    by_key = {record.request.key: record for record in missing}
    offset, total = SIDES.index(side) * len(wanted), len(SIDES) * len(wanted)
    done = offset + len(wanted) - len(missing)
    for made in ports.generator.generate([[record.request for record in batch] for batch in batches], lora):
        record = by_key.get(made.request.key)
        if record is None:
            continue
        save_picture(folder / record.file, made.image, record)
        done += 1
        message = "without the LoRA" if lora is None else "with the LoRA"
        progress(ProgressEvent(stage="evaluate", done=done, total=total, unit="image", message=message))
    return [_load(folder / record.file) for record in wanted]


def _slices(records: Sequence[PictureRecord], size: int) -> Iterator[Sequence[PictureRecord]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def _is_there(path: Path, record: PictureRecord) -> bool:
    return read_record(path) == record and load_picture(path) is not None


def _load(path: Path) -> Image.Image:
    image = load_picture(path)
    assert image is not None, path  # it was just written
    return image


def _score(
    run: Run,
    records: Sequence[PictureRecord],
    images: Sequence[Image.Image],
    side: str,
    tagger: Tagger | None,
    embedder: Embedder | None,
    own: FloatArray | None,
) -> ScoreRow:
    """Identity and adherence by the tagger, similarity by the embedder."""
    seen = tagger.read(images) if tagger else [{} for _ in images]
    pictures = tuple(
        EvaluationPicture(file=f"{side}/{record.file}", shot=record.shot, seed=record.request.seed, seen=row)
        for record, row in zip(records, seen, strict=True)
    )
    similarity = _similarity(embedder.embed(images), own) if embedder and own is not None else None
    if tagger is None:
        return ScoreRow(similarity=similarity, pictures=pictures)
    identity = tagger.understand(run.character.tags)
    asked = [tagger.understand(record.shot.words()) for record in records]
    identity_by_trait = share_right([identity] * len(seen), seen)
    adherence_by_attribute = share_right(asked, seen)
    return ScoreRow(
        identity=_mean(identity_by_trait),
        adherence=_mean(adherence_by_attribute),
        identity_by_trait=identity_by_trait,
        adherence_by_attribute=adherence_by_attribute,
        similarity=similarity,
        pictures=pictures,
    )


def share_right(asked: Sequence[Sequence[Trait]], seen: Sequence[dict[str, str]]) -> dict[str, float]:
    """For each attribute asked for, the share of pictures showing the right value among those that show it at all."""
    right: dict[str, list[bool]] = {}
    for traits, row in zip(asked, seen, strict=True):
        for trait in traits:
            if trait.attribute in row:
                right.setdefault(trait.attribute, []).append(row[trait.attribute] == trait.value)
    return {attribute: round(sum(hits) / len(hits), 4) for attribute, hits in right.items()}


def _mean(shares: dict[str, float]) -> float | None:
    """The mean over attributes, each counting the same however often it was visible."""
    return round(sum(shares.values()) / len(shares), 4) if shares else None


def _own_embeddings(
    paths: RunPaths, training: GenerationMetadata, embedder: Embedder | None
) -> FloatArray | None:
    if embedder is None:
        return None
    return embedder.embed([_load(paths.images / picture.file) for picture in training.pictures])


def _similarity(embeddings: FloatArray, own: FloatArray) -> float:
    """Mean cosine with the direction of the training set's mean embedding."""
    mean = own.mean(axis=0)
    return round(float((embeddings @ (mean / max(float(np.linalg.norm(mean)), 1e-8))).mean()), 4)
