"""Two hosts without a common folder: what one has drawn and learned is the other's, too, when it dies."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import storage
from benchmarks.storage import ELARA, STORAGE, database, two_hosts
from lora_foundry.domain.publication import Publication
from lora_foundry.files.storage import require_model
from lora_foundry.remote.access import bring
from lora_foundry.remote.manifests import version_chain
from lora_foundry.remote.objects import ObjectStore
from tests.commands import Running
from tests.contract.storage_server import environment, served

CHANGES = {
    "generate": {"images": 6, "steps": 4, "batch_size": 1, "rounds": 1},
    "curate": {"budget": 1},
    "train": {
        "steps": 16,
        "batch_size": 2,
        "rank": 4,
        "checkpoint_every": 4,
        "regularisation": 2,
        "sample_steps": 1,
    },
    "evaluate": {"prompts": 1, "seeds": 1, "choose": False},
    "publish": {"min_change": 0},
}


@pytest.mark.slow
@pytest.mark.timeout(900)  # three workers are started, two of them to be killed
def test_a_pipeline_whose_hosts_die_ends_on_the_one_that_is_left(processes: Any) -> None:
    def forked(words: Sequence[str], log: Path) -> Running:
        return Running(processes, [storage.__file__, *words], {}, log, log)

    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-hosts-"))
    with database() as url, served() as server, environment(server.environment):
        figures, one, other, laptop = two_hosts(folder, url, CHANGES, forked)
        assert figures.stored_before_death >= 3
        assert figures.drawn_again == 0, "the second host drew what the first had stored"
        assert 0 < figures.resumed_from < figures.steps
        assert figures.fetched_bytes > 0
        assert not laptop.paths.root.exists(), "who only asks has no files"
        assert bring(laptop.settings, ELARA.name, 1)
        manifest = version_chain(ObjectStore(STORAGE), ELARA.name, 1).newest()
    assert manifest is not None
    published = laptop.settings.loras_dir / "elara.safetensors"
    assert published.read_bytes() == (one.settings.loras_dir / "elara.safetensors").read_bytes()
    said = require_model(laptop.paths.publication, Publication, "publish")
    assert said.lora == published
    for path, blob in manifest.files.items():
        if path.endswith((".png", ".safetensors")) and "checkpoints" not in path:
            content = (laptop.paths.root / path).read_bytes()
            assert hashlib.sha256(content).hexdigest() == blob.sha256, path
    assert not list(laptop.paths.training.glob("checkpoints/*"))
    for host in (one, laptop):
        assert str(other.home) not in (host.paths.training_result).read_text()
    shutil.rmtree(folder, ignore_errors=True)
