"""Recipes: typed, documented, and strict about every key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.domain.recipe import Recipe, field_paths, parse_recipe
from lora_foundry.domain.sharing import shareable_recipe
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe, recipe_names, recipe_toml


def test_the_original_numbers_are_kept() -> None:
    recipe = load_recipe("sd15-original")
    made, train = recipe.generate, recipe.train
    assert (made.images, made.width, made.height, made.steps, made.cfg, made.batch_size) == (
        40,
        768,
        768,
        28,
        7.5,
        4,
    )
    assert (made.sampler, made.scheduler) == ("dpmpp_2m", "karras")
    assert (train.rank, train.alpha, train.epochs, train.repeats, train.batch_size) == (32, 16, 15, 10, 1)
    assert (train.learning_rate, train.lr_schedule, train.warmup_steps) == (1e-4, "cosine_with_restarts", 100)
    assert (train.min_snr_gamma, train.precision, train.keep_tokens, train.seed) == (5, "fp16", 1, 42)
    assert recipe.total_steps == 6000


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.rnk=8", "did you mean 'train.rank'"),
        ("trian.rank=8", "did you mean 'train'"),
        ("rank=8", "did you mean 'train.rank'"),
        ("train.rank=0", "train.rank = 0 is not possible"),
        ("generate.images=0", "generate.images = 0"),
        ("train.rank=many", "train.rank = 'many'"),
        ("train.rank", "section.key=value"),
        ("=3", "section.key=value"),
        ("train.rank.x=3", "not possible"),
        ("generate.width=100", "multiple of 8"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("train.learning_rate=-1", "greater than 0"),
        ("seed=-1", "seed = -1"),
    ],
)
def test_bad_settings_are_refused_in_words(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_recipe("mini", [setting])


def test_settings_change_values_of_every_type() -> None:
    recipe = load_recipe(
        "mini",
        [
            "train.rank=8",
            "train.learning_rate=1e-3",
            "caption.prune_identity=false",
            "model.base=my model",
            'caption.keep=["crown"]',
            "seed=7",
        ],
    )
    assert recipe.train.rank == 8
    assert recipe.train.learning_rate == 1e-3
    assert recipe.caption.prune_identity is False
    assert recipe.model.base == "my model"
    assert recipe.caption.keep == ("crown",)
    assert recipe.seed == 7


def test_unknown_recipes_and_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'mini'"):
        load_recipe("mimi")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(str(tmp_path / "absent.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\n")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(str(broken))
    broken.write_text("name = 'x'\n")
    with pytest.raises(InputError, match="lacks"):
        load_recipe(str(broken))


def test_a_recipe_file_of_the_users_own_works(tmp_path: Path) -> None:
    import lora_foundry.recipes as shipped

    text = (Path(str(shipped.__file__)).parent / "mini.toml").read_text()
    own = tmp_path / "with a space é.toml"
    own.write_text(text.replace('name = "mini"', 'name = "own"'), encoding="utf-8")
    assert load_recipe(str(own)).name == "own"


@given(st.text(max_size=40))
def test_any_setting_is_applied_or_refused(setting: str) -> None:
    try:
        loaded = load_recipe("mini", [setting])
    except InputError:
        return
    assert isinstance(loaded, Recipe)


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_recipe(text, "text")


def test_every_field_is_described() -> None:
    for path in field_paths():
        section: type = Recipe
        for part in path.split("."):
            field = section.model_fields[part]  # type: ignore[attr-defined]
            section = field.annotation
        assert field.description, path


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['train.optimizer="schedule_free"'], 'needs train.lr_schedule = "constant"'),
        (['train.optimizer="schedule_free"', 'train.lr_schedule="constant"', "train.ema=0.9"], "train.ema"),
        (['train.optimizer="prodigy"'], "needs train.learning_rate = 1.0"),
        (
            ['train.optimizer="prodigy"', "train.learning_rate=1.0", "train.text_encoder_rate=0.1"],
            "Prodigy has one rate",
        ),
        (["train.noise_offset=0.1", "train.multires_noise=0.3"], "do the same thing"),
        (['train.network="loha"', "train.max_norm=1"], "train.max_norm"),
        (["train.targets=[]"], "train.targets is empty"),
    ],
)
def test_settings_that_contradict_one_another_are_refused_in_one_sentence(
    settings: list[str], words: str
) -> None:
    with pytest.raises(InputError) as failure:
        load_recipe("mini", settings)
    assert words in str(failure.value)
    assert len(str(failure.value)) < 130


@pytest.fixture
def own_recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    return folder


def test_a_recipe_of_ones_own_is_five_lines(own_recipes: Path) -> None:
    (own_recipes / "mine.toml").write_text(
        'extends = "sdxl"\n[train]\nrank = 8\n[caption]\nquality_tags = ["very awa"]\n', encoding="utf-8-sig"
    )
    mine, sdxl = load_recipe("mine", ["seed=5"], [own_recipes]), load_recipe("sdxl")
    assert (mine.name, mine.train.rank, mine.caption.quality_tags, mine.seed) == ("mine", 8, ("very awa",), 5)
    assert mine.generate == sdxl.generate
    assert mine.shots == sdxl.shots
    assert "mine" in recipe_names([own_recipes])
    assert "mine" not in recipe_names()


def test_own_recipes_extend_one_another_and_files_beside_them_but_not_in_a_circle(own_recipes: Path) -> None:
    (own_recipes / "first.toml").write_text('extends = "second"\nseed = 1\n')
    (own_recipes / "second.toml").write_text('extends = "_hidden.toml"\n[train]\nrank = 9\n')
    (own_recipes / "_hidden.toml").write_text('extends = "mini"\nseed = 3\n')
    first = load_recipe("first", folders=[own_recipes])
    assert (first.seed, first.train.rank) == (1, 9)
    assert recipe_names([own_recipes]) == tuple(sorted({*recipe_names(), "first", "second"}))
    (own_recipes / "second.toml").write_text('extends = "first"\n')
    with pytest.raises(InputError, match="in a circle: first -> second -> first"):
        load_recipe("first", folders=[own_recipes])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('extends = "sdlx"', "did you mean 'sdxl'"),
        ("extends = 3", "must be a name or names"),
        ("extends = []", "must be a name or names"),
        ('extends = "sdxl"\n[train]\nrnak = 3', "did you mean 'train.rank'"),
        ('extends = "mini', "not valid TOML"),
    ],
)
def test_what_is_wrong_with_an_own_recipe_is_said(own_recipes: Path, text: str, sentence: str) -> None:
    (own_recipes / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        load_recipe("mine", folders=[own_recipes])


def test_a_shipped_name_is_not_taken_over_by_a_file(own_recipes: Path) -> None:
    (own_recipes / "mini.toml").write_text('extends = "sdxl"\n')
    assert load_recipe("mini", folders=[own_recipes]) == load_recipe("mini")


@pytest.mark.parametrize("name", recipe_names())
def test_an_exported_recipe_is_the_same_recipe(own_recipes: Path, name: str) -> None:
    recipe = load_recipe(name, ['caption.keep=["a \\"b\\" \\\\ é\\u007f"]'])
    (own_recipes / "copy.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe("copy", folders=[own_recipes]) == recipe.model_copy(update={"name": "copy"})


def test_paths_of_every_kind_of_field_are_not_shared() -> None:
    changes = [
        'generate.references=["/home/me/a.png", "C:\\\\me\\\\b.png"]',
        "generate.workflow=/home/me/w.json",
    ]
    shared = shareable_recipe(load_recipe("mini", changes))
    assert shared.generate.references == (), "a picture's name is its owner's, too"
    assert shared.generate.workflow == "w.json"
    assert "/me" not in shared.model_dump_json()
