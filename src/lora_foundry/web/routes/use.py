"""Using what a run has made: how to draw with the LoRA, prompts tried with it here, and the set as a file."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.run import Run
from lora_foundry.domain.trial import SIDES, Rival, Trial, called, rival_side
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.set_archive import write_archive
from lora_foundry.files.storage import read_model
from lora_foundry.tasks.pipelines import Pipeline
from lora_foundry.web import answers
from lora_foundry.web.busy import refuse_while_busy
from lora_foundry.web.models import RequestModel
from lora_foundry.web.problems import BUSY, NotFoundError
from lora_foundry.web.routes import Page
from lora_foundry.web.routes.dataset import PICTURE
from lora_foundry.web.safe_files import safe_file
from lora_foundry.web.site import Here, Site
from lora_foundry.web.trials import lora_file, new_trial
from lora_foundry.web.views import address

router = APIRouter(prefix="/api/v1/pipelines/{pipeline}", tags=["use"])
PAGES = (Page("/pipelines/{pipeline}/use", "use", below="pipelines"),)
EXAMPLE = "standing, smile, in a forest"


class Drawn(BaseModel):
    """A character that the LoRA draws, and what calls it: its trigger word, a prompt and a program to begin with."""

    name: str
    trigger: str
    prompt: str
    diffusers: str


class Use(BaseModel):
    """How to draw with the LoRA. `strength` is the one at which it was measured; `a1111` goes into a prompt there;
    `folder` is where it was installed, None where it was not. `trigger`: of all characters, in one line; `prompt` and
    `diffusers` call the first of `characters`."""

    trigger: str
    strength: float
    file: str
    folder: str | None
    prompt: str
    negative: str
    a1111: str
    diffusers: str
    characters: list[Drawn]
    lora_url: str
    set_url: str


class TrialIn(RequestModel):
    """A prompt to be tried. Without seeds, new ones are taken."""

    prompt: str = Field(min_length=1, max_length=2000, examples=["elara, standing, smile, in a forest"])
    negative: str | None = Field(default=None, max_length=2000, description="Else the recipe's own.")
    strength: float | None = Field(default=None, ge=-4, le=4, description="Else the recommended one.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=[], max_length=8)
    pictures: int = Field(default=2, ge=1, le=8, description="How many, where no seeds are given.")
    against: list[Annotated[str, Field(max_length=80)]] = Field(
        default=[],
        max_length=3,
        description="Runs whose LoRAs draw the same, each under its own trigger word.",
    )


class TrialPair(BaseModel):
    """A seed's pictures; None until they are drawn."""

    seed: int
    before: str | None
    after: str | None
    others: list[str | None] = Field(default=[], description="Of the rivals, in their order.")


class TrialView(Trial):
    pairs: list[TrialPair]


@router.get("/use")
async def use(here: Here, pipeline: str) -> Use:
    """Everything that one needs to draw with it elsewhere."""
    found = await here.pipeline(pipeline)
    paths = here.folder(found)
    file = await asyncio.to_thread(lora_file, here.settings, paths)
    run, strength = await asyncio.to_thread(_made_as, paths)
    installed = file.parent == here.settings.loras_dir.resolve()
    name = Path(file.name if installed else f"{found.output_name or paths.slug}.safetensors")
    drawn = [_drawn(each, name) for each in run.member_runs]
    return Use(
        trigger=run.trigger,
        strength=strength,
        file=name.name,
        folder=str(file.parent) if installed else None,
        prompt=drawn[0].prompt,
        negative=run.recipe.generate.negative,
        a1111=f"<lora:{name.stem}:{strength:g}>",
        diffusers=drawn[0].diffusers,
        characters=drawn,
        lora_url=address(found.id, "lora"),
        set_url=address(found.id, "set.zip"),
    )


def _drawn(run: Run, file: Path) -> Drawn:
    character = run.character
    prompt = f"{character.trigger}, {EXAMPLE}"
    code = (
        "from diffusers import DiffusionPipeline",
        'pipeline = DiffusionPipeline.from_pretrained("path/to/the/base")',
        f"pipeline.load_lora_weights({file.name!r})",
        f"pipeline({prompt!r}).images[0].save('picture.png')",
    )
    return Drawn(name=character.name, trigger=character.trigger, prompt=prompt, diffusers="\n".join(code))


def _made_as(paths: RunPaths) -> tuple[Run, float]:
    """The run, and the strength to use its LoRA at. Raises NotFoundError."""
    run = read_model(paths.run_file, Run)
    if run is None:
        raise NotFoundError("This run has not begun yet; there is no LoRA to use.")
    scores = read_model(paths.evaluation_result, Evaluation)
    return run, run.recipe.evaluate.strength if scores is None else scores.strength


@router.post("/trials", status_code=202, responses=BUSY)
async def try_prompt(here: Here, pipeline: str, asked: TrialIn) -> TrialView:
    """Begins to draw a prompt without and with the LoRA, on this machine, and returns at once; ask for the trials until it
    is completed or failed. 503 while another one is drawn, or a worker draws or trains."""
    found = await here.pipeline(pipeline)
    paths = here.folder(found)
    run, strength = await asyncio.to_thread(_made_as, paths)
    rivals = [await _rival(here, each) for each in dict.fromkeys(asked.against) if each != found.id]
    trial = new_trial(
        asked.prompt,
        run.recipe.generate.negative if asked.negative is None else asked.negative,
        strength if asked.strength is None else asked.strength,
        tuple(asked.seeds) or tuple(secrets.randbits(32) for _ in range(asked.pictures)),
        tuple(rival for rival, _ in rivals),
        called(asked.prompt, run.triggers),
    )
    files = tuple(file for _, file in rivals)
    async with here.drawing:
        await refuse_while_busy(here)
        return _shown(found, paths, here.trials.start(here.settings, run, paths, trial, files))


async def _rival(here: Site, reference: str) -> tuple[Rival, Path]:
    """Another run's LoRA at the strength at which it was measured. Raises NotFoundError."""
    found = await here.pipeline(reference)
    paths = here.folder(found)
    file = await asyncio.to_thread(lora_file, here.settings, paths)
    run, strength = await asyncio.to_thread(_made_as, paths)
    name = found.character if found.version is None else f"{found.character}, version {found.version}"
    rival = Rival(pipeline=found.id, name=name, trigger=run.triggers[0], strength=strength)
    return rival, file


@router.get("/trials")
async def trials(here: Here, pipeline: str) -> list[TrialView]:
    """What was tried with this run's LoRA, the newest first; the last twenty are kept."""
    found = await here.pipeline(pipeline)
    paths = here.folder(found)
    return [_shown(found, paths, each) for each in await asyncio.to_thread(here.trials.shown, paths)]


@router.get("/trials/{trial}/{file}", response_class=Response, responses=PICTURE)
async def trial_picture(here: Here, request: Request, pipeline: str, trial: str, file: str) -> Response:
    """A picture of a trial: before_1.png, after_1.png, ..."""
    paths = here.folder(await here.pipeline(pipeline))
    return answers.picture_file(request, safe_file(paths.trials, trial, file))


@router.get(
    "/set.zip",
    response_class=Response,
    responses={200: {"content": {"application/zip": {}}, "description": "A zip file."}},
)
async def set_archive(here: Here, pipeline: str) -> Response:
    """The training set with its captions and masks, laid out as sd-scripts and the trainers beside it read it."""
    paths = here.folder(await here.pipeline(pipeline))
    run, _ = await asyncio.to_thread(_made_as, paths)
    file = await asyncio.to_thread(_archive, here, paths, run)
    return FileResponse(
        file,
        media_type="application/zip",
        filename=f"{paths.slug}_set.zip",
        background=BackgroundTask(file.unlink, missing_ok=True),
    )


def _archive(here: Site, paths: RunPaths, run: Run) -> Path:
    handle, name = tempfile.mkstemp(suffix=".zip", dir=here.settings.home.expanduser())
    os.close(handle)
    file = Path(name)
    try:
        runs = run.model_copy(update={"dataset_dir": paths.root}).member_runs
        sets = [(RunPaths(each.dataset_dir, each.character.slug), each.character.trigger) for each in runs]
        write_archive(file, sets)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return file


def _shown(pipeline: Pipeline, paths: RunPaths, trial: Trial) -> TrialView:
    folder, where = paths.trial(trial.id), f"{address(pipeline.id, 'trials')}/{quote(trial.id)}"
    pairs = []
    for number, seed in enumerate(trial.seeds):
        sides = (*SIDES, *(rival_side(place) for place in range(len(trial.rivals))))
        files = {side: folder.picture(side, number) for side in sides}
        urls = {side: f"{where}/{file.name}?v=1" if file.is_file() else None for side, file in files.items()}
        before, after, *others = (urls[side] for side in sides)
        pairs.append(TrialPair(seed=seed, before=before, after=after, others=others))
    return TrialView(**trial.model_dump(), pairs=pairs)
