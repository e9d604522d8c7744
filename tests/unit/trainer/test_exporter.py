"""When exports are kept: by share of the run, by epoch, by the clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_foundry.trainer.export import CheckpointExporter
from lora_foundry.trainer.schedule import planned_exports
from tests.unit.trainer.conftest import short_section


@pytest.mark.parametrize(
    ("settings", "total", "per_epoch", "steps"),
    [
        ({"saves": 4}, 400, 5, {100, 200, 300, 400}),
        ({"saves": 3}, 10, 5, {3, 7, 10}),
        ({"saves": 9}, 2, 5, {1, 2}),
        ({"saves": 0}, 10, 5, set()),
        ({"save_every_epochs": 2}, 25, 5, {10, 20, 25}),
        ({"save_every_epochs": 1}, 3, 2.5, {2, 3}),
    ],
)
def test_the_planned_steps(
    settings: dict[str, object], total: int, per_epoch: float, steps: set[int]
) -> None:
    assert planned_exports(short_section(**settings), total, per_epoch) == steps


def test_by_the_clock(tmp_path: Path) -> None:
    now, written = [0.0], []

    def export(path: Path, step: int) -> str:
        written.append((path.name, step))
        return ""

    settings = short_section(save_every_minutes=2)
    exporter = CheckpointExporter(settings, frozenset(), tmp_path, export, lambda: now[0])
    for step, seconds in enumerate((60, 119, 121, 200, 242), start=1):
        now[0] = seconds
        if exporter.is_due(step):
            exporter.keep(step)
    assert written == [("step-0003.safetensors", 3), ("step-0005.safetensors", 5)]
