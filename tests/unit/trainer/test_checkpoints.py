"""A checkpoint is whole or does not count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_foundry.families._shared.targets import Target
from lora_foundry.trainer.adapter import Adapter
from lora_foundry.trainer.checkpoints import Checkpoints, Learner
from tests.unit.trainer.conftest import short_section


def learner(seed: int = 1) -> Learner:
    network = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Conv2d(4, 3, 1)})
    targets = [Target("unet", "a"), Target("unet", "b")]
    adapter = Adapter({"unet": network}, targets, short_section(rank=2, alpha=2.0), seed)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, fused=True)
    return Learner(adapter, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def teach(learner: Learner, steps: int) -> None:
    for step in range(steps):
        for index, parameter in enumerate(learner.adapter.parameters()):
            parameter.grad.fill_(0.1 * (index + step + 1))
        learner.optimizer.step()


def same(one: Learner, two: Learner) -> bool:
    states = one.adapter.state(), two.adapter.state()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_and_optimizer_go_on_exactly(tmp_path: Path) -> None:
    undisturbed, stopped, resumed = learner(), learner(), learner(seed=2)
    teach(undisturbed, 3)
    teach(stopped, 3)
    Checkpoints(tmp_path, "f").save(3, stopped)
    assert Checkpoints(tmp_path, "f").restore(resumed) == 3
    teach(undisturbed, 4)
    teach(resumed, 4)
    assert same(undisturbed, resumed)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path, "f")
    for step in (10, 20, 30):
        keeper.save(step, learner())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step-000000{n}.{kind}" for n in (20, 30) for kind in ("json", "safetensors")]


@pytest.mark.parametrize("damage", ["shortened", "flipped", "gone", "no record"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    keeper, early = Checkpoints(tmp_path, "f"), learner()
    keeper.save(10, early)
    late = learner()
    teach(late, 2)
    keeper.save(20, late)
    tensors = tmp_path / "step-00000020.safetensors"
    data = bytearray(tensors.read_bytes())
    if damage == "shortened":
        tensors.write_bytes(data[:-20])
    elif damage == "flipped":
        data[-3] ^= 255
        tensors.write_bytes(data)
    elif damage == "gone":
        tensors.unlink()
    else:
        tensors.with_suffix(".json").write_text("{")
    found = learner(seed=3)
    assert keeper.restore(found) == 10
    assert same(found, early)


def test_a_checkpoint_of_another_training_is_removed(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "one").save(5, learner())
    fresh, untouched = learner(seed=4), learner(seed=4)
    assert Checkpoints(tmp_path, "two").restore(fresh) == 0
    assert same(fresh, untouched)
    assert not list(tmp_path.iterdir())


def test_nothing_in_it_needs_pickle(tmp_path: Path) -> None:
    taught = learner()
    teach(taught, 1)
    record = Checkpoints(tmp_path, "f").save(1, taught)
    assert json.loads(record.read_text())["step"] == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
