"""Payloads come from hands and programs that are not ours: each fault is one sentence, no path leads out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from lora_foundry.errors import InputError, PermanentError
from lora_foundry.settings import Settings
from lora_foundry.tasks.payloads import Kind, inside, lane_of, parse, prepare, recognise

GENERATION = {"character_name": "Elara", "description": "1girl, brown hair"}
TAGGING = {
    "character_name": "Elara",
    "image_dir": "Elara/images",
    "character_tags": "a, b",
    "description": "x",
}
TRAINING = {"character_name": "Elara", "training_dir": "Elara", "output_name": "elara_v1"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def test_the_contracts_defaults() -> None:
    parsed: Any = parse("training", TRAINING)
    assert (parsed.network_dim, parsed.network_alpha, parsed.epochs) == (32, 16, 15)
    assert (parsed.learning_rate, parsed.base_model) == (1e-4, None)


@pytest.mark.parametrize(
    ("task_type", "payload", "kind"),
    [
        ("LORA_GENERATION", {}, "generation"),
        ("lora_tagging", None, "tagging"),
        ("Lora_Training", [], "training"),
        ("user_request", GENERATION, "generation"),
        ("user_request", TAGGING, "tagging"),
        ("user_request", TRAINING, "training"),
        ("user_request", {"task_type": "LORA_TRAINING"}, "training"),
        ("user_request", {**GENERATION, "voice": 1}, None),
        ("user_request", {"type": "summary", **GENERATION}, None),
        ("user_request", "lora_generation", None),
        ("monitoring", GENERATION, None),
    ],
)
def test_rows_are_told_apart(task_type: str, payload: object, kind: Kind | None) -> None:
    assert recognise(task_type, payload) == kind


CAST: dict[str, Any] = {
    "character_name": "Duo",
    "stage": "generate",
    "members": [
        {"character": {"name": "Elara", "description": "1girl, brown hair"}},
        {"character": {"name": "Kai"}, "source": "own"},
    ],
}


def test_a_cast_comes_with_its_characters(settings: Settings) -> None:
    work = prepare("stage", CAST, settings)
    assert [each.character.name for each in work.run.member_runs] == ["Elara", "Kai"]
    assert [each.draws for each in work.run.member_runs] == [True, False]
    assert work.run.dataset_dir == settings.datasets_dir.resolve() / "Duo"


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ({"name": "../Kai", "description": "x"}, "holds '/'"),
        ({"name": "Elara", "description": "x"}, "Two characters"),
        ({"name": "Kai"}, "Kai has neither a description"),
        ({"name": "Kai", "reference_image": "/etc/hostname"}, "is no file inside"),
        ({"name": 7}, "name"),
    ],
)
def test_a_cast_by_hand_is_refused_in_a_sentence(settings: Settings, member: object, said: str) -> None:
    members = [CAST["members"][0], {"character": member}]
    with pytest.raises(PermanentError, match=said):
        prepare("stage", {**CAST, "members": members}, settings)
    with pytest.raises(PermanentError):
        prepare("stage", {**CAST, "members": [7, None]}, settings)


def test_lanes() -> None:
    assert lane_of("generation", GENERATION) == lane_of("training", {}) == "gpu"
    assert lane_of("tagging", TAGGING) == lane_of("stage", {"stage": "caption"}) == "cpu"
    assert lane_of("stage", {"stage": "train"}) == "gpu"


def test_a_payload_becomes_a_run(settings: Settings) -> None:
    work = prepare("generation", {**GENERATION, "settings": {"generate": {"images": 6}, "seed": 7}}, settings)
    assert work.stages == ("generate", "curate")
    assert work.run.dataset_dir == settings.datasets_dir / "Elara"
    assert (work.run.recipe.generate.images, work.run.recipe.seed) == (6, 7)
    tagging = prepare("tagging", TAGGING, settings)
    assert tagging.run.dataset_dir == work.run.dataset_dir
    assert tagging.run.character.tags == ("a", "b")
    training = prepare("training", {**TRAINING, "epochs": 3, "settings": {"train.rank": 4}}, settings)
    assert (training.run.recipe.train.epochs, training.run.recipe.train.rank) == (3, 4)
    assert training.run.output_name == "elara_v1"
    default = prepare("training", TRAINING, settings).run.recipe
    assert default == work.run.recipe.model_copy(
        update={"generate": default.generate, "seed": default.seed}
    )  # the contract's numbers do not overrule a recipe that the payload leaves alone


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        ("generation", [1], "JSON object"),
        ("generation", None, "JSON object"),
        ("generation", {"character_name": "E"}, "lacks 'description'"),
        ("generation", {**GENERATION, "description": 5}, "description"),
        ("generation", {**GENERATION, "description": "x" * 5_000_000}, "bytes"),
        ("generation", {**GENERATION, "character_name": "../../etc"}, "/"),
        ("generation", {**GENERATION, "character_name": "a/b"}, "/"),
        ("generation", {**GENERATION, "character_name": "a\0b"}, "NUL"),
        ("generation", {**GENERATION, "character_name": "🦊"}, "🦊"),
        ("generation", {**GENERATION, "character_name": "x" * 300}, "300"),
        ("generation", {**GENERATION, "output_dir": "../../etc"}, "output_dir"),
        ("generation", {**GENERATION, "output_dir": "/etc"}, "output_dir"),
        ("generation", {**GENERATION, "output_dir": "link/x"}, "output_dir"),
        ("generation", {**GENERATION, "output_dir": "a\0b"}, "output_dir"),
        ("generation", {**GENERATION, "output_dir": "x" * 5000}, "5000"),
        ("generation", {**GENERATION, "output_dir": "."}, "output_dir"),
        ("generation", {**GENERATION, "reference_image": "a.png"}, "reference"),
        ("generation", {**GENERATION, "recipe": "minni"}, "mini"),
        ("generation", {**GENERATION, "recipe": "../../secret"}, "recipe"),
        ("generation", {**GENERATION, "settings": {"trian.steps": 1}}, "train"),
        ("generation", {**GENERATION, "settings": {"generate": {"images": -1}}}, "images"),
        ("tagging", {**TAGGING, "image_dir": "/"}, "image_dir"),
        ("training", {**TRAINING, "network_dim": "many"}, "network_dim"),
        ("training", {**TRAINING, "epochs": -1}, "epochs"),
        ("training", {**TRAINING, "output_name": "../x"}, "../x"),
        ("training", {**TRAINING, "base_model": "/etc/passwd"}, "model.base"),
        ("training", {**TRAINING, "base_model": "nowhere"}, "nowhere"),
        ("stage", {**GENERATION, "stage": "bake"}, "stage"),
        ("generation", {**GENERATION, "description": "\ud800"}, "'description' holds"),
        ("generation", {**GENERATION, "settings": {"generate.prefix": ["a\0"]}}, "'settings' holds"),
        ("generation", {**GENERATION, "\ud800": 1}, "holds"),
        ("generation", {**GENERATION, "recipe": "x" * 100_000}, "There is no recipe"),
        ("generation", {**GENERATION, "character_name": "x" * 100_000}, "100000"),
        ("generation", {**GENERATION, "settings": {"x" * 100_000: 1}}, "no"),
        ("training", {**TRAINING, "epochs": 10**400}, "epochs is larger"),
        ("training", {**TRAINING, "network_alpha": float("inf")}, "network_alpha"),
        ("generation", {**GENERATION, "settings": {"train.alpha": float("inf")}}, "alpha"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    kind: Kind, payload: object, words: str, settings: Settings, tmp_path: Path
) -> None:
    settings.datasets_dir.mkdir()
    (settings.datasets_dir / "link").symlink_to("/etc")
    with pytest.raises(PermanentError) as caught:
        prepare(kind, payload, settings)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 500
    message.encode()


def test_a_payload_deeper_than_python_reads_is_one_sentence_too(settings: Settings) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = {"train": deep}
    for payload in (
        {**GENERATION, "settings": deep},
        {**GENERATION, "recipe": deep},
        {**GENERATION, "more": [deep]},
    ):
        with pytest.raises(InputError, match="deep"):
            prepare("generation", payload, settings)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text(alphabet="\0\ud800a./~"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["character_name", "description", "output_dir", "reference_image", "image_dir", "character_tags", "training_dir",
     "output_name", "base_model", "network_dim", "network_alpha", "epochs", "learning_rate", "recipe", "settings",
     "stage", "trigger", "task_uuid", "task_type", "type"]
)  # fmt: skip


@settings_of_hypothesis(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(["generation", "tagging", "training", "stage", "unknown"]),
    payload=JSON | st.dictionaries(FIELDS, JSON),
    good=st.sampled_from([GENERATION, TAGGING, TRAINING, {}]),
)
def test_whatever_a_payload_holds_it_is_a_run_or_one_sentence(
    kind: Kind, payload: Any, good: dict[str, Any], settings: Settings
) -> None:
    if isinstance(payload, dict):
        payload = good | payload
    recognise("user_request", payload)
    assert lane_of(kind, payload) in ("cpu", "gpu")
    said = ""
    try:
        run = prepare(kind, payload, settings).run
        assert settings.datasets_dir in run.dataset_dir.parents
    except PermanentError as error:
        said = str(error)
    assert len(said.encode()) < 2000
    assert len(said) < 500


@given(st.text(max_size=60))
def test_no_text_leads_out_of_the_folder(text: str) -> None:
    root = Path("/nowhere/datasets")
    try:
        folder = inside(root, text, "output_dir")
    except InputError:
        return
    assert root in folder.parents
