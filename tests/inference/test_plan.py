"""What a picture costs, before it is drawn: counted from shapes, equal to counting the networks themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vega_diffusion.inference.components import Components
from vega_diffusion.inference.plan import plan_picture
from vega_diffusion.models.autoencoder import build_tiny_autoencoder
from vega_diffusion.models.measure import unet_macs
from vega_diffusion.specs.request import GenerateRequest
from vega_diffusion.specs.tiny_autoencoder import TAESD


@pytest.fixture(scope="module")
def components(tiny_folder: Path) -> Components:
    return Components.open(str(tiny_folder), "cpu", "float32", None)


def test_exact_is_two_evaluations_a_step_and_the_decoder(components: Components):
    plan = plan_picture(components, GenerateRequest(prompt="a cat", num_steps=10, guidance_scale=4.0))
    size = components.spec.generation
    once = unet_macs(components.spec.unet, size.width, size.height, components.spec.autoencoder.downscale) / 1e9
    assert (plan.num_steps, plan.guided_steps, plan.deep_steps) == (10, 10, 10)
    assert plan.unet_gmac == pytest.approx(20 * once)
    assert plan.decoder_gmac is not None
    assert plan.exact_gmac == pytest.approx(plan.unet_gmac + plan.decoder_gmac)
    assert plan.work_ratio == 1.0


def test_what_is_left_out_is_not_counted(components: Components):
    def work(**fields: object) -> float:
        request = GenerateRequest.model_validate({"prompt": "a cat", "num_steps": 10, "guidance_scale": 4.0} | fields)
        return plan_picture(components, request).unet_gmac

    whole = work()
    assert work(guidance_interval=(0.0, 0.8)) == pytest.approx(0.9 * whole)
    assert work(guidance_scale=1.0) == pytest.approx(0.5 * whole)
    shallow = plan_picture(components, GenerateRequest(prompt="a cat")).shallow_share
    assert 0 < shallow < 0.7
    # Of ten steps the first two, and every other one after them.
    assert work(reuse=2) == pytest.approx(whole * (6 + 4 * shallow) / 10, rel=1e-3)
    # The last four steps of ten.
    assert work(init_image="x.png", strength=0.4) == pytest.approx(0.4 * whole)


def test_a_sampler_of_second_order_evaluates_twice_a_step(components: Components):
    request = GenerateRequest(prompt="a cat", num_steps=10, guidance_scale=4.0, sampler="heun")
    assert plan_picture(components, request).num_steps == 19


def test_reports_say_what_they_hold(tiny_folder: Path, tmp_path: Path):
    request = GenerateRequest(prompt="a cat", profile="realtime")
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    without = plan_picture(Components.open(str(model), "cpu", "float32", None), request)
    assert without.decoder_gmac is not None, "the full one decodes where there is no tiny one"
    build_tiny_autoencoder(TAESD).save_pretrained(model / "vae_tiny")
    plan = plan_picture(Components.open(str(model), "cpu", "float32", None), request)
    assert plan.decoder_gmac is None
    assert plan.to_dict()["profile"] == "realtime"
    assert "tiny" in str(plan)
    assert f"{plan.work_ratio:.2f} times" in str(plan)
