"""The Hub around a run: tokens and repositories are checked first, exactly the result arrives, errors are one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_double import READ_TOKEN, TOKEN, HubDouble, hub  # noqa: F401 (a fixture)
from vega_diffusion.errors import InvalidValue, Unavailable, UnreadableModel
from vega_diffusion.training.hub import autoencoder_files, licence_of, open_repository, stated_licence, upload

# ruff: noqa: F811 (fixtures)


def test_a_repository_is_made_once_and_files_arrive(hub: HubDouble, tmp_path: Path):
    assert open_repository("dog", None) == "someone/dog"
    assert open_repository("someone/dog", TOKEN) == "someone/dog"
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "card").write_text("a card")
    address = upload(
        "someone/dog", {"unet/a.safetensors": tmp_path / "a.safetensors", "README.md": tmp_path / "card"}, None, "x"
    )
    assert address == f"{hub.endpoint}/someone/dog"
    assert hub.repositories == {"someone/dog": {"unet/a.safetensors": b"weights", "README.md": b"a card"}}


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        ("wrong", "dog", "does not take this token"),
        (READ_TOKEN, "dog", "may only read"),
        (TOKEN, "others/dog", "someone may not write to 'others/dog'"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: HubDouble, token: str, name: str, words: str):
    with pytest.raises(Unavailable, match=words) as refused:
        open_repository(name, token)
    assert "\n" not in str(refused.value)
    assert token not in str(refused.value)
    assert hub.repositories == {}


def test_a_name_that_is_none_and_no_token_at_all(hub: HubDouble, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InvalidValue, match="--hub_model_id: 'a b'"):
        open_repository("a b", TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Unavailable, match="no token; log in"):
        open_repository("dog", None)


def test_no_network_is_one_line(hub: HubDouble, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="the Hub cannot be reached") as refused:
        open_repository("dog", TOKEN)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="the Hub cannot be reached"):
        open_repository("dog", TOKEN)


def test_a_failed_upload_says_that_the_result_is_kept(hub: HubDouble, tmp_path: Path):
    repository = open_repository("dog", TOKEN)
    (tmp_path / "card").write_text("a card")
    hub.fails = ("/commit/main",)
    with pytest.raises(Unavailable, match="the result is kept, run the same command with --resume_from_checkpoint"):
        upload(repository, {"README.md": tmp_path / "card"}, TOKEN, "x")


def test_an_autoencoder_is_found_among_the_files_of_a_repository():
    alone = ["README.md", "config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
    assert autoencoder_files(alone) == ["config.json", "diffusion_pytorch_model.safetensors"]
    half = ["unet/config.json", "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors"]
    assert autoencoder_files(half) == half[1:]
    with pytest.raises(UnreadableModel):
        autoencoder_files(["config.json", "diffusion_pytorch_model.bin"])


def test_the_licence_is_the_one_that_is_stated(tmp_path: Path):
    assert licence_of("vega-mini", None) == "apache-2.0"
    assert licence_of("segmind/Segmind-Vega", None) == "apache-2.0"
    assert licence_of("stabilityai/stable-diffusion-xl-base-1.0", None) == "openrail++"
    assert licence_of(str(tmp_path), tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n\nlicense: other")
    assert licence_of(str(tmp_path), tmp_path) == "mit"
    assert stated_licence('---\nlicense: other\nlicense_name: "my own"\n---\n') == "other (my own)"
    assert stated_licence("no head") is None
