"""What the command line says to a person, on narrow terminals and in logs."""

from __future__ import annotations

from uuid import uuid4

import pytest
from rich.console import Console

from lora_foundry.cli.tasks import table_of


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
