"""What is random about a step depends on the seed and the step alone."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.domain.sections import TrainSection
from lora_foundry.ports import TrainingImage
from lora_foundry.trainer.data import (
    NoiseSampler,
    derive_seed,
    group_pictures,
    plan_bucket_sizes,
    shuffle_tags,
)
from lora_foundry.trainer.schedule import total_steps
from lora_foundry.trainer.trainer import file_names

IMAGES = [TrainingImage(Path(f"{n}.png"), f"elara, a{n}, b{n}, c{n}, d{n}", 1 + n % 2) for n in range(5)]


def draws(**settings: object) -> NoiseSampler:
    return NoiseSampler(TrainSection.model_validate({"batch_size": 4, **settings}), IMAGES)


def test_a_step_is_the_same_whatever_was_drawn_before() -> None:
    worn, fresh = draws(shuffle_tags=True, caption_dropout=0.3), draws(shuffle_tags=True, caption_dropout=0.3)
    for step in range(9):
        worn.samples(step), worn.noise(step, (4, 4, 8, 8)), worn.timesteps(step)
    assert worn.samples(9) == fresh.samples(9)
    assert torch.equal(worn.noise(9, (4, 4, 8, 8)), fresh.noise(9, (4, 4, 8, 8)))
    assert torch.equal(worn.timesteps(9), fresh.timesteps(9))


def test_steps_and_seeds_differ() -> None:
    shape = (4, 4, 8, 8)
    assert not torch.equal(draws().noise(1, shape), draws().noise(2, shape))
    assert not torch.equal(draws(seed=1).noise(1, shape), draws(seed=2).noise(1, shape))
    assert derive_seed(1, "noise", 1) != derive_seed(1, "offset", 1) != derive_seed(1, "offset", 11)


def test_every_epoch_shows_each_picture_as_often_as_it_is_repeated() -> None:
    stream = draws(batch_size=1)
    shown = [stream.samples(step)[0].image for step in range(3 * 7)]
    for epoch in range(3):
        assert Counter(shown[epoch * 7 : epoch * 7 + 7]) == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1}
    assert shown[:7] != shown[7:14]


def test_batches_do_not_stop_at_the_end_of_an_epoch() -> None:
    one_by_one = [draws(batch_size=1).samples(step)[0].image for step in range(12)]
    batched = [sample.image for step in range(3) for sample in draws(batch_size=4).samples(step)]
    assert batched == one_by_one


def grouped(counts: list[int], **settings: object) -> tuple[NoiseSampler, list[int]]:
    """Draws from groups of so many pictures each, and the first picture of each group."""
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    groups = [range(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    images = [TrainingImage(Path(f"{n}.png"), "elara", 1) for n in range(sum(counts))]
    return NoiseSampler(TrainSection.model_validate(settings), images, groups), firsts


def test_a_picture_with_a_shape_of_its_own_is_shown_in_a_short_training() -> None:
    sizes = [(1024, 1024)] * 12 + [(832, 1216)] * 5 + [(1216, 832)] * 2 + [(640, 1536)]
    settings = TrainSection(steps=0, resolution=1024, epochs=10, batch_size=4, accumulation=8)
    images = [TrainingImage(Path(f"{n}.png"), "elara", 1) for n in range(len(sizes))]
    groups = group_pictures(plan_bucket_sizes(sizes, settings, 64), [])
    assert len(groups) == 4
    stream = NoiseSampler(settings, images, groups)
    shown = Counter(
        each.image for step in range(total_steps(settings, images)) for each in stream.samples(step)
    )
    assert set(shown) == set(range(len(sizes)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 40))
def test_what_a_training_does_not_show_is_counted(counts: list[int], batch: int, steps: int) -> None:
    stream, firsts = grouped(counts, batch_size=batch)
    shown = {each.image for step in range(steps) for each in stream.samples(step)}
    assert stream.never_shown(steps) == sum(counts) - len(shown)
    if steps >= len(counts):
        assert all(
            shown & set(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)
        )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_in_the_long_run_all_are_shown_equally_often(counts: list[int], batch: int) -> None:
    stream, _ = grouped(counts, batch_size=batch)
    shown = Counter(each.image for step in range(sum(counts)) for each in stream.samples(step))
    assert set(shown.values()) == {batch}


def test_positions_are_spread_over_the_batch_and_uniform_over_time() -> None:
    stream = draws(batch_size=4)
    drawn = torch.stack([stream.timesteps(step) for step in range(500)])
    assert torch.equal((drawn.sort(dim=1).values * 4).long(), torch.tensor([[0, 1, 2, 3]]).expand(500, 4))
    assert abs(float(drawn[:, 0].mean()) - 0.5) < 0.05


def test_noise_offset_moves_whole_channels() -> None:
    shape = (4, 4, 16, 16)
    plain, offset = draws().noise(3, shape), draws(noise_offset=0.5).noise(3, shape)
    shift = offset - plain
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert 0.2 < float(shift[:, :, 0, 0].std()) < 0.9


def test_caption_dropout_empties_about_its_share() -> None:
    stream = draws(caption_dropout=0.25)
    captions = [sample.caption for step in range(250) for sample in stream.samples(step)]
    assert 0.2 < captions.count("") / len(captions) < 0.3
    assert set(captions) - {""} == {image.caption for image in IMAGES}


@given(st.lists(st.text("abc", min_size=1), max_size=8), st.integers(0, 9), st.integers())
def test_shuffling_keeps_the_tags_and_the_first_ones_in_place(tags: list[str], keep: int, seed: int) -> None:
    shuffled = shuffle_tags(", ".join(tags), keep, random.Random(seed))
    found = shuffled.split(", ") if shuffled else []
    assert sorted(found) == sorted(tags)
    assert found[:keep] == tags[:keep]


def test_shuffling_really_shuffles() -> None:
    rng = random.Random(1)
    assert len({shuffle_tags("e, a, b, c, d", 1, rng) for _ in range(20)}) > 10


def test_multi_resolution_noise_is_as_coarse_as_sd_scripts() -> None:
    """Beside their formula, written out here: how alike neighbours are, and places far apart."""

    def reference(shape: tuple[int, int, int, int], discount: float, rng: random.Random) -> torch.Tensor:
        noise = torch.randn(shape)
        for level in range(6):
            factor = rng.uniform(2, 4)
            size = [max(1, int(side / factor**level)) for side in shape[2:]]
            coarse = torch.nn.functional.interpolate(
                torch.randn(*shape[:2], *size), shape[2:], mode="bilinear"
            )
            noise = noise + coarse * discount**level
            if 1 in size:
                break
        return noise / noise.std()

    def alike(noise: torch.Tensor, distance: int) -> float:
        return float((noise[..., distance:] * noise[..., :-distance]).mean())

    shape, rng = (4, 4, 48, 48), random.Random(0)
    stream = draws(multires_noise=0.6)
    ours = [stream.noise(step, shape) for step in range(150)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [reference(shape, 0.6, rng) for _ in range(150)]
    for distance in (1, 4, 12):
        one, other = (sum(alike(noise, distance) for noise in group) / 150 for group in (ours, theirs))
        assert abs(one - other) < 0.02
    assert all(abs(float(noise.std()) - 1) < 1e-3 for noise in ours)


def test_pictures_of_one_name_in_two_folders_are_told_apart() -> None:
    paths = ["set/a/1.png", "set/b/1.png", "set/c/2.png"]
    images = [TrainingImage(Path(path), "elara", 1) for path in paths]
    assert file_names(images) == ["a/1.png", "b/1.png", "2.png"]
    assert file_names(images[2:]) == ["2.png"]
