"""A checkpoint is whole or does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import Target
from lora_foundry.trainer.lora import Adapter
from lora_foundry.trainer.optimizers import build_optimizer
from lora_foundry.trainer.state import Checkpoints, TrainState
from tests.unit.trainer.conftest import short_section


def learner(seed: int = 1) -> TrainState:
    network = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Conv2d(4, 3, 1)})
    targets = [Target("unet", "a"), Target("unet", "b")]
    adapter = Adapter({"unet": network}, targets, short_section(rank=2, alpha=2.0), seed)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, fused=True)
    return TrainState(adapter, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def learner_of(optimizer: str, seed: int = 1) -> TrainState:
    """Two layers, one of them large enough (4,096 numbers) for moments in 8 bits, learned by an optimizer of the recipe."""
    network = nn.ModuleDict({"a": nn.Linear(80, 70), "b": nn.Conv2d(4, 3, 1)})
    targets = [Target("unet", "a"), Target("unet", "b")]
    chosen: dict[str, object] = {"optimizer": optimizer, "rank": 64}
    chosen |= {"learning_rate": 1.0} if optimizer == "prodigy" else {}
    chosen |= {"lr_schedule": "constant"} if optimizer == "schedule_free" else {}
    section = short_section(**chosen)
    adapter = Adapter({"unet": network}, targets, section, seed)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(adapter, build_optimizer(section, adapter), scaler)


def teach(learner: TrainState, steps: int) -> None:
    for step in range(steps):
        for index, parameter in enumerate(learner.adapter.parameters()):
            parameter.grad.fill_(0.1 * (index + step + 1))
        learner.optimizer.step()


def same(one: TrainState, two: TrainState) -> bool:
    states = one.adapter.state(), two.adapter.state()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_and_optimizer_go_on_exactly(tmp_path: Path) -> None:
    undisturbed, stopped, resumed = learner(), learner(), learner(seed=2)
    teach(undisturbed, 3)
    teach(stopped, 3)
    Checkpoints(tmp_path, "f", 30).save(3, stopped)
    assert Checkpoints(tmp_path, "f", 30).restore(resumed) == 3
    teach(undisturbed, 4)
    teach(resumed, 4)
    assert same(undisturbed, resumed)


PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "pytorch_optimizer", "schedule_free": "pytorch_optimizer"}


@pytest.mark.parametrize("optimizer", get_args(TrainSection.model_fields["optimizer"].annotation))
def test_every_optimizer_goes_on_exactly(tmp_path: Path, optimizer: str) -> None:
    if package := PACKAGES.get(optimizer):
        pytest.importorskip(package)
    undisturbed, stopped, resumed = (learner_of(optimizer, seed) for seed in (1, 1, 2))
    teach(undisturbed, 3)
    teach(stopped, 3)
    Checkpoints(tmp_path, "f", 30).save(3, stopped)
    assert Checkpoints(tmp_path, "f", 30).restore(resumed) == 3
    assert alike(undisturbed.optimizer.state_dict(), resumed.optimizer.state_dict())
    teach(undisturbed, 4)
    teach(resumed, 4)
    assert same(undisturbed, resumed)
    assert not same(undisturbed, stopped)


def alike(one: object, other: object) -> bool:
    """Equal in values, types and keys, but that a tuple may come back as a list."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(alike(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(alike(*pair) for pair in zip(one, other, strict=True))
        )
    return type(one) is type(other) and one == other


TENSORS = st.builds(
    lambda kind, count: torch.arange(count).to(kind),
    st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.int64]),
    st.integers(0, 5),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text("ab."), TENSORS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(0, 9), st.text("ab.", max_size=3)), inner, max_size=3),
    ),
    max_leaves=8,
)


class Remembers(torch.optim.SGD):
    """An optimizer whose state is whatever a test says."""

    told: object = None

    def state_dict(self) -> dict[str, object]:
        return {"state": self.told}

    def load_state_dict(self, state_dict: Any) -> None:
        self.told = state_dict["state"]


@settings(deadline=None, max_examples=40)
@given(told=VALUES)
def test_a_state_of_any_depth_comes_back(tmp_path_factory: pytest.TempPathFactory, told: object) -> None:
    """8-bit optimizers keep their moments in a dictionary of their own, one level deeper than the others."""
    folder, taught = tmp_path_factory.mktemp("state"), learner()
    optimizer = Remembers(taught.adapter.parameters(), lr=0.1)
    optimizer.told = told
    taught = taught._replace(optimizer=optimizer)
    Checkpoints(folder, "f", 30).save(1, taught)
    optimizer.told = None
    assert Checkpoints(folder, "f", 30).restore(taught) == 1
    assert alike(told, optimizer.told)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path, "f", 30)
    for step in (10, 20, 30):
        keeper.save(step, learner())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step-000000{n}.{kind}" for n in (20, 30) for kind in ("json", "safetensors")]


@pytest.mark.parametrize("damage", ["shortened", "flipped", "gone", "no record"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    keeper, early = Checkpoints(tmp_path, "f", 30), learner()
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
    Checkpoints(tmp_path, "one", 30).save(5, learner())
    fresh, untouched = learner(seed=4), learner(seed=4)
    assert Checkpoints(tmp_path, "two", 30).restore(fresh) == 0
    assert same(fresh, untouched)
    assert not list(tmp_path.iterdir())


def test_a_finished_training_goes_on_where_more_steps_are_asked_for_and_an_unfinished_one_begins_anew(
    tmp_path: Path,
) -> None:
    Checkpoints(tmp_path / "a", "f", 30).save(30, learner())
    assert Checkpoints(tmp_path / "a", "f", 45).restore(learner(seed=2)) == 30
    Checkpoints(tmp_path / "b", "f", 30).save(20, learner())
    assert Checkpoints(tmp_path / "b", "f", 45).restore(learner(seed=2)) == 0
    Checkpoints(tmp_path / "c", "f", 30).save(30, learner())
    assert Checkpoints(tmp_path / "c", "f", 25).restore(learner(seed=2)) == 0


def test_nothing_in_it_needs_pickle(tmp_path: Path) -> None:
    taught = learner()
    teach(taught, 1)
    record = Checkpoints(tmp_path, "f", 30).save(1, taught)
    assert json.loads(record.read_text())["step"] == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
