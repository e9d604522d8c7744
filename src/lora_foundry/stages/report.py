"""report.html: one file that opens anywhere and shows everything about a run. Pictures are inside it, and every word
that came from a user is escaped."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from lora_foundry.domain.curation import CurationResult, Verdict
from lora_foundry.domain.dataset import GenerationMetadata, TaggingResults
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import Run
from lora_foundry.paths import TRAINING_LOSS, RunPaths
from lora_foundry.storage import read_model, write_text

_THUMB = 160
_CHART_WIDTH, _CHART_HEIGHT, _CHART_POINTS = 640, 160, 200


class Figure(NamedTuple):
    """A picture as a data URI, a caption, and what else there is to say about it."""

    source: str
    caption: str
    detail: str = ""


class Comparison(NamedTuple):
    """A measured attribute on both sides; `change` decides the colour."""

    name: str
    before: float | None
    after: float | None


def write_report(run: Run, paths: RunPaths, scores: Evaluation) -> None:
    """Renders the report from what the stages left in the run's folder."""
    tagging = read_model(paths.tagging_results, TaggingResults)
    curation = read_model(paths.curation, CurationResult)
    generation = read_model(paths.generation_metadata, GenerationMetadata)
    training = read_model(paths.training_result, TrainedLora)
    text = _template().render(
        run=run,
        scores=scores,
        training=training,
        headline=[
            Comparison("identity", scores.before.identity, scores.after.identity),
            Comparison("adherence", scores.before.adherence, scores.after.adherence),
            Comparison("similarity to the set", scores.before.similarity, scores.after.similarity),
        ],
        traits=_compare(scores.before.identity_by_trait, scores.after.identity_by_trait),
        attributes=_compare(scores.before.adherence_by_attribute, scores.after.adherence_by_attribute),
        grid=_data_uri(paths.before_after.read_bytes()),
        chart=loss_chart(read_losses(paths.training / TRAINING_LOSS)),
        dataset=[
            Figure(_thumbnail(paths.images / each.file), each.text, each.file) for each in (tagging.captions if tagging else ())
        ],
        rejected=[_rejected(paths, verdict) for verdict in (curation.rejected if curation else ())],
        times={
            "pictures": generation.seconds if generation else 0.0,
            "curation": curation.seconds if curation else 0.0,
            "training": training.seconds if training else 0.0,
            "evaluation": scores.seconds,
        },
        recipe=json.dumps(run.recipe.model_dump(mode="json"), indent=2, ensure_ascii=False),
    )
    write_text(paths.report, text)


@cache
def _template() -> Template:
    source = resources.files("lora_foundry.stages").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["share"] = _share
    return environment.from_string(source)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _compare(before: dict[str, float], after: dict[str, float]) -> list[Comparison]:
    names = dict.fromkeys([*before, *after])
    return [Comparison(name.replace("_", " "), before.get(name), after.get(name)) for name in names]


def _rejected(paths: RunPaths, verdict: Verdict) -> Figure:
    reasons = "; ".join(reason.text for reason in verdict.reasons)
    return Figure(_thumbnail(paths.root / verdict.file), reasons, verdict.file)


def _data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _thumbnail(path: Path) -> str:
    """A small copy of a picture; empty where it cannot be read."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:
        return ""
    if max(image.size) > _THUMB:
        image.thumbnail((_THUMB, _THUMB))
        kind = "jpeg"
    else:
        kind = "png"
    data = io.BytesIO()
    image.save(data, format=kind)
    return _data_uri(data.getvalue(), kind)


def read_losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every row of loss.csv; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def loss_chart(losses: Sequence[tuple[int, float]]) -> str:
    """The `points` of an SVG polyline of the smoothed loss; empty for fewer than two steps."""
    if len(losses) < 2:
        return ""
    group = -(-len(losses) // _CHART_POINTS)
    groups = [losses[start : start + group] for start in range(0, len(losses), group)]
    points = [(chunk[-1][0], sum(loss for _, loss in chunk) / len(chunk)) for chunk in groups]
    last, low = points[-1][0], min(loss for _, loss in points)
    span = max(max(loss for _, loss in points) - low, 1e-9)
    return " ".join(
        f"{step / last * _CHART_WIDTH:.1f},{(1 - (loss - low) / span) * (_CHART_HEIGHT - 10) + 5:.1f}"
        for step, loss in points
    )
