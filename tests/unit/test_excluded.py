"""Pictures that a person threw out are neither trained on (test_api.py) nor measured against."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.storage import write_model
from tests.unit.test_evaluate_stage import Lookout, Ports, measure, prepare


def test_pictures_that_were_thrown_out_are_not_measured_against(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    first = measure(run, Ports(tagger=Lookout()))
    mark = Exclusion(sha256=file_hash(paths.image(0)), at=datetime.now(UTC))
    write_model(paths.exclusions, Exclusions(files={paths.image(0).name: mark}))
    assert measure(run, Ports(tagger=Lookout())).fingerprint != first.fingerprint
