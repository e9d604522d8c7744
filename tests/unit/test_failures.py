"""What a person reads when a stage stops: the same sentence for the same lack, whichever room met it, with a next step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import BackendError, BaseModelError, DefectError
from lora_foundry.failures import as_ours
from lora_foundry.families._shared.loading import translated
from lora_foundry.ports import TrainingJob
from lora_foundry.tasks.children import _tail
from lora_foundry.tasks.logs import JsonLines, Words, is_calm
from lora_foundry.trainer.trainer import _translated

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 268435456 bytes."


def while_training() -> AbstractContextManager[None]:
    place = Path("training")
    return _translated(TrainingJob((), TrainSection(), "elara", place / "lora", place, metadata={}))


def while_loading() -> AbstractContextManager[None]:
    return translated(Path("base"))


@pytest.mark.parametrize("door", [while_training, while_loading])
def test_a_lack_of_memory_is_told_as_one_wherever_it_is_met(
    door: Callable[[], AbstractContextManager[None]],
) -> None:
    with (
        pytest.raises(BackendError, match=r"not enough memory \(.*allocate.*\)\. Close other programs"),
        door(),
    ):
        raise RuntimeError(NO_MEMORY)


def test_a_base_that_was_deleted_meanwhile_says_which_file_and_what_to_do() -> None:
    gone = r"base is not whole any more: base/unet\.safetensors is gone\. Put it back, or name another"
    with pytest.raises(BaseModelError, match=gone), while_loading():
        raise FileNotFoundError(2, "No such file or directory", "base/unet.safetensors")


def test_a_fault_of_ours_asks_for_a_report_and_stops_each_sentence_once() -> None:
    told = as_ours(LookupError("The layer is not in the table."), Path("4.log"))
    assert isinstance(told, DefectError)
    assert str(told) == (
        "LookupError: The layer is not in the table. This is a fault of the program, not of what it was asked for. "
        "Its log is 4.log; please report it."
    )


@pytest.mark.parametrize("form", [Words(), JsonLines()], ids=["words", "json"])
def test_the_end_of_a_log_leaves_out_how_far_the_work_had_come(
    form: logging.Formatter, tmp_path: Path
) -> None:
    def line(level: int, said: str) -> str:
        return form.format(logging.LogRecord("lora_foundry.x", level, "", 0, said, None, None))

    calm, worried = line(logging.INFO, "step 3 WARNING"), line(logging.WARNING, "step 4 INFO")
    assert (is_calm(calm), is_calm(worried), is_calm("terminate called: INFO")) == (True, False, False)
    log = tmp_path / "log"
    log.write_text("\n".join([calm, worried, "terminate called", calm, ""]), encoding="utf-8")
    assert _tail(log) == f"{worried} / terminate called"
