"""Cached captions: the same condition as encoding each time, growing, resuming, keyed by what decides them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vega_diffusion.data.latent_cache import LatentCache
from vega_diffusion.data.prompt_cache import open_prompts
from vega_diffusion.data.scene_latents import SceneLatents
from vega_diffusion.data.scenes.tokenizer import load_tokenizer
from vega_diffusion.data.tokens import TokenizerPair
from vega_diffusion.errors import VegaError
from vega_diffusion.models.text import build_text_encoder
from vega_diffusion.objectives.conditioning import encode_tokens
from vega_diffusion.specs.data import SceneLatentsSpec
from vega_diffusion.specs.presets import VEGA_MINI

CAPTIONS = [(f"{count} cats", f"a photo of {count} cats") for count in range(1, 8)]
FLAT = [text for pair in CAPTIONS for text in pair]
KEY: dict[str, str | int] = {"encoders": "a"}


@pytest.fixture(scope="module")
def tokenizers() -> TokenizerPair:
    return TokenizerPair(load_tokenizer(), load_tokenizer(second=True), 77)


@pytest.fixture(scope="module")
def encoders() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    assert VEGA_MINI.text_encoder_2 is not None
    return [build_text_encoder(spec).eval() for spec in (VEGA_MINI.text_encoder, VEGA_MINI.text_encoder_2)]


@pytest.fixture
def encode(tokenizers, encoders):
    calls: list[int] = []

    @torch.no_grad()
    def run(captions):
        calls.append(len(captions))
        return encode_tokens(*encoders, *tokenizers(captions))

    run.calls = calls  # type: ignore[attr-defined]
    return run


def latent_cache(folder: Path) -> LatentCache:
    posteriors = np.random.default_rng(0).random((len(CAPTIONS), 2, 4, 16, 16)).astype(np.float16)
    return LatentCache(folder, posteriors, np.zeros((len(CAPTIONS), 6), np.int16), CAPTIONS)


@pytest.mark.parametrize("empty", ["zeros", "encoded"])
def test_cached_captions_are_the_encoded_ones_sample_by_sample(tmp_path, tokenizers, encoders, encode, empty):
    spec = SceneLatentsSpec(captions_per_scene=2, empty_caption_rate=0.3, empty_condition=empty)
    prompts = open_prompts(tmp_path, KEY, FLAT, encode)
    live = SceneLatents(spec, latent_cache(tmp_path), tokenizers, 1.0, "v").load(range(40)).tensors
    cached = SceneLatents(spec, latent_cache(tmp_path), tokenizers, 1.0, "v", prompts).load(range(40)).tensors
    assert "input_ids" not in cached
    with torch.no_grad():
        first, second = encoders
        embeds, pooled = encode_tokens(first, second, live["input_ids"], live["input_ids_2"])
    torch.testing.assert_close(cached["prompt_embeds"], embeds, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cached["pooled_prompt_embeds"], pooled, rtol=2e-3, atol=2e-3)
    for name in live.keys() & cached.keys():
        assert torch.equal(live[name], cached[name]), name
    assert ("keep" in cached) == (empty == "zeros")


def test_a_longer_cache_only_adds(tmp_path, encode):
    first = open_prompts(tmp_path, KEY, FLAT[:6], encode)
    encode.calls.clear()
    longer = open_prompts(tmp_path, KEY, FLAT, encode)
    assert sum(encode.calls) == 1 + len(FLAT) - 6  # the empty caption to see the shapes, then what is new
    for before, after in zip(first.take(range(6)), longer.take(range(6)), strict=True):
        assert torch.equal(before, after)


def test_one_changed_caption_is_encoded_alone(tmp_path, encode):
    open_prompts(tmp_path, KEY, FLAT, encode)
    encode.calls.clear()
    changed = open_prompts(tmp_path, KEY, ["three dogs", *reversed(FLAT[1:]), "three dogs"], encode)
    assert encode.calls == [1, 1]
    first, last = changed.take([0, len(FLAT)])[0]
    assert torch.equal(first, last)


def test_other_encoders_get_another_folder(tmp_path, encode):
    open_prompts(tmp_path, KEY, FLAT[:2], encode)
    open_prompts(tmp_path, {"encoders": "b"}, FLAT[:2], encode)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, encode):
    (tmp_path / "file").write_text("")
    with pytest.raises(VegaError, match="cannot be written"):
        open_prompts(tmp_path / "file", KEY, FLAT, encode)
