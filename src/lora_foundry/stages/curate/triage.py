"""The report on a person's own pictures before anything is trained on them: what was found, of which picture, and what
to do about it. Two files: triage.json for programs, triage.html for people, with the pictures in question side by
side. Nothing is thrown out here; a picture that cannot be read is left out by the set itself, with this reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from statistics import median
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from lora_foundry.domain.captions import says
from lora_foundry.domain.curation import Reason, Verdict
from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.triage import Finding, FindingCode, Triage, TriagedPicture
from lora_foundry.errors import InputError
from lora_foundry.files.images import picture_size
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import read_caption
from lora_foundry.files.storage import read_model, remove_file, write_model, write_text
from lora_foundry.files.training_set import SetPicture, list_set
from lora_foundry.ports import ProgressCallback
from lora_foundry.stages._shared.thumbnails import data_uri

_SHOWN = 5  # names in a message
_MOST_PICTURED = 300  # findings shown with their pictures
_FEW = 8  # with fewer pictures nobody can say which of them is blurred beside the others
_MUCH_LESS_SHARP = 0.1

_SAID: dict[FindingCode, str] = {
    "unreadable": "cannot be read and are left out",
    "too_small": "are small for this recipe",
    "blurred": "are blurred",
    "blank": "show nothing",
    "near_duplicate": "are nearly the same as another",
    "several_people": "show more than one face",
    "no_person": "show no face",
    "other_person": "may show somebody else",
    "caption_missing": "have no caption and get one",
    "caption_empty": "have an empty caption",
    "caption_foreign": "have a caption that cannot be read",
    "trigger_missing": "have a caption without the trigger word",
    "trigger_changed": "have a caption with an earlier trigger word",
}


def triage(run: Run, paths: RunPaths, verdicts: Sequence[Verdict], progress: ProgressCallback) -> Triage:
    """Writes the report from what was measured (`verdicts`) and from the captions as they stand now, and says the main
    things in messages. Without own pictures there is none."""
    listed = list_set(paths)
    known = {verdict.file: verdict for verdict in verdicts}
    sharp = [each.measures.sharpness for each in verdicts if each.measures.sharpness is not None]
    usual = median(sharp) if len(sharp) >= _FEW else 0.0
    former = _former_triggers(paths, run.character.trigger)
    pictures = []
    for picture in listed.own:
        verdict = known.get(picture.path.relative_to(paths.root).as_posix())
        if verdict is not None:
            findings = [*_seen(verdict, usual), *_caption(picture, run, former)]
            pictures.append(_triaged(picture, run, findings))
    result = Triage(
        pictures=tuple(pictures), left_out=tuple((each.name, each.reason) for each in listed.left_out)
    )
    if not result.pictures and not result.left_out:
        for path in (paths.triage, paths.triage_report):
            remove_file(path)
        return result
    if read_model(paths.triage, Triage) != result:
        write_model(paths.triage, result)
        write_text(paths.triage_report, _template().render(run=run, triage=result, rows=_rows(paths, result)))
    for message in messages(result, run):
        progress(
            ProgressEvent(
                stage="curate", done=len(verdicts), total=len(verdicts), unit="image", message=message
            )
        )
    return result


def messages(result: Triage, run: Run) -> Iterator[str]:
    """What was found, a sentence for each kind, with the first names."""
    for name, reason in result.left_out[:_SHOWN]:
        yield f"left out: {name}: {reason}"
    if (more := len(result.left_out) - _SHOWN) > 0:
        yield f"left out: {more} more files, listed in triage.html"
    for code, count in result.counts().items():
        if code == "caption_missing":
            continue  # every set without captions would be told of all its pictures
        named = [each.name for each in result.pictures if any(one.code == code for one in each.findings)]
        names = ", ".join(named[:_SHOWN]) + (" and more" if count > _SHOWN else "")
        yield f"{_counted(count, code, 'own ')} ({names}){_consequence(code, run)}"


def _counted(count: int, code: FindingCode, whose: str = "") -> str:
    """How many pictures have a finding, as a sentence."""
    if count != 1:
        return f"{count} {whose}pictures {_SAID[code]}"
    singular = {"are": "is", "have": "has", "get": "gets", "show": "shows"}
    verbs = [part.partition(" ") for part in _SAID[code].split(" and ")]
    words = " and ".join(f"{singular.get(verb, verb)} {rest}" for verb, _, rest in verbs)
    return f"1 {whose}picture {words}"


def _consequence(code: FindingCode, run: Run) -> str:
    if code in {"trigger_missing", "trigger_changed"}:
        if run.recipe.caption.kept == "with_trigger":
            return (
                f"; they are trained with the trigger {run.character.trigger!r}, their files stay as they are"
            )
        return f'; the trigger {run.character.trigger!r} will not call them, unless caption.kept = "with_trigger"'
    return ""


def _former_triggers(paths: RunPaths, trigger: str) -> tuple[str, ...]:
    earlier = read_model(paths.tagging_results, TaggingResults)
    known = () if earlier is None else (*earlier.former, earlier.trigger)
    return tuple(word for word in dict.fromkeys(known) if word != trigger)


def _triaged(picture: SetPicture, run: Run, findings: list[Finding]) -> TriagedPicture:
    stat = picture.path.stat()
    if any(each.code == "unreadable" for each in findings):
        return TriagedPicture(
            name=picture.name, size=stat.st_size, changed=stat.st_mtime_ns, findings=(*findings,)
        )
    width, height = picture_size(picture.path)
    least = run.recipe.dataset.min_side or run.recipe.train.resolution // 2
    if min(width, height) < least:
        text = f"{width}x{height} pixels; each side needs {least} or more"
        findings.append(Finding(code="too_small", text=text, action="bring a larger copy, or exclude it"))
    return TriagedPicture(
        name=picture.name,
        size=stat.st_size,
        changed=stat.st_mtime_ns,
        width=width,
        height=height,
        findings=tuple(findings),
    )


def _seen(verdict: Verdict, usual: float) -> Iterator[Finding]:
    """What the measures say of the picture."""
    codes = set()
    for reason in verdict.reasons:
        if reason.code == "blurred" and usual:
            continue  # the recipe's threshold is for what it draws itself; own pictures are compared with one another
        if (finding := _finding(reason, verdict)) is not None:
            codes.add(finding.code)
            yield finding
    sharpness = verdict.measures.sharpness
    if sharpness is not None and not codes & {"blurred", "blank"} and sharpness < usual * _MUCH_LESS_SHARP:
        text = f"much less sharp ({sharpness:g}) than the set's pictures usually are ({usual:g})"
        yield Finding(
            code="blurred", text=text, action="look at it, and exclude it if the character is blurred"
        )


def _finding(reason: Reason, verdict: Verdict) -> Finding | None:
    match reason.code:
        case "undecodable":
            return Finding(code="unreadable", text=reason.text, action="replace or remove the file")
        case "blank":
            return Finding(code="blank", text=reason.text, action="exclude it")
        case "blurred":
            return Finding(
                code="blurred",
                text=reason.text,
                action="look at it, and exclude it if the character is blurred",
            )
        case "duplicate":
            other = reason.other.partition("/")[2] or reason.other
            return Finding(
                code="near_duplicate",
                text=f"nearly the same as {other}",
                action="exclude one of the two",
                other=other,
            )
        case "subjects":
            several = (verdict.measures.subjects or 0) > 1
            return Finding(
                code="several_people" if several else "no_person",
                text=reason.text,
                action="cut the picture to the character, or exclude it"
                if several
                else "keep it if the character is seen from behind",
            )
        case "identity":
            return Finding(
                code="other_person", text=reason.text, action="exclude it if it shows somebody else"
            )
        case _:
            return None


def _caption(picture: SetPicture, run: Run, former: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with the caption that lies beside a picture."""
    trigger = run.character.trigger
    if picture.caption is None:
        yield Finding(code="caption_missing", text="no caption lies beside it", action="none; it gets one")
        return
    try:
        text = read_caption(picture.caption)
    except InputError as error:
        yield Finding(code="caption_foreign", text=str(error), action="save it as UTF-8")
        return
    if not text:
        yield Finding(
            code="caption_empty",
            text=f"{picture.caption.name} is empty",
            action="write what the picture shows, or delete the file to have it written",
        )
    elif not says(text, trigger):
        old = next((word for word in former if says(text, word)), "")
        if old:
            yield Finding(
                code="trigger_changed",
                text=f"its caption says {old!r}, which was the trigger before {trigger!r}",
                action=f"replace {old!r} by {trigger!r} in {picture.caption.name}",
            )
        else:
            yield Finding(
                code="trigger_missing",
                text=f"its caption does not say the trigger {trigger!r}",
                action=f"add {trigger!r} to {picture.caption.name}",
            )


class Row(NamedTuple):
    """One finding for the page: the pictures as data URIs, the second one where two are compared."""

    name: str
    source: str
    other: str
    other_source: str
    text: str
    action: str


def _rows(paths: RunPaths, result: Triage) -> dict[str, list[Row]]:
    """The findings under what is said of their kind, each with its picture as far as there are not too many."""
    rows: dict[FindingCode, list[Row]] = {}
    shown = 0
    for picture in result.pictures:
        for finding in picture.findings:
            if finding.code == "caption_missing":
                continue
            shown += 1
            small = shown <= _MOST_PICTURED and finding.code != "unreadable"
            rows.setdefault(finding.code, []).append(
                Row(
                    picture.name,
                    data_uri(paths.images / picture.name) if small else "",
                    finding.other,
                    data_uri(paths.images / finding.other) if small and finding.other else "",
                    finding.text,
                    finding.action,
                )
            )
    return {_counted(len(found), code): found for code, found in rows.items()}


@cache
def _template() -> Template:
    source = resources.files("lora_foundry.stages.curate").joinpath("triage.html.jinja").read_text("utf-8")
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(source)
