"""Writing folders: all or nothing, also when the disk is full; the networks' own architecture is what is written."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vega_diffusion.errors import VegaError
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.export import ModelParts, new_folder, save_model
from vega_diffusion.models.layout import check_folder
from vega_diffusion.specs.architecture import ModelSpec


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes, as a full disk does (Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_written_folder_is_whole_and_states_its_spec(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts
) -> None:
    folder = tmp_path / "deep" / "model"
    written = save_model(folder, tiny_spec, tiny_parts, provenance={"recipe": "r"}, card="# x\n")
    check_folder(folder)
    assert written == tiny_spec == load_spec(folder)
    stated = json.loads((folder / "vega.json").read_text())
    assert (stated["schema"], stated["provenance"]) == (1, {"recipe": "r"})
    assert (folder / "README.md").read_text() == "# x\n"
    # fp16 alone by default: it is what ships.
    assert [path.name for path in (folder / "unet").glob("*.safetensors")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]


def test_the_architecture_of_the_networks_wins(tmp_path: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> None:
    """A scaling factor measured after training is in the autoencoder's config, not in the preset."""
    preset_like = tiny_spec.model_copy(
        update={"autoencoder": tiny_spec.autoencoder.model_copy(update={"scaling_factor": 1.0})}
    )
    written = save_model(tmp_path / "model", preset_like, tiny_parts)
    assert written.autoencoder.scaling_factor == 0.7
    assert load_spec(tmp_path / "model") == written


def test_writing_twice_gives_the_same_bytes(tmp_path: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name, tiny_spec, tiny_parts, ("fp32", "fp16"))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_writing_does_not_change_the_networks(tmp_path: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> None:
    before = {key: value.clone() for key, value in tiny_parts.unet.state_dict().items()}
    save_model(tmp_path / "model", tiny_spec, tiny_parts)
    after = tiny_parts.unet.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())


def test_a_new_folder_replaces_the_old_one(tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts) -> None:
    (tiny_folder / "leftover").write_text("of the old model")
    save_model(tiny_folder, tiny_spec.model_copy(update={"name": "newer"}), tiny_parts)
    assert load_spec(tiny_folder).name == "newer"
    assert not (tiny_folder / "leftover").exists()
    assert os.listdir(tiny_folder.parent) == [tiny_folder.name]


@pytest.mark.parametrize("limit", [100, 20_000, 300_000])
def test_a_full_disk_leaves_the_old_folder_as_it_was(
    tiny_folder: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts, limit: int
) -> None:
    """The limits strike in a config, in a text encoder's weights and in the U-Net's."""
    before = content(tiny_folder)
    with files_limited_to(limit), pytest.raises(VegaError, match="cannot be written") as caught:
        save_model(tiny_folder, tiny_spec, tiny_parts, ("fp32",))
    assert str(tiny_folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(tiny_folder) == before
    assert os.listdir(tiny_folder.parent) == [tiny_folder.name]


def test_a_full_disk_leaves_nothing_where_nothing_was(
    tmp_path: Path, tiny_spec: ModelSpec, tiny_parts: ModelParts
) -> None:
    with files_limited_to(20_000), pytest.raises(VegaError):
        save_model(tmp_path / "model", tiny_spec, tiny_parts)
    assert os.listdir(tmp_path) == []


def test_an_error_or_interrupt_while_writing_leaves_the_old_folder(tiny_folder: Path) -> None:
    before = content(tiny_folder)

    def write_half(kind: type[BaseException]) -> None:
        with new_folder(tiny_folder) as place:
            (place / "half").write_text("written")
            raise kind

    for kind in (ValueError, KeyboardInterrupt):
        with pytest.raises(kind):
            write_half(kind)
    assert content(tiny_folder) == before
    assert os.listdir(tiny_folder.parent) == [tiny_folder.name]


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VegaError, match="cannot be written"), new_folder(tmp_path / "file" / "model"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
