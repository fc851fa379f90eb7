"""From what a user calls a model to a folder; nothing here reaches the network."""

from __future__ import annotations

from pathlib import Path

import pytest

from vega_diffusion.errors import InvalidValue, MissingFile, Unavailable, UnreadableModel, VegaError
from vega_diffusion.models.find import (
    EMBEDDED,
    HUB_IDS,
    TEACHERS,
    files_to_fetch,
    find_folder,
    package_root,
    repository_root,
    resolve_model,
)


def test_a_folder_is_itself(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(tiny_folder) == tiny_folder
    assert resolve_model(str(tiny_folder)) == tiny_folder
    monkeypatch.chdir(tiny_folder.parent)
    assert resolve_model("./tiny").resolve() == tiny_folder.resolve()
    assert resolve_model("tiny").resolve() == tiny_folder.resolve()


def test_an_incomplete_folder_is_refused(tiny_folder: Path) -> None:
    (tiny_folder / "vae" / "config.json").unlink()
    with pytest.raises(UnreadableModel, match="component vae is missing"):
        resolve_model(tiny_folder)
    # To describe a model its weights are not needed.
    assert find_folder(tiny_folder) == tiny_folder


@pytest.mark.parametrize("name", [*EMBEDDED, *TEACHERS])
def test_a_known_name_is_found_or_says_how_to_get_it(name: str) -> None:
    home = package_root() / "assets" if name in EMBEDDED else repository_root() / "weights"
    if (home / name / "model_index.json").is_file():
        assert resolve_model(name) == home / name
        return
    with pytest.raises(MissingFile) as caught:
        resolve_model(name)
    assert name in str(caught.value)
    assert ("reinstall" if name in EMBEDDED else f"vega train {TEACHERS[name]}") in str(caught.value)


def test_the_recipes_that_are_named_exist() -> None:
    assert all((repository_root() / recipe).is_file() for recipe in TEACHERS.values())


@pytest.mark.parametrize("name", HUB_IDS)
def test_an_architecture_without_weights_names_its_hub_id(name: str) -> None:
    with pytest.raises(MissingFile, match=HUB_IDS[name]):
        resolve_model(name)


@pytest.mark.parametrize("name", ["vega-minni", "", "no/such/folder", "C:\\models", "../nowhere"])
def test_an_unknown_model_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        resolve_model(name)
    assert caught.value.field == "model"
    assert "vega-mini" in str(caught.value)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnreadableModel, match="is a file.*vega convert folder"):
        resolve_model(tmp_path / "model.safetensors")


def test_a_hub_id_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The suite runs offline (conftest): the Hub's own client says so, and we say it in one line."""
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="'segmind/Segmind-Vega' is not in the Hub's cache") as caught:
        resolve_model("segmind/Segmind-Vega")
    assert isinstance(caught.value, VegaError)
    assert "\n" not in str(caught.value)


_HUB_LISTING = """
.gitattributes README.md model_index.json segmind-vega.safetensors vega.png
scheduler/scheduler_config.json
text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors
text_encoder/pytorch_model.bin text_encoder/flax_model.msgpack text_encoder/model.onnx
text_encoder_2/config.json text_encoder_2/model.safetensors.index.json
text_encoder_2/model-00001-of-00002.safetensors text_encoder_2/model-00002-of-00002.safetensors
tokenizer/merges.txt tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json tokenizer/vocab.json
tokenizer_2/merges.txt tokenizer_2/special_tokens_map.json tokenizer_2/tokenizer_config.json tokenizer_2/vocab.json
unet/config.json unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.fp16.safetensors
unet/openvino_model.xml unet/diffusion_pytorch_model.fp16.bin
vae/config.json vae/diffusion_pytorch_model.safetensors vae_1_0/diffusion_pytorch_model.fp16.safetensors
"""
HUB_FILES = _HUB_LISTING.split()


def test_of_a_hub_repository_only_what_is_needed_is_fetched() -> None:
    chosen = files_to_fetch(HUB_FILES)
    weights = [name for name in chosen if name.endswith(".safetensors")]
    assert weights == [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    rest = {name for name in chosen if name not in weights}
    small = {name for name in HUB_FILES if name.endswith((".json", ".txt"))}
    assert rest == small
    assert len(chosen) == len(set(chosen))


def test_a_repository_without_safetensors_is_refused() -> None:
    pickles = [name for name in HUB_FILES if not name.startswith("unet/diffusion_pytorch_model")]
    with pytest.raises(UnreadableModel, match="component unet has no safetensors weights"):
        files_to_fetch(pickles)
