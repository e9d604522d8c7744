"""loss.csv and log.txt stay right however often a training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_foundry.trainer.logging import TrainingLog


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "loss.csv", tmp_path / "log.txt"


def fill(journal: TrainingLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        journal.add(step, step / 10, 1e-3)
    journal.say(last, f"reached {last}")
    journal.close()


def test_rows_after_the_checkpoint_are_cut_and_written_once(files: tuple[Path, Path]) -> None:
    fill(TrainingLog(*files, 0), 1, 7)
    journal = TrainingLog(*files, 4)
    assert journal.losses == [0.1, 0.2, 0.3, 0.4]
    fill(journal, 5, 9)
    rows = files[0].read_text().splitlines()
    assert rows[0] == "step,loss,learning_rate"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, 10))
    assert "reached 7" not in files[1].read_text()
    assert "reached 9" in files[1].read_text()


def test_a_torn_last_row_and_garbage_are_dropped(files: tuple[Path, Path]) -> None:
    fill(TrainingLog(*files, 0), 1, 3)
    with files[0].open("a") as file:
        file.write("x,y,z\n4,0.")
    with files[1].open("a") as file:
        file.write("2026-01-01 00:00:00 [step 2] tor")
    with TrainingLog(*files, 10) as journal:
        assert journal.losses == [0.1, 0.2, 0.3]
    assert "tor" not in files[1].read_text()


def test_a_new_training_begins_both_files_anew(files: tuple[Path, Path]) -> None:
    fill(TrainingLog(*files, 0), 1, 3)
    TrainingLog(*files, 0).close()
    assert files[0].read_text() == "step,loss,learning_rate\n"
    assert files[1].read_text() == ""


def test_the_mean_is_of_the_last_losses(files: tuple[Path, Path]) -> None:
    journal = TrainingLog(*files, 0)
    assert journal.mean_loss(5) == 0.0
    for step in range(1, 5):
        journal.add(step, step, 1e-3)
    assert journal.mean_loss(2) == 3.5
    journal.close()
