"""Recipes: strict, frozen, round-tripping, changed by `--set`, and known by what decides their weights."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vega_diffusion.errors import InvalidValue, MissingFile, VegaError
from vega_diffusion.specs.recipe import MAY_CHANGE, TrainRecipe, apply_change, flatten

TOML = """
steps = 100
batch_size = 8
micro_batch_size = 4
[model]
base = "vega-mini"
train = ["unet", "text_encoder"]
freeze_after = { text_encoder = 10 }
[data]
kind = "scene_latents"
[objective]
kind = "denoising"
[optimizer]
betas = [0.8, 0.95]
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(TOML)
    return file


def refused(path, *changes):
    with pytest.raises(VegaError) as error:
        TrainRecipe.read(path, changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_and_round_trips(path):
    recipe = TrainRecipe.read(path)
    assert recipe.optimizer.betas == (0.8, 0.95)  # type: ignore[union-attr]
    assert recipe.objective.kind == "denoising"
    assert TrainRecipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(ValidationError):
        recipe.steps = 3  # type: ignore[misc]


def test_changes_reach_every_depth(path):
    changes = (
        "steps=7",
        "optimizer.lr = 1e-5",
        "objective.min_snr_gamma=2",
        "model.weights.vae=run:some",
        "ema.decay=0.5",
    )
    recipe = TrainRecipe.read(path, changes)
    assert (recipe.steps, recipe.optimizer.lr, recipe.model.weights["vae"]) == (7, 1e-5, "run:some")
    assert recipe.objective.min_snr_gamma == 2  # type: ignore[union-attr]
    assert recipe.ema is not None
    assert recipe.ema.decay == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("stepz=3", ("stepz", "known keys", "rename")),
        ("optimizer.momentum=0.9", ("optimizer.momentum", "known keys")),
        ('steps="100"', ("steps", "'100'", "integer")),
        ("steps=1.5", ("steps", "1.5")),
        ("steps=0", ("steps", "greater than 0")),
        ("steps=true", ("steps", "True")),
        ("optimizer.lr=-1.0", ("optimizer.lr", "-1.0")),
        ("optimizer.betas=[0.9]", ("optimizer.betas",)),
        ("optimizer.betas=[0.9, 1.0]", ("optimizer.betas", "less than 1")),
        ("objective.kind=dreaming", ("objective", "denoising")),
        ("objective.kl_weight=1.0", ("kl_weight", "known keys")),
        ("mixed_precision=fp8", ("mixed_precision", "'fp8'", "bf16")),
        ("micro_batch_size=3", ("micro_batch_size", "divisor of batch_size 8")),
        ("data.kind=scene_images", ("data.kind", "scene_latents or image_latents for objective denoising")),
        ('model.train=["vae"]', ("model.train", "unet")),
        ('model.train=["text_encoder"]', ("model.train", "unet")),
        ('compile=["vae"]', ("compile", "'vae'", "unet, text_encoder")),
        ('model.freeze=["text_encoder_2.encoder"]', ("model.freeze", "text_encoder_2.encoder")),
        ('model.words=["two words"]', ("model.words", "single words")),
        ("optimizer.lr_factors={text_encoder_2=0.1}", ("optimizer.lr_factors", "text_encoder_2")),
        ("lr_schedule.warmup_steps=100", ("lr_schedule.warmup_steps", "fewer than steps 100")),
        ("lr_schedule.final_factor=0.1", ("lr_schedule.final_factor", "nothing with kind constant")),
        ("data.mix.flip_rate=2.0", ("data", "flip_rate", "2.0")),
        ("steps", ("--set", "path=value")),
        ("steps.more=1", ("steps.more", "not a table")),
    ],
)
def test_mistakes_are_one_line_that_names_them(path, change, words):
    message = refused(path, change)
    assert all(word in message for word in words), message


def test_words_need_a_text_encoder_that_learns_them(path):
    word = 'model.words=["new"]'
    assert "a file of adapters holds no words" in refused(path, word, "model.lora.rank=2")
    assert "with a text encoder in model.train" in refused(path, word, 'model.train=["unet"]', "model.freeze_after={}")
    assert TrainRecipe.read(path, [word]).model.words == ("new",)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(MissingFile, match="nowhere.toml: cannot be read"):
        TrainRecipe.read(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(VegaError, match=r"broken.toml: not valid TOML"):
        TrainRecipe.read(broken)
    with pytest.raises(VegaError, match="missing"):
        empty = tmp_path / "empty.toml"
        empty.write_text("")
        TrainRecipe.read(empty)


def test_identity_ignores_only_what_moves_no_weight(path):
    recipe = TrainRecipe.read(path)
    free = TrainRecipe.read(
        path,
        [
            *("steps=200", "save_every=1", "keep=9", "log_every=3", "sample_every=4", "micro_batch_size=2"),
            *("samples.num_steps=4", "samples.prompts=['a cat']", "tracker=wandb", "cuda_graphs=true"),
        ],
    )
    assert len(MAY_CHANGE) == 11
    assert recipe.digest() == free.digest()
    assert free.changed_keys(recipe.identity()) == []
    for change in ("seed=1", "optimizer.eps=1e-7", "model.weights.vae=x", "ema.warmup=3", "data.mix.white_rate=0.2"):
        other = TrainRecipe.read(path, [change])
        assert other.digest() != recipe.digest()
        assert other.changed_keys(recipe.identity()) == [change.partition("=")[0]]


def test_every_field_is_in_the_identity_or_free(path):
    keys = set(TrainRecipe.read(path).identity())
    top = {key.split(".")[0] for key in keys}
    assert top | MAY_CHANGE == set(TrainRecipe.model_fields)


def test_a_recipe_saved_before_there_was_a_setting_still_stands(path):
    old = TrainRecipe.read(path).identity()
    for key in ("model.dtype", "channels_last", "compile"):
        old.pop(key)
    assert TrainRecipe.read(path).changed_keys(old) == []
    assert TrainRecipe.read(path, ["channels_last=true"]).changed_keys(old) == ["channels_last"]
    old.pop("optimizer.lr")
    assert TrainRecipe.read(path, ["optimizer.lr=2e-4"]).changed_keys(old) == ["optimizer.lr"]


@pytest.mark.parametrize(
    ("saved", "now", "key"),
    [
        (("optimizer.weight_decays={unet=0.0}",), (), "optimizer.weight_decays.unet"),
        ((), ("optimizer.weight_decays={unet=0.0}",), "optimizer.weight_decays.unet"),
        (("ema=none",), (), "ema.decay"),
        ((), ("ema=none",), "ema.decay"),
        (("model.freeze_after={}",), ("model.freeze_after={}", "model.lora={}"), "model.lora.rank"),
        (("model.freeze_after={}", "model.lora={}"), ("model.freeze_after={}",), "model.lora.rank"),
    ],
)
def test_nothing_and_a_table_of_defaults_are_two_things(path, saved, now, key):
    before, after = TrainRecipe.read(path, saved), TrainRecipe.read(path, now)
    assert key in after.changed_keys(before.identity())
    older = {name: value for name, value in before.identity().items() if value is not None}  # of before there was lora
    assert key in after.changed_keys(older) or key == "ema.decay"
    assert before.changed_keys(before.identity()) == after.changed_keys(after.identity()) == []


def test_none_is_a_value_of_sharding(path):
    assert TrainRecipe.read(path, ["sharding=none"]).sharding == "none"


def test_none_is_no_value(path):
    recipe = TrainRecipe.read(path, ["ema=none", "max_grad_norm=none", "objective.min_snr_gamma=none"])
    assert (recipe.ema, recipe.max_grad_norm, recipe.objective.min_snr_gamma) == (None, None, None)  # type: ignore[union-attr]
    assert "steps: None" in refused(path, "steps=none")


def test_change_builds_tables_and_takes_plain_text():
    data: dict = {}
    apply_change(data, "a.b.c=plain text: it is not TOML")
    apply_change(data, "a.d=[1, 2]")
    assert flatten(data) == {"a.b.c": "plain text: it is not TOML", "a.d": [1, 2]}
    with pytest.raises(InvalidValue):
        apply_change(data, "=3")


def test_a_component_starts_from_one_place_only(path):
    surgery = 'model.surgery={ teacher = "vega-mini", map = "first" }'
    message = refused(path, 'model.weights.unet="vega-mini"', surgery)
    assert all(word in message for word in ("model.weights.unet", "model.surgery", "remove one"))
