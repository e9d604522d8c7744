"""Who is in the pictures, from their embeddings: the tightest cluster is the character, strangers are told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.identity import cohesion, direction, find_core, likeness, mean_distance
from lora_foundry.ports import FloatArray


def around(centre: list[float], count: int, spread: float, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    rows = np.asarray(centre, np.float32) + spread * rng.standard_normal((count, len(centre))).astype(
        np.float32
    )
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_the_core_is_the_tightest_cluster_and_not_the_largest() -> None:
    loose, tight = around([1, 0, 0, 0], 20, 0.4, 1), around([0, 1, 0, 0], 8, 0.02, 2)
    core = find_core(np.concatenate([loose, tight]), 6)
    assert min(core.members) >= 20
    assert core.cohesion > 0.99
    assert (likeness(tight, core.centre) > 0.99).all()
    assert (likeness(loose, core.centre) < 0.9).all()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 9))
def test_the_core_has_its_size_and_does_not_depend_on_the_order(size: int, count: int, seed: int) -> None:
    rows = around([1, 1, 0, 0], count, 0.5, seed)
    core = find_core(rows, size)
    assert len(core.members) == min(size, count)
    turned = find_core(rows[::-1].copy(), size)
    assert core.cohesion == pytest.approx(turned.cohesion, abs=1e-5)


def test_cohesion_is_the_mean_cosine_of_all_pairs() -> None:
    rows = around([1, 0, 0], 5, 0.8, 3)
    pairs = [float(rows[i] @ rows[j]) for i in range(5) for j in range(i)]
    assert cohesion(rows) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert mean_distance(rows) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-3)
    assert cohesion(rows[:1]) == 1.0
    assert np.linalg.norm(direction(rows)) == pytest.approx(1, abs=1e-5)
