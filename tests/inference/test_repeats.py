"""A picture from its record: what decides pixels and the digest of weights does not know is recorded and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.metadata import PictureRecord
from vega_diffusion.models.autoencoder import build_tiny_autoencoder
from vega_diffusion.models.digest import model_digest
from vega_diffusion.specs.request import GenerateRequest
from vega_diffusion.specs.tiny_autoencoder import TinyAutoencoderSpec

SMALL = TinyAutoencoderSpec(
    encoder_block_out_channels=(8,) * 4,
    decoder_block_out_channels=(8,) * 4,
    num_encoder_blocks=(0, 1, 1, 1),
    num_decoder_blocks=(1, 1, 1, 0),
)
REQUEST = GenerateRequest(prompt="a cat", num_steps=1, guidance_scale=1.0, seed=4, decoder="tiny")


def put_tiny(model: Path, seed: int) -> None:
    torch.manual_seed(seed)
    build_tiny_autoencoder(SMALL).save_pretrained(model / "vae_tiny")


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model of the test's own, with a tiny autoencoder."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    put_tiny(folder, 0)
    return folder


@pytest.fixture
def record(model: Path) -> PictureRecord:
    """Of a picture that the tiny autoencoder decoded."""
    return drawn(model, REQUEST)


def drawn(model: Path, request: GenerateRequest) -> PictureRecord:
    (picture,) = Engine.load(str(model), device="cpu").generate(request)
    return picture.record


def told(model: Path, record: PictureRecord, **given: Any) -> tuple[str, ...]:
    return Engine.load(str(model), device="cpu").check_repeats(record, record.request.changed(given))


def test_nothing_is_said_of_what_is_as_it_was(model: Path, record: PictureRecord) -> None:
    assert record.tiny_sha256 == Engine.load(str(model), device="cpu").components.tiny_digest() is not None
    assert told(model, record) == ()
    full = drawn(model, REQUEST.model_copy(update={"decoder": None}))
    assert (full.tiny_sha256, full.tile_px) == (None, None)
    put_tiny(model, 1)
    assert told(model, full) == (), "where the full one decodes, the tiny one is no matter"


def test_another_tiny_autoencoder_or_none_is_said(model: Path, record: PictureRecord) -> None:
    put_tiny(model, 1)
    (line,) = told(model, record)
    assert line.startswith(f"the tiny autoencoder was {record.tiny_sha256[:10] if record.tiny_sha256 else ''} and is ")
    assert told(model, record, decoder="full") == (), "the request changed it itself"
    shutil.rmtree(model / "vae_tiny")
    assert told(model, record) == ("decoder was tiny and is full: the picture may differ",)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_other_settings_of_a_tokenizer_are_said(model: Path, record: PictureRecord, name: str) -> None:
    before = model_digest(model)
    path = model / "tokenizer_2" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}))
    assert model_digest(model) == before, "certificates and scores name it"
    (line,) = told(model, record)
    assert line.startswith("how prompts are read was ")


def test_another_rule_for_missing_negative_prompts_is_said(model: Path, record: PictureRecord) -> None:
    index, own = model / "model_index.json", model / "vega.json"
    own.unlink()
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": False}))
    (line,) = told(model, record)
    assert line.startswith("how prompts are read was ")


def test_tiles_are_recorded_and_compared(model: Path) -> None:
    request = REQUEST.model_copy(update={"profile": None, "decoder": "full"})
    engine = Engine.load(str(model), device="cpu", low_memory=True)
    (large,) = engine.generate(request.model_copy(update={"width": 800, "height": 800}))
    assert large.record.tile_px == 512
    assert engine.check_repeats(large.record, large.record.request) == ()
    assert told(model, large.record) == ("decoding was in tiles of 512 px and is whole: single pixels may differ",)
    assert told(model, large.record, width=64, height=64) == ()


def test_older_records_say_nothing_of_it_and_are_not_compared(model: Path, record: PictureRecord) -> None:
    written = json.loads(record.to_json())
    for field in ("tiny_sha256", "text_sha256", "tile_px"):
        del written[field]
    older = PictureRecord.from_json(json.dumps(written))
    put_tiny(model, 1)
    path = model / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text() + " ")
    assert told(model, older) == ()
