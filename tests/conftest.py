"""What all tests share: no network, a home of their own, small settings for the real miniature model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_foundry.domain.character import Character

os.environ["HF_HUB_OFFLINE"] = "1"

# The whole pipeline on the real model in a few seconds: what is small here is small in number, never in kind.
SMALL = ("generate.images=6", "generate.steps=4", "generate.batch_size=3", "train.steps=12", "train.batch_size=2",
         "train.rank=4", "train.checkpoint_every=4", "evaluate.prompts=2", "evaluate.seeds=1", "publish.min_change=0",
         "curate.budget=1", "train.saves=2", "evaluate.choice_prompts=2")  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="DIR", help="Have the browser tests write a picture of each page there."
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home of Zoë"


@pytest.fixture
def elara() -> Character:
    return Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests are skipped, by name, where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
