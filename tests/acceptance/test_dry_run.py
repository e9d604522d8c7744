"""A dry run says everywhere that it was one, and leaves nothing that a user could load."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from lora_foundry import Character, Foundry
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from tests.homes import SMALL, Homes


def test_a_dry_run_is_marked_everywhere_and_never_published(
    homes: Homes, home: Path, elara: Character
) -> None:
    foundry = Foundry(homes.copy(home, before="train"))
    result = foundry.create(elara, "mini", settings=[*SMALL, "train.backend=dry-run"])
    assert not result.published
    assert "dry run trained nothing" in result.verdict
    assert result.lora_path is None
    assert not list(foundry.settings.loras_dir.glob("*"))
    paths = RunPaths(result.dataset_dir, elara.slug)
    trained = require_model(paths.training_result, TrainedLora, "train")
    assert trained.dry_run
    assert trained.steps == 0
    with safe_open(paths.trained_lora, "pt") as file:
        assert file.metadata()["lora_foundry.dry_run"] == "true"
        assert not any(file.get_tensor(name).any() for name in file.keys() if name.endswith("up.weight"))  # noqa: SIM118
    assert "Dry run: nothing was trained" in result.report_path.read_text(encoding="utf-8")
    assert '"dry_run": true' in (paths.training / "config.json").read_text(encoding="utf-8")
