"""report.html: one file that opens anywhere and shows everything about a run. Pictures are inside it, it
loads nothing, and every word that came from a user is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from pydantic import BaseModel

from lora_foundry.domain.curation import CurationResult, Verdict
from lora_foundry.domain.dataset import Caption, GenerationMetadata, Round, TaggingResults
from lora_foundry.domain.evaluation import Candidate, Evaluation
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import Run
from lora_foundry.domain.sharing import shareable_recipe
from lora_foundry.files.paths import TRAINING_LOSS, RunPaths
from lora_foundry.files.storage import read_model, write_text
from lora_foundry.files.training_set import has_planned_name
from lora_foundry.stages._shared.loss_curve import draw_curve, draw_loss, read_losses
from lora_foundry.stages._shared.thumbnails import data_uri

_MOST_SHOWN = 200  # pictures of the set; a report of thousands opens nowhere


class Figure(NamedTuple):
    """A picture as a data URI, a caption, and what else there is to say about it."""

    source: str
    caption: str
    detail: str = ""


class Pair(NamedTuple):
    """The same prompt and seed without and with the LoRA; right and seen count the character's traits
    after."""

    before: str
    after: str
    words: str
    seed: int
    right: int
    seen: int


class Comparison(NamedTuple):
    """A measured share on both sides; `value` is what was asked for."""

    name: str
    before: float | None
    after: float | None
    value: str = ""
    uncertainty: float | None = None
    note: str = ""


class ShownRound(NamedTuple):
    """A round before the set: what was found, and the pictures that it kept as data URIs."""

    text: str
    sources: list[str]


class ToldSet(NamedTuple):
    """What the stages before the training left of one character's set."""

    paths: RunPaths
    captions: Sequence[Caption]
    rounds: Sequence[Round]
    rejected: Sequence[Verdict]
    seconds_generate: float | None
    seconds_curate: float | None


def write_report(
    run: Run, paths: RunPaths, scores: Evaluation, publication: Publication | None = None
) -> None:
    """Renders the report from what the stages left in the run's folder; before publishing, without its
    verdict."""
    training = read_model(paths.training_result, TrainedLora)
    sets = [_told_set(member) for member in run.member_runs]
    captions = [(each.paths, caption) for each in sets for caption in each.captions]
    text = _template().render(
        run=run,
        scores=scores,
        training=training,
        publication=publication,
        cards=_cards(scores),
        traits=_compare(scores.before.identity_by_trait, scores.after.identity_by_trait, scores.traits),
        attributes=_compare(scores.before.adherence_by_attribute, scores.after.adherence_by_attribute),
        pairs=_pairs(paths, scores),
        candidates=[_tried(paths, each) for each in scores.candidates],
        curve=draw_curve(
            [(each.step, each.score) for each in scores.candidates if each.strength == scores.strength]
        ),
        loss=draw_loss(read_losses(paths.training / TRAINING_LOSS)),
        rounds=[_shown_round(each.paths, done) for each in sets for done in each.rounds],
        dataset=[_captioned(*each) for each in captions[:_MOST_SHOWN]],
        trained=len(captions),
        edited=sum(caption.source == "edited" for _, caption in captions),
        rejected=[_rejected(each.paths, verdict) for each in sets for verdict in each.rejected],
        seconds={
            "generate": _total([each.seconds_generate for each in sets]),
            "curate": _total([each.seconds_curate for each in sets]),
            "train": training.seconds if training else None,
            "evaluate": scores.seconds,
        },
        recipe=recipe_text(shareable_recipe(run.recipe)),
    )
    write_text(paths.report, text)


def _told_set(run: Run) -> ToldSet:
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagging = read_model(paths.tagging_results, TaggingResults)
    curation = read_model(paths.curation, CurationResult)
    generation = read_model(paths.generation_metadata, GenerationMetadata)
    return ToldSet(
        paths,
        captions=tagging.captions if tagging else (),
        rounds=generation.rounds if generation else (),
        rejected=curation.rejected if curation else (),
        seconds_generate=generation.seconds if generation else None,
        seconds_curate=curation.seconds if curation else None,
    )


def _total(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if known else None


@cache
def _template() -> Template:
    source = (
        resources.files("lora_foundry.stages._shared")
        .joinpath("report.html.jinja")
        .read_text(encoding="utf-8")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = _share
    environment.filters["percent"] = _percent
    return environment.from_string(source)


def _share(value: float | None) -> str:
    """Two digits; a dash where nothing was measured. Adding 0 makes -0.00 a plain 0.00."""
    return "–" if value is None else f"{round(value, 2) + 0:.2f}"


def _percent(value: float | None) -> str:
    """A bar's length; a cosine below 0 has none."""
    return f"{100 * min(max(value or 0.0, 0.0), 1.0):.1f}"


def _cards(scores: Evaluation) -> list[Comparison]:
    """The headline figures; the last one only where something was measured."""
    told = scores.scores
    cards = [
        Comparison(
            told.measure, told.identity_before, told.identity_after, uncertainty=told.identity_uncertainty
        ),
        Comparison("adherence", told.adherence_before, told.adherence_after),
    ]
    if told.likeness_after is not None:
        cards.append(Comparison("likeness", told.likeness_before, told.likeness_after))
    if told.identity_without_trigger is not None:
        note = "identity; lower is better"
        cards.append(
            Comparison("appears without the trigger", None, told.identity_without_trigger, note=note)
        )
    return cards


def _compare(
    before: Mapping[str, float], after: Mapping[str, float], values: Mapping[str, str] | None = None
) -> list[Comparison]:
    names = dict.fromkeys([*before, *after])
    return [
        Comparison(name.replace("_", " "), before.get(name), after.get(name), (values or {}).get(name, ""))
        for name in names
    ]


def _pairs(paths: RunPaths, scores: Evaluation) -> list[Pair]:
    """One pair a prompt, of its first seed: chosen before anyone has seen the pictures."""
    folder = paths.evaluation_pictures()
    pairs: dict[str, Pair] = {}
    for before, after in zip(scores.before.pictures, scores.after.pictures, strict=True):
        if after.prompt not in pairs:
            pairs[after.prompt] = Pair(
                before=data_uri(folder / before.file),
                after=data_uri(folder / after.file),
                words=scores.words_of(after),
                seed=after.seed,
                right=after.traits_right,
                seen=after.traits_seen,
            )
    return list(pairs.values())


def _tried(paths: RunPaths, candidate: Candidate) -> Figure:
    """A checkpoint at a strength with the first picture it made, which is the same shot and seed for all."""
    name = f"step-{candidate.step:05d}-at-{candidate.strength:g}"
    files = sorted((paths.evaluation_pictures("choice") / name).glob("*.png"))
    shares = f"identity {_share(candidate.identity)} · adherence {_share(candidate.adherence)}"
    detail = f"{shares} · copies of training pictures {_share(candidate.memorised)}"
    caption = f"step {candidate.step} at {candidate.strength:g}: score {candidate.score:.2f}"
    return Figure(data_uri(files[0]) if files else "", caption, detail)


def _shown_round(paths: RunPaths, done: Round) -> ShownRound:
    """A round with the pictures it kept, and what came of them."""
    folder = paths.round(done.number).images
    completed = f"added to the description: {', '.join(done.completed)}" if done.completed else ""
    outcome = "; ".join(filter(None, (completed, "a short LoRA was trained on them" if done.lora else "")))
    text = f"Round {done.number}: mean distance {done.distance:.2f}, of those kept {1 - done.cohesion:.2f}"
    return ShownRound(
        f"{text}; {outcome or 'nothing was left open'}.", [data_uri(folder / name) for name in done.kept]
    )


def _captioned(paths: RunPaths, caption: Caption) -> Figure:
    """A training picture with its caption. The name of a person's own file is nobody else's business."""
    path = paths.images / caption.file
    detail = caption.file if has_planned_name(path, paths) else "own picture"
    if caption.source == "edited":
        detail += " · caption written by hand"
    return Figure(data_uri(path), caption.text, detail)


def _rejected(paths: RunPaths, verdict: Verdict) -> Figure:
    reasons = "; ".join(reason.text for reason in verdict.reasons)
    return Figure(data_uri(paths.root / verdict.file), reasons, f"{verdict.file} · seed {verdict.seed}")


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML, so that it can be copied into a file and used again."""
    top, sections = [], []
    for name in type(recipe).model_fields:
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            lines = [f"{key} = {_toml(part)}" for key, part in value.model_dump(mode="json").items()]
            sections.append("\n".join([f"[{name}]", *lines]))
        else:
            top.append(f"{name} = {_toml(value)}")
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def _toml(value: object) -> str:
    """A TOML value; strings, numbers and lists of JSON are the same there, but for one control character."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
