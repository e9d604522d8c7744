"""Turns the engine's pipelines and rows into what the API says about them."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite
from typing import Any
from urllib.parse import quote

from lora_foundry.domain.task import WAITING, Task, TaskPriority, TaskStatus
from lora_foundry.pipeline import PIPELINE
from lora_foundry.tasks.arranging import is_paused
from lora_foundry.tasks.pipelines import Pipeline, StageState
from lora_foundry.web.estimates import Estimates, is_own, seconds_of, share_of, utc_now
from lora_foundry.web.models import CharacterView, PipelineView, StageView, TaskDetail, TaskView

_LANES = {stage.name: stage.lane for stage in PIPELINE}
_UNFINISHED = (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.RETRYING)


def pipeline_view(pipeline: Pipeline, estimates: Estimates, thumbnail: str | None) -> PipelineView:
    """A pipeline with what follows from its rows."""
    now = utc_now()
    stages = [_stage_view(stage, pipeline, estimates, now) for stage in pipeline.stages]
    current = next((stage for stage in stages if stage.status != TaskStatus.COMPLETED), None)
    waiting = [stage for stage in pipeline.stages if stage.status in WAITING]
    times = [each for stage in pipeline.stages for each in (stage.started_at, stage.completed_at) if each]
    return PipelineView(
        id=pipeline.id,
        character=CharacterView(name=pipeline.character, description=pipeline.description),
        members=list(pipeline.members),
        recipe=pipeline.recipe,
        settings=pipeline.settings,
        output_name=pipeline.output_name,
        status=pipeline.status,
        stage=current.stage if current else None,
        stages=stages,
        progress=round(sum(share_of(stage) for stage in pipeline.stages) / max(1, len(stages)), 4),
        eta_seconds=_left(pipeline, stages),
        error=next((stage.error for stage in stages if stage.status == TaskStatus.FAILED), None),
        thumbnail=thumbnail,
        priority=min((stage.priority for stage in waiting), default=TaskPriority.NORMAL),
        paused=any(is_paused(stage.scheduled_for) for stage in waiting),
        created_at=aware(pipeline.created_at),
        updated_at=aware(max(times, default=pipeline.created_at)),
    )


def _left(pipeline: Pipeline, stages: list[StageView]) -> float | None:
    """The sum over all stages that are not over; None if the running one cannot be told."""
    if pipeline.status not in _UNFINISHED:
        return None
    left = [stage.eta_seconds for stage in stages if stage.status != TaskStatus.COMPLETED]
    known = [each for each in left if each is not None]
    return round(sum(known), 1) if known and len(known) == len(left) else None


def _stage_view(stage: StageState, pipeline: Pipeline, estimates: Estimates, now: datetime) -> StageView:
    progress = stage.progress or {}
    taken = seconds_of(stage, now if stage.status == TaskStatus.RUNNING else None)
    left = estimates.left(pipeline, stage, now) if stage.status in _UNFINISHED else None
    return StageView(
        stage=stage.stage,
        label="import" if stage.stage == "generate" and is_own(pipeline) else stage.stage,
        task_id=stage.task_id,
        lane=_LANES.get(stage.stage),
        status=stage.status,
        done=_number(progress.get("done")),
        total=_number(progress.get("total")),
        unit=str(progress.get("unit", "")),
        message=str(progress.get("message", "")),
        loss=loss if isinstance(loss := progress.get("loss"), float) and isfinite(loss) else None,
        seconds=None if taken is None else round(taken, 1),
        eta_seconds=None if left is None else round(left, 1),
        error=stage.error,
        retries=stage.retries,
        resumes=stage.resumes,
        worker=stage.worker,
        started_at=aware(stage.started_at),
        completed_at=aware(stage.completed_at),
    )


def task_view(task: Task) -> TaskView:
    return TaskView.model_validate(_columns(task))


def task_detail(task: Task) -> TaskDetail:
    return TaskDetail.model_validate(_columns(task))


def _columns(task: Task) -> dict[str, Any]:
    return {
        name: aware(value) if isinstance(value, datetime) else value for name, value in vars(task).items()
    }


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def aware(moment: datetime | None) -> datetime | None:
    """The table's naive UTC as a time with its zone."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def address(pipeline: str, *parts: str) -> str:
    """The API's address of something of a pipeline."""
    return "/".join(["/api/v1/pipelines", *(quote(part, safe="") for part in (pipeline, *parts))])
