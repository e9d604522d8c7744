"""What the API says about pipelines and tasks; the shapes of the other subjects stand beside their routes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lora_foundry.domain.cast import MOST
from lora_foundry.domain.task import TaskStatus
from lora_foundry.pipeline import StageName

SettingText = Annotated[str, Field(max_length=2000, examples=["train.rank=8"])]


class RequestModel(BaseModel):
    """Base of what clients send: a misspelt key is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class PlanRequest(RequestModel):
    """A character, a recipe and changes to it."""

    name: str = Field(max_length=200, description="Becomes the dataset folder.", examples=["Elara"])
    description: str = Field(
        default="",
        max_length=4000,
        examples=["1girl, brown hair, red dress"],
        description="Own pictures need none.",
    )
    tags: list[Annotated[str, Field(max_length=200)]] = Field(
        default=[], max_length=100, description="Identity tags for captions; else the description's parts."
    )
    recipe: str | None = Field(
        default=None, max_length=200, description="A shipped recipe, or one in <home>/recipes."
    )
    settings: list[SettingText] = Field(
        default=[], max_length=200, description='Changes to the recipe, each "section.key=value".'
    )
    seed: int | None = Field(default=None, ge=0, lt=2**32)


class MemberIn(RequestModel):
    """A character of a cast: with words, one picture of it, or own pictures."""

    name: str = Field(max_length=200, examples=["Elara"])
    description: str = Field(default="", max_length=4000, description="Own pictures need none.")
    tags: list[Annotated[str, Field(max_length=200)]] = Field(default=[], max_length=100)
    trigger: str = Field(
        default="", max_length=200, description="The word that calls it; else the name. No part of another's."
    )
    upload: str | None = Field(
        default=None, max_length=64, description="Own pictures, as `POST /uploads` named them."
    )
    reference: str | None = Field(
        default=None, max_length=80, description="A picture of it, as `POST /references` named it."
    )
    pictures: list[Annotated[str, Field(max_length=80)]] = Field(
        default=[], max_length=1000, description="Own pictures, as `POST /references` named them."
    )


class PipelineIn(PlanRequest):
    """A pipeline to be started: for one character, or with `members` for several that one LoRA draws. `name` is then the
    LoRA's, and what else is told of a character stands with each member."""

    trigger: str = Field(
        default="",
        max_length=200,
        description="The word that makes prompts draw the character; else the name.",
    )
    output_name: str | None = Field(default=None, max_length=200, description="The LoRA's file name.")
    upload: str | None = Field(
        default=None,
        max_length=64,
        description="Own pictures, as `POST /uploads` named them; nothing is drawn then.",
    )
    reference: str | None = Field(
        default=None, max_length=80, description="A picture of the character, as `POST /references` named it."
    )
    more_references: list[Annotated[str, Field(max_length=80)]] = Field(
        default=[], max_length=2, description="Further ones, for a workflow that takes several."
    )
    pictures: list[Annotated[str, Field(max_length=80)]] = Field(
        default=[],
        max_length=1000,
        description="Own pictures, as `POST /references` named them: these alone are trained on, unless the settings say "
        "another `dataset.source`.",
    )
    members: list[MemberIn] = Field(
        default=[], max_length=MOST, description="Two to six characters; empty for one character."
    )


class RetryIn(RequestModel):
    """What is to be different this time; nothing means the same again."""

    settings: list[SettingText] = Field(default=[], max_length=200)
    from_stage: StageName | None = Field(
        default=None, description="Start here although it is completed; else with the first that is not."
    )


class ArrangeIn(RequestModel):
    """The order of what waits: a priority from 1 (urgent) to 4, or whether it waits until it is resumed."""

    priority: int | None = Field(default=None, ge=1, le=4)
    paused: bool | None = None


class PublishIn(RequestModel):
    """Which checkpoint at which strength, as `results` lists them; without a step what measurement chose."""

    step: int | None = Field(default=None, ge=1, le=2**31)
    strength: float | None = Field(default=None, gt=0, le=2)


class StageView(BaseModel):
    """A stage of a pipeline; `label`: what it does, in a word for people. `done` of `total` counts `unit`s; times are UTC;
    `eta_seconds` counts from now."""

    stage: str
    label: str
    task_id: int
    lane: Literal["cpu", "gpu"] | None
    status: str
    done: int = 0
    total: int = 0
    unit: str = ""
    message: str = ""
    loss: float | None = None
    seconds: float | None = None
    eta_seconds: float | None = None
    error: str | None = None
    retries: int = 0
    resumes: int = 0
    worker: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None


class CharacterView(BaseModel):
    name: str
    description: str


class PipelineView(BaseModel):
    """A pipeline. `stage` is the one that runs, or would be next; `progress` is the share of stages done, 0 to 1.

    eta_seconds: what the running stage and, where earlier pipelines of the same recipe tell, the later ones will
    take; None where nothing can be said. thumbnail: the address of the newest picture.
    members: the names of a cast's characters, empty for one character.
    """

    id: str
    character: CharacterView
    members: list[str] = []
    recipe: str | None
    settings: dict[str, Any] = Field(description="Changes to the recipe, nested.")
    output_name: str | None
    status: TaskStatus
    stage: str | None
    stages: list[StageView]
    progress: float
    eta_seconds: float | None
    error: str | None
    thumbnail: str | None
    priority: int = Field(default=3, description="1 (urgent) to 5, of what waits.")
    paused: bool = False
    created_at: datetime | None
    updated_at: datetime | None


class PipelineDetail(PipelineView):
    """One pipeline, with what only its own page shows."""

    trigger: str
    tags: list[str]
    dataset_dir: str
    has_results: bool
    published: bool
    waits_for: str | None = Field(
        default=None, description="Why the next stage does not run yet and what to do, where it waits."
    )
    cautions: list[str] = Field(
        default=[], description="What its maker should know and is no reason to refuse it."
    )


class PipelinePage(BaseModel):
    """Newest first. `next_cursor` is for the next page; None on the last."""

    pipelines: list[PipelineView]
    total: int
    next_cursor: str | None


class TaskView(BaseModel):
    """A row of the task table."""

    id: int
    uuid: str
    name: str
    task_type: str
    status: str
    priority: int
    pipeline: str | None
    worker: str | None
    retries: int
    max_retries: int
    resumes: int
    timeout: int
    error: str | None
    progress: Any
    created_at: datetime | None
    updated_at: datetime | None
    scheduled_for: datetime | None
    started_at: datetime | None
    completed_at: datetime | None


class TaskDetail(TaskView):
    """A row with what it holds."""

    payload: Any
    result: Any
    dependencies: Any
    creator: str | None


class TaskPage(BaseModel):
    tasks: list[TaskView]
    counts: dict[str, int]


class LogPart(BaseModel):
    """A task's log from byte `start` on; ask again with `after=next` for what comes then."""

    text: str
    start: int
    next: int
    size: int
