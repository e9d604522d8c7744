"""What the command line says to a person, on narrow terminals and in logs."""

from __future__ import annotations

import io
from pathlib import Path
from uuid import uuid4

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lora_foundry.cli.app import app
from lora_foundry.cli.create import copied_words, findings_of
from lora_foundry.cli.tasks import table_of
from lora_foundry.cli.terminal import PLAIN_PAUSE, RunDisplay
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.triage import Finding, FindingCode, Triage, TriagedPicture
from lora_foundry.files.importing import Imported
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, write_model
from tests.painted import make_run


@pytest.mark.parametrize("width", [60, 80, 200])
def test_an_id_is_never_cut(width: int) -> None:
    ids = [str(uuid4()) for _ in range(2)]
    table = table_of("pipeline", "character", "status", "stages")
    for each in ids:
        table.add_row(
            each, "A long name of somebody", "completed", "generate completed  curate completed  train failed"
        )
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    said = captured.get()
    assert all(each in said for each in ids)
    assert "…" not in said


@pytest.mark.parametrize(
    ("shown", "said"),
    [(True, ["generate: begins", "generate: 8 of 16", "generate: done in 90.0 s"]), (False, [])],
)
def test_a_log_gets_a_line_at_a_beginning_each_minute_and_the_end(shown: bool, said: list[str]) -> None:
    now, written = [0.0], io.StringIO()
    with RunDisplay(Console(file=written, width=80), shown, clock=lambda: now[0]) as display:
        display.begins("generate")
        for done in range(1, 17):
            now[0] += PLAIN_PAUSE / 8
            if done < 16:
                display.progress(ProgressEvent(stage="generate", done=done, total=16))
        display.finished("generate", 90)
    assert written.getvalue().splitlines() == said


def test_a_terminal_gets_bars() -> None:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, _environ={"TERM": "xterm"})
    with RunDisplay(console, shown=True) as display:
        display.begins("generate")
        display.progress(ProgressEvent(stage="generate", done=1, total=16))
        display.finished("generate", 1)
    assert "1/16" in written.getvalue()
    assert "begins" not in written.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_that_was_waited_for_is_said_to_begin_in_a_terminal_too(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=terminal, _environ={"TERM": "xterm"})
    with RunDisplay(console, shown=True) as display:
        display.waits("train", "Waiting until generate of Duo has ended.")
        display.begins("train")
    assert written.getvalue().splitlines() == ["Waiting until generate of Duo has ended.", "train: begins"]


def triaged(name: str, *codes: FindingCode) -> TriagedPicture:
    findings = tuple(Finding(code=code, text="so", action="this") for code in codes)
    return TriagedPicture(name=name, size=1, changed=1, findings=findings)


def test_what_was_found_of_own_pictures_is_said_with_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    paths = RunPaths(run.dataset_dir, run.character.slug)
    make_folder(paths.root)
    assert list(findings_of(run)) == []  # no report on this host
    write_model(
        paths.triage,
        Triage(pictures=(triaged("a.png", "caption_missing"), triaged("b.png", "trigger_missing"))),
    )
    assert list(findings_of(run)) == []  # every caption is seen to by the program
    several = [triaged(f"{each}.png", "near_duplicate") for each in "cde"]
    pictures = (
        triaged("notes.png", "unreadable"),
        *several,
        triaged("f.png", "too_small", "caption_missing"),
    )
    write_model(paths.triage, Triage(pictures=pictures))
    (said,) = findings_of(run)
    assert said.startswith(
        "1 file cannot be read and is left out: notes.png. 4 others want a look (1 small for this recipe, 3 nearly the "
        f"same as another). See {paths.triage_report}. To leave some out, stop with Ctrl-C"
    )


def test_pictures_that_were_there_are_counted_where_there_are_some(tmp_path: Path) -> None:
    assert copied_words(Imported(1, 0, ()), tmp_path) == f"1 picture copied into {tmp_path}"
    assert copied_words(Imported(3, 2, ()), tmp_path).endswith(", 2 were there already")


@pytest.mark.parametrize("words", [[], ["--from-picture"]])
def test_the_demo_says_what_it_does(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first stage, which is left out here."""
    monkeypatch.setattr("lora_foundry.cli.create.with_store", lambda settings, work: 1 / 0)
    ended = CliRunner().invoke(app, ["demo", "--home", str(tmp_path), *words])
    assert isinstance(ended.exception, ZeroDivisionError)
    name = "Mira" if words else "Elara"
    assert f"{name}, " in ended.stderr
    assert "minutes" in ended.stderr
    assert str(tmp_path / "datasets" / name / "images") in ended.stderr
    assert ("mira.png" in ended.stderr) is bool(words)
