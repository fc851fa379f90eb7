"""Which autoencoder decodes what; tiles without seams; numbers that overflow never become a picture without a word."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vega_diffusion.benchmarks.autoencoder import psnr_db
from vega_diffusion.data.scenes.atlas import SpriteAtlas, sample_folder
from vega_diffusion.data.scenes.grammar import sample_scene
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.errors import UnreadableModel, VegaError
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.pictures import decode_latents
from vega_diffusion.inference.rules import TILE_PX, tile_px_for
from vega_diffusion.inference.tiles import tile_starts
from vega_diffusion.inference.vae_policy import choose_vae
from vega_diffusion.models.autoencoder import build_tiny_autoencoder
from vega_diffusion.specs.tiny_autoencoder import TAESD, TinyAutoencoderSpec

SMALL = TinyAutoencoderSpec(
    encoder_block_out_channels=(8,) * 4,
    decoder_block_out_channels=(8,) * 4,
    num_encoder_blocks=(0, 1, 1, 1),
    num_decoder_blocks=(1, 1, 1, 0),
)


def mini(dtype: str = "float32") -> Components:
    return Components.open("vega-mini", "cpu", dtype, False)


@pytest.fixture
def taesd(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    build_tiny_autoencoder(SMALL).save_pretrained(tmp_path / "taesdxl")
    return tmp_path / "taesdxl"


def random_latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def parts() -> Components:
    """The embedded model in float32."""
    return mini()


def scenes(count: int) -> Tensor:
    """Pictures `[count, 3, 128, 128]` that no training showed."""
    renderer = SceneRenderer(SpriteAtlas.load(sample_folder()))
    return renderer.render([sample_scene(900_017, position, split="held-out") for position in range(count)])


def test_the_tiny_one_serves_previews_and_drafts_the_full_one_finals(parts: Components) -> None:
    chosen = {purpose: choose_vae(parts, purpose) for purpose in ("preview", "draft", "final")}
    assert {purpose: one.decoder for purpose, one in chosen.items()} == {
        "preview": "tiny",
        "draft": "tiny",
        "final": "full",
    }
    assert chosen["final"].vae is parts.vae()
    assert chosen["draft"].vae is parts.tiny_vae()
    assert all(one.warnings == () for one in chosen.values())
    assert choose_vae(parts, "final", decoder="tiny").decoder == "tiny", "a profile may say otherwise"
    assert choose_vae(parts, "preview", decoder="full").decoder == "full"


def test_a_model_without_one_is_decoded_by_the_full_one_and_says_so_once_it_matters(tiny_folder: Path) -> None:
    parts = Components.open(str(tiny_folder), "cpu", "float32", False)
    assert parts.tiny_vae() is None
    preview, draft = choose_vae(parts, "preview"), choose_vae(parts, "draft")
    assert (preview.decoder, draft.decoder) == ("full", "full")
    assert preview.warnings == ()
    image, warnings = draft.decode(random_latents(1, 4, 8, 8))
    assert image.shape == (1, 3, 64, 64)
    assert len(warnings) == 1
    assert "no tiny autoencoder" in warnings[0]


def test_a_folder_such_as_taesdxl_may_be_named(
    parts: Components, tiny_folder: Path, taesd: Path, tmp_path: Path
) -> None:
    other = Components.open(str(tiny_folder), "cpu", "bfloat16", False)
    named = choose_vae(other, "preview", tiny=str(taesd))
    assert (named.decoder, named.vae.dtype) == ("tiny", torch.bfloat16)
    assert other.tiny_vae(str(taesd)) is named.vae, "it is read once"
    digest = other.tiny_digest(str(taesd))
    assert other.tiny_digest() is None
    assert len({digest, parts.tiny_digest(), parts.digest, None}) == 4
    with pytest.raises(VegaError, match="nowhere"):
        choose_vae(other, "preview", tiny=str(tmp_path / "nowhere"))
    shutil.rmtree(taesd)
    wide = TAESD.model_copy(update={"latent_channels": 16})
    build_tiny_autoencoder(wide).save_pretrained(taesd)
    with pytest.raises(UnreadableModel, match=r"16 channels.*4 channels") as error:
        parts.tiny_vae(str(taesd))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def large(parts: Components) -> tuple[Any, Tensor]:
    """The embedded model's full autoencoder and latents of a picture of 256 x 256 px, in the U-Net's scale."""
    vae: Any = parts.vae()
    pixels = scenes(4).unflatten(0, (2, 2))
    picture = torch.cat([torch.cat(list(row), dim=-1) for row in pixels], dim=-2)[None]
    with torch.inference_mode():
        return vae, vae.encode(picture).latent_dist.mode() * vae.config.scaling_factor


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_tiny_one_shows_what_the_full_one_shows(large: tuple[Any, Tensor], dtype: str) -> None:
    half = mini(dtype)
    tiny = choose_vae(half, "draft")
    assert tiny.vae.dtype == getattr(torch, dtype)
    vae, latents = large
    latents = latents[..., :16, :16]
    shown, warnings = tiny.decode(latents.to(half.dtype))
    assert warnings == ()
    assert psnr_db(shown.float(), decode_latents(vae, latents)[0].clamp(-1, 1)).item() > 20


def test_random_latents_are_never_not_a_number() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        of_dtype = mini(dtype)
        for purpose in ("draft", "final"):
            latents = 20 * random_latents(1, 4, 8, 8)
            image, warnings = choose_vae(of_dtype, purpose).decode(latents.to(of_dtype.dtype))
            assert bool(torch.isfinite(image).all())
            assert warnings == ()
            assert image.float().std() > 0.05, "no black picture either"


def test_latents_that_are_not_finite_are_an_error_though_the_tiny_decoder_would_squeeze_them(
    parts: Components,
) -> None:
    latents = random_latents(1, 4, 8, 8)
    latents[0, 0, 0, 0] = float("inf")
    tiny = choose_vae(parts, "draft")
    with torch.inference_mode():
        assert bool(torch.isfinite(tiny.vae.decode(latents).sample).all())
    with pytest.raises(VegaError, match="latents: not finite"):
        tiny.decode(latents)


def test_tiles_begin_where_pictures_are_large() -> None:
    assert tile_px_for(1024, 1024) is None, "SDXL's own size is decoded as diffusers does"
    assert tile_px_for(2048, 1024) == tile_px_for(1536, 1536) == TILE_PX
    assert tile_px_for(1024, 1024, low_memory=True) == TILE_PX
    assert tile_px_for(512, 512, low_memory=True) is None
    assert tile_px_for(2048, 2048, decoder="tiny") is None


def test_tiles_show_no_seams(large: tuple[Any, Tensor]) -> None:
    vae, latents = large
    whole, tiled = decode_latents(vae, latents)[0], decode_latents(vae, latents, tile_px=160)[0]
    assert tiled.shape == whole.shape == (1, 3, 256, 256)
    assert psnr_db(tiled, whole.clamp(-1, 1)).item() > 30
    # Where tiles begin and end, the picture is no rougher than it is anyway.
    error = (tiled - whole).abs().mean(dim=(0, 1))
    steps = error.diff(dim=-1).abs().mean(dim=0)
    edges = torch.tensor([column for start in tile_starts(32, 20, 5) for column in (8 * start, 8 * start + 160)])
    inner = edges[(edges > 0) & (edges < 256)] - 1
    assert len(inner) == 2
    assert steps[inner].max() < 4 * steps.mean()
    assert torch.equal(decode_latents(vae, latents, tile_px=512)[0], whole), "a smaller picture is one tile"


def test_tiles_that_overflow_run_again_in_float32(tiny_folder: Path) -> None:
    vae: Any = Components.open(str(tiny_folder), "cpu", "float32", None).vae()
    latents = random_latents(1, 4, 4, 6)
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(2e5)
    wide = decode_latents(vae, latents, tile_px=32)
    assert wide[1] == ()
    image, warnings = decode_latents(vae.to(torch.float16), latents.half(), tile_px=32)
    assert len(warnings) == 1
    assert "overflowed in float16" in warnings[0]
    assert bool(torch.isfinite(image).all())
    assert vae.dtype == torch.float16, "the caller's autoencoder is left as it was"
    assert (image - wide[0]).abs().max() < 0.1
