"""What came of a run: loss, samples, scores, the report and the LoRA; and every LoRA that was installed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from lora_foundry.domain.evaluation import Candidate, Evaluation, Scores
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import Run
from lora_foundry.files.paths import TRAINING_LOSS, RunPaths
from lora_foundry.files.storage import read_model, write_text
from lora_foundry.stages._shared.loss_curve import read_losses
from lora_foundry.stages.evaluate.choosing import candidate_name
from lora_foundry.tasks.pipelines import Pipeline
from lora_foundry.web import answers
from lora_foundry.web.dataset import picture_files
from lora_foundry.web.loras import InstalledLora, installed_loras
from lora_foundry.web.problems import ConflictError
from lora_foundry.web.routes import Page
from lora_foundry.web.routes.dataset import PICTURE, Size
from lora_foundry.web.safe_files import safe_file
from lora_foundry.web.site import Here, Site
from lora_foundry.web.trials import lora_file
from lora_foundry.web.views import address

router = APIRouter(prefix="/api/v1", tags=["results"])
PAGES = (Page("/pipelines/{pipeline}/results", "results", below="pipelines"),)
# The report is a page of its own that loads nothing; in the sandbox it could not do anything with our origin either.
REPORT_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
)
_STEP = re.compile(r"(\d+)")


class Loss(BaseModel):
    """[step, loss] of every step after `after`; `next` is what to ask for then."""

    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    next: int


class Sample(BaseModel):
    """A picture made while training went on."""

    file: str
    step: int
    url: str
    thumbnail: str


class Samples(BaseModel):
    """`asked`: some were asked for, and come after the next steps; `refusal`: why none can be asked for now, "" where they
    can."""

    samples: list[Sample]
    asked: bool = False
    refusal: str = ""


class Training(BaseModel):
    steps: int
    final_loss: float
    seconds: float
    parameters: int
    sha256: str


class CandidateView(Candidate):
    """A checkpoint at a strength, as it was measured, with the address of its first picture."""

    chosen: bool
    picture: str | None


class PairView(BaseModel):
    """The same prompt and seed without and with the LoRA: addresses, and how many of the traits seen were right."""

    before: str
    after: str
    words: str
    prompt: str
    seed: int
    right: int
    seen: int


class Results(BaseModel):
    """Whatever is not there yet is None or empty."""

    evaluation: Evaluation | None
    scores: Scores | None
    training: Training | None
    publication: Publication | None
    candidates: list[CandidateView]
    pairs: list[PairView]
    before_after_url: str | None
    report_url: str | None
    lora_url: str | None


@router.get("/pipelines/{pipeline}/loss")
async def loss(here: Here, pipeline: str, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> Loss:
    """The training loss so far."""
    paths = here.folder(await here.pipeline(pipeline))
    rows = await asyncio.to_thread(_losses, paths)
    return Loss(
        points=[[step, value] for step, value in rows if step > after],
        next=max((row[0] for row in rows), default=0),
    )


def _losses(paths: RunPaths) -> list[tuple[int, float]]:
    try:
        return read_losses(paths.training / TRAINING_LOSS)
    except (OSError, KeyError, TypeError, ValueError):  # the last row is being written
        return []


@router.get("/pipelines/{pipeline}/samples")
async def samples(here: Here, pipeline: str) -> Samples:
    """The pictures made while training, oldest first."""
    return await asyncio.to_thread(_samples, here, await here.pipeline(pipeline))


@router.post("/pipelines/{pipeline}/samples", status_code=202)
async def ask_for_samples(here: Here, pipeline: str) -> Samples:
    """Has the training that runs draw its sample prompts after its next steps, or without any two captions of the set. 409
    where none runs that could."""
    found = await here.pipeline(pipeline)
    if refusal := await asyncio.to_thread(_no_samples, here, found):
        raise ConflictError(refusal)
    await asyncio.to_thread(write_text, here.folder(found).sample_request, "")
    return await asyncio.to_thread(_samples, here, found)


def _samples(here: Site, pipeline: Pipeline) -> Samples:
    paths = here.folder(pipeline)
    refusal = _no_samples(here, pipeline)
    return Samples(
        samples=[_sample(pipeline.id, path) for path in picture_files(paths.samples)],
        asked=not refusal and paths.sample_request.is_file(),
        refusal=refusal,
    )


def _no_samples(here: Site, pipeline: Pipeline) -> str:
    """Why a training draws none when it is asked; "" where it does."""
    if not any(stage.stage == "train" and stage.status == "running" for stage in pipeline.stages):
        return "No training runs; while one does, it can draw what it has learned so far."
    run = read_model(here.folder(pipeline).run_file, Run)
    if run is None or run.recipe.train.backend != "inprocess":
        return "This training is done by another program, which draws when its own settings say."
    return ""


def _sample(pipeline: str, path: Path) -> Sample:
    where, version = address(pipeline, "samples", path.name), f"v={path.stat().st_mtime_ns:x}"
    number = _STEP.search(path.stem)
    small = f"{where}/thumbnail?size=256&{version}"
    return Sample(
        file=path.name, step=int(number[1]) if number else 0, url=f"{where}?{version}", thumbnail=small
    )


@router.get("/pipelines/{pipeline}/samples/{file}", response_class=Response, responses=PICTURE)
async def sample(here: Here, request: Request, pipeline: str, file: str) -> Response:
    """One of them."""
    return answers.picture_file(request, safe_file(here.folder(await here.pipeline(pipeline)).samples, file))


@router.get("/pipelines/{pipeline}/samples/{file}/thumbnail", response_class=Response, responses=PICTURE)
async def small_sample(here: Here, request: Request, pipeline: str, file: str, size: Size = 256) -> Response:
    """The same, small."""
    path = safe_file(here.folder(await here.pipeline(pipeline)).samples, file)
    return answers.thumbnail(request, await here.thumbnails.of(path, size))


@router.get("/pipelines/{pipeline}/results")
async def results(here: Here, pipeline: str) -> Results:
    """The scores without and with the LoRA, what was chosen and why, and where its pictures are."""
    found = await here.pipeline(pipeline)
    return await asyncio.to_thread(_results, here, found)


def _results(here: Site, pipeline: Pipeline) -> Results:
    paths = here.folder(pipeline)
    evaluation = read_model(paths.evaluation_result, Evaluation)
    trained = read_model(paths.training_result, TrainedLora)
    lora = trained is not None and (paths.chosen_lora.is_file() or paths.trained_lora.is_file())
    return Results(
        evaluation=evaluation,
        scores=None if evaluation is None else evaluation.scores,
        training=None if trained is None else Training.model_validate(trained.model_dump()),
        publication=read_model(paths.publication, Publication),
        candidates=[] if evaluation is None else _candidates(pipeline.id, paths, evaluation),
        pairs=[] if evaluation is None else _pairs(pipeline.id, evaluation),
        before_after_url=_evaluation_file(pipeline.id, paths.before_after),
        report_url=_versioned(address(pipeline.id, "report.html"), paths.report),
        lora_url=address(pipeline.id, "lora") if lora else None,
    )


def _pairs(pipeline: str, evaluation: Evaluation) -> list[PairView]:
    version = f"?v={evaluation.fingerprint}"
    return [
        PairView(
            before=picture_address(pipeline, before.file) + version,
            after=picture_address(pipeline, after.file) + version,
            words=evaluation.words_of(after),
            prompt=after.prompt,
            seed=after.seed,
            right=after.traits_right,
            seen=after.traits_seen,
        )
        for before, after in zip(evaluation.before.pictures, evaluation.after.pictures, strict=False)
    ]


def _candidates(pipeline: str, paths: RunPaths, evaluation: Evaluation) -> list[CandidateView]:
    chosen = (evaluation.step, evaluation.strength)
    views = []
    for each in evaluation.candidates:
        folder = candidate_name(each.step, each.strength)
        files = picture_files(paths.evaluation_pictures("choice") / folder)
        picture = picture_address(pipeline, f"choice/{folder}/{files[0].name}") if files else None
        is_chosen = (each.step, each.strength) == chosen
        views.append(CandidateView(**each.model_dump(), chosen=is_chosen, picture=picture))
    return views


def picture_address(pipeline: str, file: str) -> str:
    """The address of a picture of the evaluation."""
    return f"{address(pipeline, 'evaluation')}/{'/'.join(quote(part) for part in file.split('/'))}"


def _evaluation_file(pipeline: str, path: Path) -> str | None:
    return _versioned(address(pipeline, "evaluation", path.name), path)


def _versioned(where: str, path: Path) -> str | None:
    """The address of a file that is there, another one when it changes."""
    try:
        return f"{where}?v={path.stat().st_mtime_ns:x}"
    except OSError:
        return None


@router.get("/pipelines/{pipeline}/evaluation/{file}", response_class=Response, responses=PICTURE)
async def evaluation_file(here: Here, request: Request, pipeline: str, file: str) -> Response:
    """A picture of the evaluation folder: the before/after grid, the preview."""
    paths = here.folder(await here.pipeline(pipeline))
    return answers.picture_file(request, safe_file(paths.evaluation, file))


@router.get("/pipelines/{pipeline}/evaluation/{side}/{file}", response_class=Response, responses=PICTURE)
async def evaluation_picture(here: Here, request: Request, pipeline: str, side: str, file: str) -> Response:
    """One picture of the evaluation, without the LoRA (`before`), with it (`after`), or without trigger (`without_trigger`)."""
    paths = here.folder(await here.pipeline(pipeline))
    return answers.picture_file(request, safe_file(paths.evaluation_pictures(), side, file))


@router.get(
    "/pipelines/{pipeline}/evaluation/choice/{candidate}/{file}", response_class=Response, responses=PICTURE
)
async def candidate_picture(
    here: Here, request: Request, pipeline: str, candidate: str, file: str
) -> Response:
    """A picture by which a checkpoint was compared with the others."""
    paths = here.folder(await here.pipeline(pipeline))
    return answers.picture_file(request, safe_file(paths.evaluation_pictures("choice"), candidate, file))


@router.get(
    "/pipelines/{pipeline}/report.html",
    response_class=Response,
    responses={200: {"content": {"text/html": {}}}},
)
async def report(here: Here, pipeline: str) -> Response:
    """The run's report, shut in a sandbox."""
    paths = here.folder(await here.pipeline(pipeline))
    file = safe_file(paths.root, paths.evaluation.name, paths.report.name)
    headers = {"content-security-policy": REPORT_POLICY, "x-frame-options": "SAMEORIGIN"}
    return FileResponse(file, media_type="text/html; charset=utf-8", headers=headers)


@router.get(
    "/pipelines/{pipeline}/lora",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "A .safetensors file."}},
)
async def lora(here: Here, pipeline: str) -> Response:
    """The LoRA: the one that was installed, else the one that was chosen, else the one that was trained."""
    found = await here.pipeline(pipeline)
    paths = here.folder(found)
    file = await asyncio.to_thread(lora_file, here.settings, paths)
    installed = file.parent == here.settings.loras_dir.resolve()
    return answers.download(
        file, file.name if installed else f"{found.output_name or paths.slug}.safetensors"
    )


@router.get("/loras")
async def loras(here: Here) -> list[InstalledLora]:
    """Every LoRA in the LoRA folder that was made here, the newest first."""
    return await asyncio.to_thread(installed_loras, here.settings.loras_dir)


@router.get("/loras/{name}/preview", response_class=Response, responses=PICTURE)
async def preview(here: Here, request: Request, name: str) -> Response:
    """The picture beside an installed LoRA."""
    return answers.picture_file(request, safe_file(here.settings.loras_dir, f"{name}.preview.png"))
