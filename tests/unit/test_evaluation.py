"""What the scores mean: shares over what is visible, what was asked and hidden is wrong, likeness to the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_foundry.backends.mini_instruments import MiniEmbedder, MiniTagger
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import own_record
from lora_foundry.domain.evaluation import Evaluation, EvaluationPicture, ScoreRow
from lora_foundry.domain.shots import Shot
from lora_foundry.ports import Trait
from lora_foundry.stages.evaluate.scoring import cosines_to, mean_share, own_likeness, shares_right
from mini_world.render import render
from mini_world.scene import Scene, sample_character, sample_scene, value_of
from mini_world.vocabulary import SHOT, TRAITS


def test_identity_counts_only_what_a_picture_can_show() -> None:
    asked = [[Trait("hair", "brown"), Trait("eyes", "blue")]] * 3
    seen = [
        {"hair": "brown", "eyes": "blue"},
        {"hair": "red"},
        {"hair": "brown", "eyes": "red", "hat": "hat"},
    ]
    shares = shares_right(asked, seen)
    assert shares == {"hair": 0.6667, "eyes": 0.5}
    assert mean_share(shares) == pytest.approx(0.5833, abs=1e-4)


def test_what_a_prompt_asked_for_and_the_picture_hides_is_wrong() -> None:
    asked = [[Trait("expression", "smiling warmly")]] * 2
    seen = [{"expression": "smiling warmly"}, {"view": "back view"}]
    assert shares_right(asked, seen, hidden_is_wrong=True) == {"expression": 0.5}
    assert shares_right(asked, seen) == {"expression": 1.0}


def test_nothing_asked_is_no_score() -> None:
    assert shares_right([[], []], [{"hair": "red"}, {}]) == {}
    assert mean_share({}) is None


def test_own_likeness_leaves_each_picture_out_of_its_own_mean() -> None:
    alike = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    assert own_likeness(alike) == 1
    assert own_likeness(np.array([[1, 0], [0, 1]], np.float32)) == 0
    assert own_likeness(alike[:1]) is None
    assert cosines_to(np.array([[0, 1], [1, 0]], np.float32), alike).tolist() == [0, 1]


def picture(name: str, traits: int, shot: int) -> EvaluationPicture:
    nothing = Shot("", "", "", "", "")
    return EvaluationPicture(file=name, shot=nothing, prompt="", seed=1, traits_right=traits, traits_seen=4,
                             shot_right=shot, shot_asked=5)  # fmt: skip


def test_the_best_picture_shows_most_of_the_character_first() -> None:
    rows = (picture("a", 3, 5), picture("b", 4, 2), picture("c", 4, 3), picture("d", 4, 3))
    row = ScoreRow(pictures=rows)
    scores = Evaluation(character="", trigger="", model="", before=row, after=row, without_trigger=row, strength=1, shots=4,
                        lora_sha256="", held_out=4, fingerprint="", seconds=0)  # fmt: skip
    assert scores.best().file == "c"
    assert scores.side("after") == row


UNDERSTOOD = {
    ("brown hair", "unknown thing", "Armor"): {"hair_color": "brown hair", "outfit": "armor"},
    ("red dress",): {"outfit": "dress", "outfit_color": "red"},
    ("1girl", "red  Hair", "hair bow"): {
        "gender": "1girl",
        "hair_color": "red hair",
        "accessory": "hair bow",
    },
    ("black school uniform",): {"outfit": "school uniform", "outfit_color": "black"},
    ("long brown hair",): {"hair_color": "brown hair", "hair_style": "long hair"},
    ("pink ponytail",): {"hair_color": "pink hair", "hair_style": "ponytail"},
    ("silver hair", "red", "very red dress", "hair", ""): {},
    ("running", "front view"): {"pose": "running", "view": "front view"},
    ("running", "close-up portrait"): {"framing": "close-up portrait"},
    ("arms crossed", "upper body shot"): {"pose": "arms crossed", "framing": "upper body shot"},
    ("smiling warmly", "back view"): {"view": "back view"},
}


@pytest.mark.parametrize("tags", UNDERSTOOD)
def test_the_tagger_understands_tags_as_traits(tags: tuple[str, ...]) -> None:
    assert dict(MiniTagger().understand(tags)) == UNDERSTOOD[tags]


def test_every_word_of_the_world_is_understood() -> None:
    for attribute, values in SHOT.items():
        for value in values:
            assert Trait(attribute, value) in MiniTagger().understand([value]) or attribute == "pose"
    described = MiniTagger().understand(
        ["1boy", "black hair", "curly hair", "yellow eyes", "tan skin", "red robe", "hat"]
    )
    assert [trait.attribute for trait in described] == list(TRAITS)


def draw(character_seed: int, count: int, view: str = "front view") -> list[Image.Image]:
    rng = np.random.default_rng(character_seed)
    character = sample_character(rng)
    poses = ("standing confidently", "arms crossed", "reaching up", "running")
    scenes = [
        Scene(
            character,
            poses[index % 4],
            "neutral expression",
            view,
            "full body shot",
            "natural lighting",
            place,
        )
        for index, place in zip(range(count), ("white background", "outdoor setting") * count, strict=False)
    ]
    return [Image.fromarray(render(scene, seed)) for seed, scene in enumerate(scenes)]


def test_the_reader_reads_what_was_drawn_and_leaves_out_what_is_not_there() -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng) for _ in range(60)]
    readings = MiniTagger().read([Image.fromarray(render(scene, 9)) for scene in scenes])
    right = [
        row[attribute].startswith(value_of(scene, attribute).split()[0])
        for scene, row in zip(scenes, readings, strict=True)
        for attribute in row
    ]
    assert np.mean(right) > 0.9
    behind = [row for scene, row in zip(scenes, readings, strict=True) if scene.view == "back view"]
    assert sum(bool({"eye_color", "expression"} & set(row)) for row in behind) <= 1
    close = [row for row in readings if row["framing"] == "close-up portrait"]
    assert close
    assert all("pose" not in row for row in close)


def test_the_embedder_tells_characters_apart() -> None:
    embedder = MiniEmbedder()
    sets = [embedder.embed(draw(seed, 4)) for seed in range(6)]
    assert np.allclose(np.linalg.norm(sets[0], axis=1), 1, atol=1e-3)
    own = np.mean([(rows @ rows.T)[np.triu_indices(4, 1)].mean() for rows in sets])
    other = np.mean([(sets[a] @ sets[b].T).mean() for a in range(6) for b in range(a)])
    assert own > other + 0.3


def test_scores_of_earlier_versions_are_read_under_the_names_of_today() -> None:
    row = {"identity": 0.5, "similarity": 0.25}
    earlier = {"character": "Zoë", "trigger": "zoë", "model": "base", "before": row, "after": row,
               "leak": {"identity": 0.75}, "strength": 1.0, "lora_sha256": "ab", "shots": 1, "held_out": 1,
               "self_similarity": 0.5, "fingerprint": "x", "seconds": 1.0}  # fmt: skip
    read = Evaluation.model_validate(earlier)
    assert (read.after.likeness, read.own_likeness, read.without_trigger.identity) == (0.25, 0.5, 0.75)
    assert read.scores.identity_without_trigger == 0.75
    written = read.model_dump_json()
    assert Evaluation.model_validate_json(written) == read
    assert not {"leak", "similarity", "self_similarity"} & set(read.model_dump())


def test_the_bundled_reader_says_features_and_leaves_the_shot_to_the_plan(tmp_path: Path) -> None:
    images = draw(5, 3)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    records = [own_record(f"{number}.png", "", "") for number in range(3)]
    described = MiniTagger().describe(Character(name="Zoë", description=""), records, tmp_path)
    for tags, seen in zip(described, MiniTagger().read(images), strict=True):
        told = MiniTagger().understand(tags)
        assert dict(told) == {name: value for name, value in seen.items() if name in TRAITS}
        assert len(told) >= 6
