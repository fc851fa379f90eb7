"""Drawing without torch gives the engine's pictures and records, and steps aside for all that it does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from vega_diffusion.inference import rules
from vega_diffusion.inference.backends.store import Store
from vega_diffusion.inference.bundles import keep_for_next_time
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.images import GeneratedImage, Progress
from vega_diffusion.inference.lean import engine as lean_engine
from vega_diffusion.inference.lean.engine import LeanEngine, unsuited
from vega_diffusion.specs.request import GenerateRequest

pytest.importorskip("openvino")
PLAIN = GenerateRequest(prompt="a cat next to a slice of pizza", seed=7, num_steps=5, profile="balanced")
ONCE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that nobody else touches."""
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("lean") / "model"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("VEGA_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield home


@pytest.fixture(scope="module")
def engine(folder: Path, home: Path) -> Engine:
    """An engine that has drawn, and left behind what the next command needs."""
    engine = Engine.load(str(folder), device="cpu")
    (drawn,) = engine.generate(PLAIN)
    assert drawn.record.backend == "openvino"
    assert keep_for_next_time(engine.components, drawn.record.request, 1) is None
    return engine


def opened(folder: Path, request: GenerateRequest) -> LeanEngine:
    lean = LeanEngine.open(str(folder), request)
    assert lean is not None
    return lean


def levels_apart(first: Image.Image, second: Image.Image) -> int:
    return int(numpy.abs(numpy.asarray(first, int) - numpy.asarray(second, int)).max())


def test_a_profile_on_openvino_reads_neither_text_encoders_nor_autoencoder_in_torch(engine: Engine) -> None:
    assert not {"text", "vae", "unet"} & set(engine.components._parts)


def test_the_engines_parts_in_openvino_draw_what_torch_draws(engine: Engine) -> None:
    """Float32 everywhere: a machine with bf16 would compare two precisions."""
    wide = GenerateRequest(prompt="two red apples", seed=3, num_steps=4, profile="balanced", guidance_interval=(0, 1))
    (fast,) = engine.generate(wide)
    (exact,) = engine.generate(wide.model_copy(update={"profile": "exact"}))
    if fast.record.precision == "fp32":
        assert levels_apart(fast.image, exact.image) <= 1
    assert (exact.record.backend, fast.record.decoder) == ("torch", "full")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 1.0, "num_images": 2, "sampler": "euler_a"},
        {"reuse": 2, "negative_prompt": "blurry", "sampler": "dpmpp_2m_sde_karras", "crop_top_left": (8, 0)},
        {"prompt": "a dog, " * 60, "width": 96, "sampler": "lcm", "num_steps": 3},
    ],
)
def test_pictures_records_and_warnings_are_the_engines(
    engine: Engine, folder: Path, changes: dict[str, object]
) -> None:
    request = PLAIN.model_copy(update=changes)
    expected = engine.generate(request)
    assert keep_for_next_time(engine.components, expected[0].record.request, 1) is None
    steps: list[Progress] = []
    drawn = list(opened(folder, request).stream(request, steps.append))
    assert [one.seed for one in drawn] == [one.seed for one in expected]
    for ours, theirs in zip(drawn, expected, strict=True):
        assert levels_apart(ours.image, theirs.image) <= 1
        assert ours.record == theirs.record
    said = {line for one in drawn for line in one.warnings}
    assert {line for one in expected for line in one.warnings} <= said, "lines about a machine's bf16 may be more"
    assert [(step.image_index, step.step) for step in steps[-2:]] == [
        (len(drawn) - 1, steps[-1].num_steps - 1),
        (len(drawn) - 1, steps[-1].num_steps),
    ]
    assert levels_apart(steps[-1].preview(), drawn[-1].image) == 0


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8-weights", marks=pytest.mark.slow)])
def test_pictures_in_tiles_are_the_engines_and_little_memory_closes_what_is_done(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    if precision == "int8-weights":
        pytest.importorskip("nncf")
    monkeypatch.setattr(rules, "WHOLE_PIXELS_LOW_MEMORY" if precision == "int8-weights" else "WHOLE_PIXELS", 64 * 64)
    monkeypatch.setattr(rules, "TILE_PX", 64)
    request = PLAIN.model_copy(update={"precision": precision, "width": 104, "num_images": 2})
    expected = engine.generate(request)
    assert keep_for_next_time(engine.components, expected[0].record.request, 1) is None
    lean = opened(folder, request)
    networks: Any = lean._networks
    held: list[list[int]] = []

    def note(_: object) -> None:
        held.append([len(one._graphs.compiled()) for one in (*networks.text, networks.unet, networks.vae)])

    drawn = list(lean.stream(request, note))
    for ours, theirs in zip(drawn, expected, strict=True):
        assert ours.record == theirs.record
        assert ours.record.tile_px == 64
        assert levels_apart(ours.image, theirs.image) <= 1
    saves = precision == "int8-weights"
    assert networks.unet._graphs.settings.max_rows == (1 if saves else 8)
    assert {networks.text[0].in_use.precision, networks.text[1].in_use.precision} == {precision}
    assert all((text, second) == ((0, 0) if saves else (1, 1)) for text, second, *_ in held)
    assert not saves or all(vae == 0 for *_, vae in held)
    assert bool(networks.unet._graphs.compiled()) != saves


@pytest.mark.parametrize("threads", [1, 2])
def test_each_row_of_a_small_unet_has_a_thread_where_there_are_two(
    engine: Engine, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    before = set((home / "openvino").glob("bundle-*"))
    (expected,) = engine.generate(PLAIN)
    assert keep_for_next_time(engine.components, expected.record.request, 1) is None
    lean = opened(folder, PLAIN)
    (drawn,) = lean.stream(PLAIN)
    networks: Any = lean._networks
    assert {one.num_streams for one in networks.unet._graphs.compiled()} == {threads}
    assert {one.num_threads for one in networks.unet._graphs.compiled()} == {threads}
    assert {one.num_streams for one in networks.vae._graphs.compiled()} == {1}
    assert levels_apart(drawn.image, expected.image) <= 1
    for bundle in {*(home / "openvino").glob("bundle-*")} - before:  # of another environment
        shutil.rmtree(bundle)


def test_blobs_hold_no_weights(engine: Engine, home: Path) -> None:
    weights = max(path.stat().st_size for path in (home / "openvino").glob("unet-*/full.bin"))
    blobs = [path.stat().st_size for path in (home / "openvino").glob("blob-unet-full-*/compiled.blob")]
    assert blobs
    assert max(blobs) < weights / 2


def test_a_damaged_bundle_is_said_and_left_alone(engine: Engine, folder: Path, home: Path) -> None:
    (kept,) = (home / "openvino").glob("bundle-*")
    (kept / "tokenizer-1.json").write_text("{}")
    lines: list[str] = []
    assert LeanEngine.open(str(folder), PLAIN, lines.append) is None
    assert lines == [f"{kept}: a kept file is damaged (tokenizer-1.json has changed); it is made anew"]
    assert keep_for_next_time(engine.components, PLAIN.resolved(engine.components.spec.generation), 1) is None
    assert LeanEngine.open(str(folder), PLAIN) is not None


def test_what_is_not_kept_is_drawn_with_torch(engine: Engine, folder: Path) -> None:
    assert LeanEngine.open(str(folder), PLAIN) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lean_engine, "find_spec", lambda name: None)
        assert LeanEngine.open(str(folder), PLAIN) is None, "openvino is not installed"
    other_steps = PLAIN.model_copy(update={"num_steps": 6})
    assert LeanEngine.open(str(folder), other_steps) is None, "no table of 6 steps"
    config = folder / "unet" / "config.json"
    config.touch()
    assert LeanEngine.open(str(folder), PLAIN) is None, "a file was touched"
    assert keep_for_next_time(engine.components, PLAIN.resolved(engine.components.spec.generation), 1) is None
    assert LeanEngine.open(str(folder), PLAIN) is not None, "and is kept again"


def test_int8_that_can_no_longer_be_used_is_said_with_torch_and_without(
    engine: Engine, folder: Path, home: Path
) -> None:
    turbo = PLAIN.model_copy(update={"profile": "turbo"})
    (drawn,) = engine.generate(turbo)
    assert keep_for_next_time(engine.components, drawn.record.request, 1) is None
    store = Store(lambda line: None)
    foreign = {"what": "unet", "precision": "int8", "weights": engine.components.digest, "openvino": "0.0"}
    store.make(foreign, lambda folder: None)
    line = "profile turbo: openvino int8: calibrated by other versions, or only in part; run vega calibrate again"
    (without_torch,) = opened(folder, turbo).stream(turbo)
    (with_torch,) = Engine.load(str(folder), device="cpu").generate(turbo)
    store.remove(foreign)
    assert line in without_torch.warnings
    assert line in with_torch.warnings
    assert line not in drawn.warnings


def test_int8_that_was_asked_for_and_is_not_there_is_told_with_torch_and_without(engine: Engine, folder: Path) -> None:
    request = PLAIN.model_copy(update={"precision": "int8"})
    (with_torch,) = Engine.load(str(folder), device="cpu").generate(request)
    assert keep_for_next_time(engine.components, with_torch.record.request, 1) is None
    (without_torch,) = opened(folder, request).stream(request)
    for drawn in (with_torch, without_torch):
        assert "profile balanced: openvino int8: not there; run vega calibrate" in drawn.warnings
        assert drawn.record.precision != "int8"
    assert without_torch.record == with_torch.record


def test_noise_in_bfloat16_is_drawn_in_whole_blocks_alone(tiny_folder: Path, home: Path, engine: Engine) -> None:
    """9 x 9 cells of 4 channels are 20 blocks and 4 numbers."""
    narrow = Path(shutil.copytree(tiny_folder, home / "narrow"))
    parts = Engine.load(str(narrow), device="cpu", dtype="bfloat16").components
    assert keep_for_next_time(parts, PLAIN.resolved(parts.spec.generation), 1) is None
    odd = PLAIN.model_copy(update={"width": 72, "height": 72})
    assert LeanEngine.open(str(narrow), PLAIN) is not None
    assert LeanEngine.open(str(narrow), odd) is None
    assert LeanEngine.open(engine.components.name, odd) is not None, "in float32 it is torch's"


@pytest.mark.parametrize(
    ("changes", "device", "dtype", "reason"),
    [
        ({}, "auto", "auto", None),
        ({}, "cpu", "auto", None),
        ({"profile": None}, "auto", "auto", "profile"),
        ({"profile": "exact"}, "auto", "auto", "profile"),
        ({}, "cuda", "auto", "device"),
        ({}, "auto", "float32", "dtype"),
        ({"loras": ("a.safetensors",)}, "auto", "auto", "loras"),
        ({"init_image": "a.png"}, "auto", "auto", "init_image"),
        ({"prompt_syntax": "weighted"}, "auto", "auto", "prompt_syntax"),
    ],
)
def test_requests_that_need_torch(changes: dict[str, object], device: str, dtype: str, reason: str | None) -> None:
    assert unsuited(PLAIN.model_copy(update=changes), device, dtype) == reason


def test_the_command_draws_without_torch(engine: Engine, folder: Path, home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from vega_diffusion.cli.main import main; "
        f"code = main(['generate', {PLAIN.prompt!r}, '--model', {str(folder)!r}, '--seed', '7', '--num-steps', '5', "
        "'--profile', 'balanced', '--output', 'cat.png']); "
        "slow = {'torch', 'diffusers', 'transformers', 'openvino.tools.ovc', 'numpy.random'} & set(sys.modules); "
        "from openvino.tools.ovc import convert_model; "  # there at need
        "print(code, sorted(slow))"
    )
    environment = os.environ | {"VEGA_HOME": str(home)} | ONCE
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    (expected,) = engine.generate(PLAIN)
    assert isinstance(expected, GeneratedImage)
    with Image.open(tmp_path / "cat.png") as picture:
        assert levels_apart(picture, expected.image) <= 1
