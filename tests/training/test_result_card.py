"""The card of what a script trained: its head is what the Hub reads, its text names licence, settings and data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from vega_diffusion.specs.diffusers_flags import DREAMBOOTH, FULL
from vega_diffusion.specs.recipe import TrainRecipe
from vega_diffusion.training.result_card import ResultFacts, result_card, without_places


def facts(**changes: Any) -> ResultFacts:
    recipe: dict[str, Any] = {
        "model": {"base": "/somewhere/tiny", "train": ["unet"], "lora": {"rank": 4}, "weights": {"vae": "/else/vae"}},
        "data": {"kind": "image_latents", "folder": "/secret/place/dog", "caption": 'a "sks" dog', "max_aspect": 1.0},
        "objective": {"kind": "denoising", "min_snr_gamma": None},
        "samples": {"prompts": ["a sks dog on the beach"], "num_images": 1, "seed": 5},
        "sample_every": 10,
        "ema": None,
        "steps": 1500,
        "batch_size": 4,
        "micro_batch_size": 1,
    }
    known: dict[str, Any] = {
        "name": "dog-lora",
        "script": DREAMBOOTH,
        "base": "segmind/Segmind-Vega",
        "licence": "apache-2.0",
        "recipe": TrainRecipe.from_dict(recipe),
        "steps": 1500,
        "seconds": 61.2,
        "num_pictures": 5,
        "data_hash": "pictures=abc",
        "last_loss": 0.125,
        "pictures": ("image_0.png",),
        "kohya": None,
    }
    return ResultFacts(**(known | changes))


def head(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_head_is_what_the_hub_reads():
    found = head(result_card(facts()))
    assert found == {
        "license": "apache-2.0",
        "base_model": "segmind/Segmind-Vega",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "stable-diffusion-xl", "diffusers-training", "lora", "dreambooth"],
        "instance_prompt": 'a "sks" dog',
    }
    own = head(result_card(facts(licence="other (my-terms)", base="/somewhere/tiny")))
    assert (own["license"], own["license_name"]) == ("other", "my-terms")
    assert "base_model" not in own
    unknown = result_card(facts(licence=None))
    assert "license" not in head(unknown)
    assert "whose licence is not stated beside it" in unknown


def test_the_text_names_settings_and_data_and_no_place():
    card = result_card(facts(kohya="kohya.safetensors"))
    for words in (
        "A LoRA of rank 4 for `segmind/Segmind-Vega` (unet), trained on 5 pictures. Latents are those of the "
        "autoencoder `vae`.",
        '"a sks dog on the beach", seeds from 5 on',
        "![image_0.png](image_0.png)",
        'pipe.load_lora_weights("path/to/dog-lora")',
        'from_pretrained("segmind/Segmind-Vega")',
        "| optimizer steps | 1,500 |",
        "| samples of a step | 4 (1 at once) |",
        "| adapters | rank 4, alpha 4, dropout 0 |",
        "| loss at the end | 0.1250 |",
        "Identity of the samples: `pictures=abc`.",
        "`kohya.safetensors` holds the same adapters",
        '"rank": 4',
    ):
        assert words in card
    assert "/secret" not in card
    assert "/somewhere" not in card


def test_a_whole_model_and_missing_facts():
    bare = facts()
    model = bare.recipe.model.model_copy(update={"lora": None})
    card = result_card(
        replace(bare, script=FULL, recipe=bare.recipe.model_copy(update={"model": model}), last_loss=None)
    )
    assert "A whole model: the U-Net of `segmind/Segmind-Vega`" in card
    assert 'from_pretrained("path/to/dog-lora")' in card
    assert "load_lora_weights" not in card
    assert "| loss at the end | not logged |" in card
    assert "![" not in result_card(facts(pictures=()))


def test_places_become_names():
    assert without_places({"a": ["/x/y", "b/c", 3], "d": {"e": "/f"}}) == {"a": ["y", "b/c", 3], "d": {"e": "f"}}
