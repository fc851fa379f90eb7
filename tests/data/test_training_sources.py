"""The sources of training: pure functions of position, held-out combinations never come, caches grow and resume."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from vega_diffusion.data.latent_cache import LatentCacheBuilder
from vega_diffusion.data.row_cache import folder_name
from vega_diffusion.data.scene_captions import SceneCaptions
from vega_diffusion.data.scene_images import SceneImages
from vega_diffusion.data.scene_latents import SceneLatents
from vega_diffusion.data.scene_stream import phrasings, scene_stream, stream_digest, stream_identity
from vega_diffusion.data.scenes.atlas import SpriteAtlas
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.data.scenes.targets import IGNORE, mention_classes, mention_sizes, slot_sizes
from vega_diffusion.data.scenes.tokenizer import load_tokenizer
from vega_diffusion.data.scenes.vocabulary import load_vocabulary
from vega_diffusion.data.tokens import TokenizerPair
from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.data import SceneLatentsSpec, SceneMixSpec
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.components import model_spec
from vega_diffusion.training.sources import open_latents

STREAM = scene_stream(SceneMixSpec())


@pytest.fixture(scope="module")
def renderer():
    return SceneRenderer(SpriteAtlas.load())


@pytest.fixture(scope="module")
def tokenizers():
    return TokenizerPair(load_tokenizer(), load_tokenizer(second=True), 77)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    build: Any = AutoencoderKL  # diffusers types tuples of any length as tuples of one
    return build(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()


@pytest.fixture
def builder(tmp_path, renderer, vae):
    def make(**identity):
        return LatentCacheBuilder(tmp_path, identity, renderer, STREAM, partial(phrasings, seed=1), vae, 1, 2)

    return make


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sources(renderer, tokenizers, builder):
    latents = SceneLatents(SceneLatentsSpec(captions_per_scene=2), builder().open(12), tokenizers, 0.5, "v")
    return {
        "images": SceneImages(renderer, STREAM, 1, "v"),
        "captions": SceneCaptions(STREAM, tokenizers, 1, "v"),
        "latents": latents,
    }


@pytest.mark.parametrize("name", ["images", "captions", "latents"])
def test_a_sample_is_a_function_of_its_position(name, renderer, tokenizers, builder):
    source = sources(renderer, tokenizers, builder)[name]
    together, alone = source.load([3, 4, 5]), source.load([4])
    assert together.sample_ids[1:2] == alone.sample_ids
    for key, value in alone.tensors.items():
        length = value.shape[1] if key.startswith("input_ids") else None
        expected = together.tensors[key][1:2] if length is None else together.tensors[key][1:2, :length]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert same(source.load([3, 4, 5]).tensors, together.tensors)


def test_shapes_and_ranges(renderer, tokenizers, builder):
    found = sources(renderer, tokenizers, builder)
    pixels = found["images"].load(range(2)).tensors["pixels"]
    assert pixels.shape == (2, 3, 128, 128)
    assert pixels.abs().max() <= 1
    captions = found["captions"].load(range(5)).tensors
    assert {name.removeprefix("target.") for name in captions if name.startswith("target.")} == set(slot_sizes())
    assert {name.removeprefix("mention.") for name in captions if name.startswith("mention.")} == set(mention_sizes())
    assert all(captions[f"mention.{slot}"].shape == (5, 2) for slot in mention_sizes())
    assert captions["input_ids"].shape[1] % 8 == 0
    assert captions["input_ids"].shape[1] < 77
    assert (captions["input_ids"] == 4095).any(dim=1).all()
    latents = found["latents"].load(range(5)).tensors
    assert latents["latents"].shape == (5, 4, 16, 16)
    assert latents["input_ids"].shape == latents["input_ids_2"].shape == (5, 77)
    assert latents["time_ids"].shape == (5, 6)
    assert latents["keep"].dtype == torch.bool


def test_mentions_are_read_at_the_last_token_of_the_name(tokenizers):
    batch = SceneCaptions(STREAM, tokenizers, 1, "v").load(range(60))
    names, tokenizer, seen = mention_classes()["noun"], tokenizers.tokenizers[0], 0
    for row, (at, nouns) in enumerate(
        zip(batch.tensors["mention_at"].tolist(), batch.tensors["mention.noun"].tolist(), strict=True)
    ):
        for index, noun in zip(at, nouns, strict=True):
            assert (index == 0) == (noun == IGNORE)
            if noun == IGNORE:
                continue
            said = tokenizer.decode(batch.tensors["input_ids"][row, 1 : index + 1].tolist()).strip()
            forms = [word for form in load_vocabulary().noun(names[noun]).forms for word in (form.text, form.plural)]
            assert any(word and said.endswith(word.lower()) for word in forms), (said, names[noun])
            seen += 1
    assert seen >= 60


def test_latents_are_drawn_from_the_posterior_and_scaled(renderer, tokenizers, builder, vae):
    cache = builder().open(4)
    spec = SceneLatentsSpec(captions_per_scene=2)
    source = SceneLatents(spec, cache, tokenizers, 0.5, "v")
    row = int(source.load([2]).sample_ids[0].rpartition("/")[2])
    with torch.no_grad():
        posterior = vae.encode(renderer.render([STREAM(1, row)])).latent_dist
    draws = torch.cat([source.load([2 + 4 * epoch]).tensors["latents"] for epoch in range(1)])
    torch.testing.assert_close(
        torch.from_numpy(np.array(cache.posteriors[row, 0])).float(), posterior.mean[0], rtol=2e-3, atol=2e-3
    )
    assert ((draws / 0.5 - posterior.mean) / posterior.std).abs().max() < 6
    later = [source.load([p]) for p in range(40)]
    mine = torch.cat([b.tensors["latents"] for b in later if b.sample_ids[0] == f"scene {spec.seed}/{row}"])
    assert len(mine) == 10
    assert mine.std(dim=0).mean().item() == pytest.approx(0.5 * posterior.std.mean().item(), rel=0.2)


def test_empty_captions_come_at_their_rate_and_all_phrasings_are_used(tokenizers, builder):
    cache = builder().open(4)
    for condition in ("zeros", "encoded"):
        spec = SceneLatentsSpec(captions_per_scene=2, empty_caption_rate=0.25, empty_condition=condition)
        tensors = SceneLatents(spec, cache, tokenizers, 1.0, "v").load(range(400)).tensors
        empty = (tensors["input_ids"] == tokenizers([""])[0]).all(dim=1)
        assert empty.float().mean().item() == pytest.approx(0.25, abs=0.07)
        assert ("keep" in tensors) == (condition == "zeros")
        if condition == "zeros":
            assert torch.equal(tensors["keep"], ~empty)
        kinds = {tuple(row) for row in tensors["input_ids"][~empty].tolist()}
        known = {tuple(tokenizers([text])[0][0].tolist()) for texts in cache.captions for text in texts}
        assert kinds == known


def test_a_cache_grows_and_keeps_what_it_has(builder):
    small, large = builder().open(5), builder().open(9)
    assert small.folder == large.folder
    assert np.array_equal(small.posteriors, large.posteriors[:5])
    assert small.captions == large.captions[:5]
    assert np.array_equal(large.time_ids[7], STREAM(1, 7).time_ids)
    assert builder(other=1).rows.folder != large.folder


def test_mixes_reach_the_scenes():
    stream = scene_stream(SceneMixSpec(nouns=("cat",), styles=("noto",), kinds={"single": 1.0}))
    scenes = [stream(0, position) for position in range(20)]
    assert {(s.style, s.objects[0].noun, s.caption_kind) for s in scenes} == {("noto", "cat", "single")}
    assert stream_digest(stream, 0) != stream_digest(STREAM, 0) != stream_digest(STREAM, 1)
    with pytest.raises(InvalidValue, match="unicorn-shop"):
        scene_stream(SceneMixSpec(nouns=("unicorn-shop",)))


def test_a_mix_that_the_first_scenes_do_not_show_has_latents_of_its_own(tmp_path, monkeypatch):
    """The digest sees 64 scenes: a rare thing comes later. A run's fingerprint stays what saved runs have."""
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    found = []
    for rate in (1e-9, 2e-9):
        mix = {"high_resolution_rate": rate, "low_resolution_rate": 0.0}
        data = {"kind": "scene_latents", "num_scenes": 2, "captions_per_scene": 1, "mix": mix}
        recipe = TrainRecipe.from_dict(
            {
                "model": {"base": "vega-mini", "train": ["unet"], "weights": {"vae": "vega-mini"}},
                "data": data,
                "objective": {"kind": "denoising"},
                "steps": 1,
                "batch_size": 1,
                "micro_batch_size": 1,
            }
        )
        assert isinstance(recipe.data, SceneLatentsSpec)
        stream = scene_stream(recipe.data.mix)
        found.append(open_latents(recipe, recipe.data, model_spec(recipe), stream, torch.device("cpu")))
    (first, _, name), (second, _, same_name) = found
    assert name == same_name
    assert first.folder != second.folder
    decides = json.loads((first.folder / "identity.json").read_text())
    assert decides.pop("mix") != json.loads((second.folder / "identity.json").read_text())["mix"]
    assert decides.pop("grammar")
    assert folder_name(decides) == name
    keys = [SceneLatents(SceneLatentsSpec(), one, None, 1.0, name).keys([0])[0].key for one in (first, second)]  # type: ignore[arg-type]
    assert keys[0] != keys[1]
    assert stream_identity(SceneMixSpec()) == stream_identity(SceneMixSpec(crop_rate=0.08)), "the default, said"
