"""What is told to people when a run is over: a sentence, what was measured, and the picture that shows it."""

from __future__ import annotations

from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.news import News
from lora_foundry.domain.publication import Publication
from lora_foundry.files.images import is_readable
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model

_MOST_ERROR = 1000


def of_finish(character: str, paths: RunPaths) -> News:
    """A run that came to its end, with its scores; a LoRA that was too bad to be installed is no success."""
    scores = read_model(paths.evaluation_result, Evaluation)
    published = read_model(paths.publication, Publication)
    good = published is None or published.published
    title = f"{character}: the LoRA is ready" if good else f"{character}: the LoRA was not published"
    lines = (
        []
        if published is None
        else [f"Installed as {published.lora}" if published.lora else published.verdict]
    )
    if scores is not None:
        told, meaning = scores.scores, scores.assessment
        lines += [f"{meaning.level.capitalize()}: {meaning.reason}."]
        lines += _change(told.measure.capitalize(), told.identity_before, told.identity_after)
        lines += _change("Adherence", told.adherence_before, told.adherence_after)
        if told.identity_without_trigger is not None:
            lines += [f"Appears without the trigger: {told.identity_without_trigger:.2f} (lower is better)"]
        lines += [f"Next: {meaning.next_step}."] if meaning.next_step else []
    picture = next((path for path in (paths.before_after, paths.preview) if path.is_file()), None)
    return News(
        title=title, text="\n".join(lines) or "All stages are done.", picture=picture, failed=not good
    )


def of_failure(character: str, stage: str, error: str, paths: RunPaths) -> News:
    """A run that stopped, with the newest picture of its set."""
    found = [path for path in paths.images.glob("*") if is_readable(path) and path.is_file()]
    pictures = sorted(found, key=lambda path: path.stat().st_mtime)
    return News(
        title=f"{character}: {stage} failed",
        text=error[:_MOST_ERROR] or "No reason was given; the task's log says more.",
        picture=pictures[-1] if pictures else None,
        failed=True,
    )


def _change(name: str, before: float | None, after: float | None) -> list[str]:
    return (
        [] if after is None else [f"{name} {after:.2f}" + ("" if before is None else f" (was {before:.2f})")]
    )
