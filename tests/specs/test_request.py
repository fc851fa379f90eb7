"""`GenerateRequest`: a bad value is one line, defaults come from the model, JSON gives the same request back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vega_diffusion.errors import VegaError
from vega_diffusion.specs.architecture import GenerationDefaults
from vega_diffusion.specs.profile import PROFILES
from vega_diffusion.specs.request import SAMPLERS, GenerateRequest

DEFAULTS = GenerationDefaults(
    guidance_scale=9.0, negative_prompt="blurry", num_steps=30, sampler="dpmpp_2m", width=96, height=64
)


def request(**fields: object) -> GenerateRequest:
    return GenerateRequest.from_dict({"prompt": "a cat"} | fields)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "x" * 10_001}, "prompt.*10000"),
        ({"negative_prompt": "x" * 10_001}, "negative_prompt.*10000"),
        ({"width": 130}, "width.*130.*multiple of 8.*128"),
        ({"height": 0}, "height.*0.*32"),
        ({"height": 100_000}, "height.*4096"),
        ({"num_steps": 0}, "num_steps.*1 to 1000"),
        ({"num_steps": "abc"}, "num_steps.*abc"),
        ({"num_steps": 2.5}, "num_steps.*2.5"),
        ({"seed": -1}, "seed.*-1.*from 0"),
        ({"seed": 2**63}, "seed"),
        ({"num_images": 0}, "num_images.*1 to 1000"),
        ({"guidance_scale": -1}, "guidance_scale.*0 to 100"),
        ({"guidance_scale": "nan"}, "guidance_scale"),
        ({"guidance_scale": "inf"}, "guidance_scale"),
        ({"sampler": "best"}, "sampler.*best.*euler"),
        ({"prompt_syntax": "fancy"}, "prompt_syntax.*fancy.*plain"),
        ({"strength": 0.5}, "strength.*init_image"),
        ({"mask": "m.png"}, "mask.*init_image"),
        ({"init_image": "i.png", "strength": 0}, "strength.*above 0"),
        ({"init_image": "i.png", "strength": 1.5}, "strength.*at most 1"),
        ({"guidance_scale": 1, "negative_prompt": "blurry"}, "negative_prompt.*guidance_scale above 1"),
        ({"original_size": [-1, 5]}, "original_size"),
        ({"original_size": [5]}, "original_size"),
        ({"steps": 5}, "steps.*known keys"),
        ({"guidance_kept": 1.1}, "guidance_kept.*share, 0 to 1"),
        ({"guidance_kept": "nan"}, "guidance_kept"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(fields: dict[str, object], names: str) -> None:
    with pytest.raises(VegaError, match=names) as error:
        request(**fields)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_numbers_written_as_text_are_read() -> None:
    """The command line passes every value as text."""
    assert request(num_steps="7", guidance_scale="4.5", seed="3") == request(num_steps=7, guidance_scale=4.5, seed=3)


def test_nothing_given_takes_the_models_defaults() -> None:
    resolved = request(seed=5).resolved(DEFAULTS)
    assert resolved == GenerateRequest(
        prompt="a cat",
        negative_prompt="blurry",
        default_negative=False,
        guidance_scale=9.0,
        num_steps=30,
        sampler="dpmpp_2m",
        seed=5,
        num_images=1,
        width=96,
        height=64,
        prompt_syntax="plain",
        original_size=(64, 96),
        crop_top_left=(0, 0),
        profile="exact",
        guidance_interval=(0.0, 1.0),
        guidance_kept=0.0,
        reuse=1,
        decoder="full",
    )


def test_what_is_given_wins_over_the_defaults() -> None:
    given_all = request(
        negative_prompt="",
        default_negative=False,
        guidance_scale=2.0,
        num_steps=3,
        sampler="ddim",
        seed=0,
        width=64,
        height=72,
        original_size=(1, 2),
        crop_top_left=(3, 4),
        profile="turbo",
        guidance_interval=(0.25, 0.75),
        guidance_kept=0.4,
        reuse=3,
        decoder="tiny",
    )
    assert given_all.resolved(DEFAULTS) == given_all


def test_a_resolved_request_is_its_own_resolution() -> None:
    resolved = request().resolved(DEFAULTS)
    assert resolved.resolved(GenerationDefaults()) == resolved
    assert GenerateRequest.from_json(resolved.to_json()) == resolved


def test_without_guidance_the_models_negative_prompt_is_left_out() -> None:
    assert request(guidance_scale=1).resolved(DEFAULTS).negative_prompt is None
    unguided = DEFAULTS.model_copy(update={"guidance_scale": 0.0})
    with pytest.raises(VegaError, match="guidance_scale above 1"):
        request(negative_prompt="blurry").resolved(unguided)


def test_a_resolved_request_needs_no_defaults_even_where_there_is_no_negative_prompt() -> None:
    """Else a picture drawn before a model got a default negative prompt could not be made again."""
    without = request(seed=1).resolved(GenerationDefaults())
    assert without.negative_prompt is None
    assert without.resolved(DEFAULTS) == without
    assert request(default_negative=False).resolved(DEFAULTS).negative_prompt is None


def test_seeds_drawn_at_random_differ() -> None:
    seeds = {request().resolved(DEFAULTS).seed for _ in range(8)}
    assert None not in seeds
    assert len(seeds) > 1


def test_an_initial_picture_sets_the_size() -> None:
    resolved = request(init_image="i.png").resolved(DEFAULTS, init_size=(128, 40))
    assert (resolved.width, resolved.height, resolved.strength) == (128, 40, 0.8)
    assert request(init_image="i.png", mask="m.png").resolved(DEFAULTS, (64, 64)).strength == 1.0
    with pytest.raises(VegaError, match="init_image.*127x40.*width 128 and height 40"):
        request(init_image="i.png").resolved(DEFAULTS, init_size=(127, 40))


def test_a_strength_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(VegaError, match="strength.*0.1.*at least 0.2 with 5 steps"):
        request(init_image="i.png", strength=0.1, num_steps=5).resolved(DEFAULTS, (64, 64))


@given(
    prompt=st.text(min_size=1, max_size=50).filter(lambda text: text.strip()),
    seed=st.none() | st.integers(0, 2**62),
    steps=st.none() | st.integers(1, 1000),
    scale=st.none() | st.floats(0, 100),
    size=st.none() | st.integers(4, 512),
    sampler=st.none() | st.sampled_from(SAMPLERS),
)
def test_json_gives_the_same_request_back(
    prompt: str, seed: int | None, steps: int | None, scale: float | None, size: int | None, sampler: str | None
) -> None:
    width = None if size is None else size * 8
    first = GenerateRequest(
        prompt=prompt, seed=seed, num_steps=steps, guidance_scale=scale, width=width, sampler=sampler
    )
    assert GenerateRequest.from_json(first.to_json()) == first


def recorded(**fields: object) -> GenerateRequest:
    """What a record holds: all of it resolved."""
    return request(seed=1, **fields).resolved(DEFAULTS)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 1.0}, {"negative_prompt": "", "reuse": 3, "width": 32}])
def test_a_replay_without_changes_is_the_same_request(name: str, fields: dict[str, object]) -> None:
    then = recorded(profile=name, **fields)
    assert then.changed({}).resolved(DEFAULTS) == then


@pytest.mark.parametrize("then", PROFILES)
@pytest.mark.parametrize("now", PROFILES)
def test_a_replay_by_another_profile_is_drawn_as_that_one_says(then: str, now: str) -> None:
    assert recorded(profile=then).changed({"profile": now}).resolved(DEFAULTS) == recorded(profile=now)


def test_what_is_given_beside_a_profile_and_what_no_profile_says_stay() -> None:
    then = recorded(sampler="ddim", num_steps=7, reuse=3)
    changed = then.changed({"profile": "turbo", "decoder": "tiny"}).resolved(DEFAULTS)
    assert changed == recorded(sampler="ddim", num_steps=7, profile="turbo", decoder="tiny")
    changed = then.changed({"profile": "realtime", "num_steps": "8"}).resolved(DEFAULTS)
    assert (changed.num_steps, changed.sampler, changed.guidance_scale) == (8, "lcm", 1.0)
    with pytest.raises(VegaError, match="profile"):
        then.changed({"profile": "fastest"})


def test_a_replay_without_guidance_drops_what_only_guidance_takes() -> None:
    then = recorded(profile="turbo", negative_prompt="ugly")
    assert then.changed({"guidance_scale": "1"}).resolved(DEFAULTS) == recorded(profile="turbo", guidance_scale=1.0)
    with pytest.raises(VegaError, match="negative_prompt"):
        then.changed({"guidance_scale": "1", "negative_prompt": "ugly"})
    again = recorded(guidance_scale=1.0).changed({"guidance_scale": 5}).resolved(DEFAULTS)
    assert again == recorded(guidance_scale=5.0), "and the model's own negative prompt comes back with it"
    whole = then.changed({"guidance_interval": ["0", "1"]}).resolved(DEFAULTS)
    assert (whole.guidance_interval, whole.guidance_kept) == ((0.0, 1.0), 0.0)


@pytest.mark.parametrize("name", PROFILES)
def test_what_departs_from_a_profile_is_named(name: str) -> None:
    same = {"prompt_syntax": "weighted", "negative_prompt": "", "width": 32, "decoder": "full"}
    assert recorded(profile=name, **same).departs(DEFAULTS) == ()
    other = recorded(profile=name, num_steps=7, reuse=9, guidance_scale=3.0, guidance_interval=(0.1, 0.2))
    assert set(other.departs(DEFAULTS)) >= {"num_steps", "reuse", "guidance_scale", "guidance_interval"}
    said_itself = recorded(profile=name, num_steps=recorded(profile=name).num_steps)
    assert said_itself.departs(DEFAULTS) == ()


def test_a_precision_is_a_profiles_on_openvino_and_goes_with_it() -> None:
    with pytest.raises(VegaError, match="precision: 'int8'.*a profile on OpenVINO: balanced, turbo, realtime"):
        request(precision="int8")
    with pytest.raises(VegaError, match="precision"):
        request(profile="turbo", precision="fp16")
    then = recorded(profile="turbo", precision="int8-weights")
    assert then.departs(DEFAULTS) == ("precision",)
    assert then.changed({"num_steps": 7}).precision == "int8-weights"
    assert then.changed({"profile": "exact"}).resolved(DEFAULTS) == recorded(profile="exact")


def test_a_replay_in_another_size_is_conditioned_on_that() -> None:
    assert recorded().changed({"width": 32}).resolved(DEFAULTS) == recorded(width=32)
    other = recorded(original_size=(10, 20)).changed({"width": 32}).resolved(DEFAULTS)
    assert other.original_size == (10, 20), "what was said stays"
