"""Profiles as data, and the plan of steps that follows from one: closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vega_diffusion.errors import InvalidValue
from vega_diffusion.specs.architecture import GenerationDefaults
from vega_diffusion.specs.profile import PROFILES, Precision, ProfileSpec, Route, StepPlan
from vega_diffusion.specs.request import GenerateRequest

DEFAULTS = GenerationDefaults(guidance_scale=5.0, num_steps=25, sampler="dpmpp_2m")


def test_exact_is_the_models_own_way_and_nothing_else():
    exact = PROFILES["exact"]
    assert list(PROFILES) == ["exact", "balanced", "turbo", "realtime"]
    assert [str(route) for route in exact.routes] == ["torch own"]
    assert (exact.decoder, exact.guidance_interval, exact.reuse) == ("full", (0.0, 1.0), 1)
    resolved = GenerateRequest(prompt="a cat").resolved(DEFAULTS)
    assert resolved.profile == "exact"
    assert (resolved.num_steps, resolved.sampler, resolved.guidance_scale) == (25, "dpmpp_2m", 5.0)


@pytest.mark.parametrize("name", list(PROFILES))
def test_every_profile_ends_where_every_machine_can_go(name: str):
    profile = PROFILES[name]
    assert profile.routes[-1].backend == "torch"
    assert ProfileSpec.from_json(profile.to_json()) == profile


def test_a_definition_says_what_decides_a_picture_on_a_route():
    profile = ProfileSpec(
        name="turbo",
        routes=(
            Route(backend="openvino", precision="int8", wide_from=700),
            Route(backend="openvino", precision="bf16"),
        ),
        guidance_interval=(0.0, 0.8),
        reuse=2,
        num_steps=4,
    )
    kept = profile.model_copy(update={"guidance_kept": 0.5}).definition("torch", "own")
    assert kept.startswith("guidance from 0 to 0.8 of the steps; 0.5 of it kept after them; deep layers")
    common = "guidance from 0 to 0.8 of the steps; deep layers every 2 steps from 0.2 on; steps 4"
    assert profile.definition("openvino", "bf16") == common
    assert profile.definition("openvino", "int8") == f"{common}; wide numbers from timestep 700 up; decoder in 8 bits"


@pytest.mark.parametrize(("precision", "timestep"), [("bf16", 800), ("int8", 1001)])
def test_wide_numbers_go_with_int8_alone(precision: Precision, timestep: int):
    with pytest.raises(InvalidValue, match=f"wide_from: {timestep}.*allowed: a timestep, 0 to 1000, beside int8"):
        Route(backend="openvino", precision=precision, wide_from=timestep)


@pytest.mark.parametrize("name", ["balanced", "turbo", "realtime"])
def test_a_named_precision_goes_first_at_every_step_and_in_8_bits_is_small(name: str):
    profile = PROFILES[name]
    assert profile.in_precision(None) is profile
    for precision in ("fp32", "bf16", "int8", "int8-weights"):
        routes = profile.in_precision(precision).routes
        assert (routes[0].backend, routes[0].precision, routes[0].wide_from) == ("openvino", precision, None)
        assert profile.in_precision(precision).is_small == routes[0].is_small == precision.startswith("int8")
        on_gpus = ["torch-compiled int8", "torch int8"] if precision == "int8" else []
        assert [str(route) for route in routes[1:]] == [*on_gpus, "openvino bf16", "torch-compiled own", "torch own"]
        assert "wide numbers" not in profile.in_precision(precision).definition("openvino", precision)


def test_what_a_request_says_goes_before_its_profile():
    told = GenerateRequest(prompt="a cat", profile="realtime", num_steps=8, decoder="full", guidance_scale=3.0)
    resolved = told.resolved(DEFAULTS)
    assert (resolved.num_steps, resolved.decoder, resolved.guidance_scale) == (8, "full", 3.0)
    assert resolved.sampler == PROFILES["realtime"].sampler
    assert resolved.guidance_interval == (0.0, 1.0)
    silent = GenerateRequest(prompt="a cat", profile="realtime").resolved(DEFAULTS)
    assert (silent.num_steps, silent.decoder, silent.guidance_scale) == (4, "tiny", 1.0)
    assert (silent.guidance_interval, silent.guidance_kept) == (None, None)  # nothing to guide


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(interval: tuple[float, float]):
    with pytest.raises(InvalidValue, match="guidance_interval"):
        GenerateRequest(prompt="a cat", guidance_interval=interval)


def test_an_interval_without_guidance_is_refused():
    with pytest.raises(InvalidValue, match="guidance_interval.*guidance_scale above 1"):
        GenerateRequest(prompt="a cat", guidance_interval=(0.0, 0.5), guidance_scale=1.0).resolved(DEFAULTS)


def test_guidance_is_kept_after_an_interval_alone():
    kept = GenerateRequest(prompt="a cat", guidance_kept=0.5)
    for unsuited in (kept.model_copy(update={"guidance_scale": 1.0}), kept):
        with pytest.raises(InvalidValue, match=r"guidance_kept: 0\.5.*only with (a )?guidance_"):
            unsuited.resolved(DEFAULTS)
    ended = kept.model_copy(update={"guidance_interval": (0.0, 0.5)})
    assert ended.resolved(DEFAULTS).guidance_kept == 0.5
    balanced = GenerateRequest(prompt="a cat", profile="balanced")
    assert balanced.resolved(DEFAULTS).guidance_kept == PROFILES["balanced"].guidance_kept == 0.7
    whole = balanced.model_copy(update={"guidance_interval": (0.0, 1.0)}).resolved(DEFAULTS)
    assert whole.guidance_kept == 0.0
    assert whole.resolved(DEFAULTS) == whole


def test_balanced_guides_the_first_four_fifths_and_turbo_keeps_deep_layers_every_other_step_after_the_first_fifth():
    balanced, turbo = (
        StepPlan.of(25, profile.guidance_interval, profile.reuse, True)
        for profile in (PROFILES["balanced"], PROFILES["turbo"])
    )
    assert balanced.guided == (True,) * 20 + (False,) * 5
    assert all(balanced.deep)
    assert not balanced.reuses
    assert (balanced.rows(), balanced.cost(0.05)) == (45, 45)
    assert turbo.guided == balanced.guided
    assert turbo.deep == (True,) * 4 + (True, False) * 10 + (True,)
    # 12 guided steps and 3 others of 15 deep ones; 8 and 2 of the shallow ones.
    assert turbo.cost(0.05) == pytest.approx(2 * 12 + 3 + 0.05 * (2 * 8 + 2))


@given(
    st.integers(1, 60),
    st.floats(0, 0.9),
    st.floats(0.05, 1.0),
    st.integers(1, 8),
    st.booleans(),
)
def test_plans_never_reuse_what_is_not_there(steps: int, start: float, length: float, reuse: int, guidance: bool):
    plan = StepPlan.of(steps, (start, min(1.0, start + length)), reuse, guidance)
    assert len(plan.guided) == len(plan.deep) == steps
    assert plan.deep[0]
    assert plan.cost(1.0) == plan.rows()
    assert plan.cost(0.0) <= plan.rows()
    rows = 0
    for guided, deep in zip(plan.guided, plan.deep, strict=True):
        asked = 1 + guided
        assert deep or asked <= rows  # kept states are of at least the rows that are asked about
        rows = asked if deep else min(rows, asked)
    if not guidance:
        assert not any(plan.guided)
