"""LoRAs in the engine: they come, change, add up and go without a trace, as stock diffusers has them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tiny_lora import random_lora
from vega_diffusion import Engine, GenerateRequest
from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel, VegaError
from vega_diffusion.inference.metadata import read_record, write_png
from vega_diffusion.models.detect import load_spec
from vega_diffusion.models.digest import file_digest
from vega_diffusion.models.lora_file import write_lora
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_weights import arrange
from vega_diffusion.specs.lora import WeightedLora

REQUEST = GenerateRequest(prompt="a cat", num_steps=2, guidance_scale=1.0, seed=4)


@pytest.fixture(scope="module")
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """unet: the U-Net alone, kohya; text: both encoders, diffusers; dora: everything; each for the tiny model."""
    folder = tmp_path_factory.mktemp("loras")
    tree = MapTree.of_spec(load_spec(tiny_folder))
    made = {
        "unet": arrange(random_lora(tree, ["unet"], size=0.4), "kohya", tree),
        "text": arrange(random_lora(tree, ["text_encoder", "text_encoder_2"], seed=1), "diffusers", tree),
        "dora": arrange(random_lora(tree, seed=2, dora=True, size=0.4), "diffusers", tree),
    }
    for name, lora in made.items():
        write_lora(folder / f"{name}.safetensors", lora)
    return {name: str(folder / f"{name}.safetensors") for name in made}


@pytest.fixture
def engine(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), device="cpu", dtype="float32")


def drawn(engine: Engine, *loras: str) -> numpy.ndarray:
    (picture,) = engine.generate(REQUEST.model_copy(update={"loras": loras}))
    return numpy.asarray(picture.image).astype(int)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of all weights that LoRAs may change."""
    networks = {"unet": engine.components.unet()}
    networks |= {str(number): one for number, one in enumerate(engine.components.text_stack().encoders)}
    return {f"{name}.{key}": value.clone() for name, one in networks.items() for key, value in one.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("name", ["unet", "text", "dora"])
def test_ejecting_restores_weights_and_pictures_bit_for_bit(engine: Engine, files: dict[str, str], name: str) -> None:
    before, plain = weights(engine), drawn(engine)
    changed = drawn(engine, files[name])
    assert not equal(weights(engine), before)
    assert abs(changed - plain).max() > 3
    assert numpy.array_equal(drawn(engine), plain)
    assert equal(weights(engine), before), "encoders of a cached text too"
    drawn(engine, files[name])
    engine.adapters.eject()
    assert equal(weights(engine), before)
    assert numpy.array_equal(drawn(engine, files[name]), changed), "and it comes back as it was"


def test_half_precision_is_restored_as_well(tiny_folder: Path, files: dict[str, str]) -> None:
    engine = Engine.load(str(tiny_folder), device="cpu", dtype="bfloat16")
    before, plain = weights(engine), drawn(engine)
    assert abs(drawn(engine, files["unet"], files["text"]) - plain).max() > 3
    assert {value.dtype for value in weights(engine).values()} == {torch.bfloat16}
    assert numpy.array_equal(drawn(engine), plain)
    assert equal(weights(engine), before)


def test_weight_zero_is_no_lora(engine: Engine, files: dict[str, str]) -> None:
    before, plain = weights(engine), drawn(engine)
    assert numpy.array_equal(drawn(engine, *(f"{file}@0" for file in files.values())), plain)
    assert equal(weights(engine), before)


def test_swapping_leaves_nothing_of_the_one_before(engine: Engine, files: dict[str, str]) -> None:
    alone = drawn(engine, files["dora"])
    engine.adapters.eject()
    drawn(engine, files["unet"], files["text"])
    drawn(engine, f"{files['unet']}@0.5")
    assert numpy.array_equal(drawn(engine, files["dora"]), alone)


def test_several_at_once_are_the_sum_of_their_changes(engine: Engine, files: dict[str, str]) -> None:
    plain = weights(engine)

    def change(*loras: str) -> dict[str, torch.Tensor]:
        drawn(engine, *loras)
        return {name: value - plain[name] for name, value in weights(engine).items()}

    first, second = change(files["unet"]), change(files["dora"])
    both = change(f"{files['unet']}@0.8", f"{files['dora']}@-0.5")
    assert sum(bool(value.any()) for value in both.values()) > 100
    for name, value in both.items():
        torch.testing.assert_close(value, 0.8 * first[name] - 0.5 * second[name], rtol=1e-3, atol=1e-5)


def test_the_text_cache_keeps_texts_of_different_encoders_apart(engine: Engine, files: dict[str, str]) -> None:
    plain, changed = drawn(engine), drawn(engine, files["text"])
    assert abs(changed - plain).max() > 3
    for _ in range(2):
        assert numpy.array_equal(drawn(engine), plain)
        assert numpy.array_equal(drawn(engine, files["text"]), changed)
    size = len(engine._texts)
    drawn(engine, files["unet"])
    assert len(engine._texts) == size, "a LoRA of the U-Net alone encodes no text anew"


def test_stock_diffusers_draws_the_same_picture(engine: Engine, files: dict[str, str], tiny_folder: Path) -> None:
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(tiny_folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for name in ("unet", "text"):
        pipe.load_lora_weights(files[name], adapter_name=name)
    pipe.set_adapters(["unet", "text"], [0.8, 0.6])
    rng = torch.Generator().manual_seed(4)
    theirs = pipe("a cat", guidance_scale=1.0, num_inference_steps=2, generator=rng).images[0]
    ours = drawn(engine, f"{files['unet']}@0.8", f"{files['text']}@0.6")
    assert abs(ours - numpy.asarray(theirs).astype(int)).max() <= 1
    assert abs(ours - drawn(engine)).max() > 3


def test_threads_with_different_loras_do_not_disturb_one_another(engine: Engine, files: dict[str, str]) -> None:
    sets = [(), (files["unet"],), (files["text"],), (files["unet"], files["dora"])] * 3
    alone = [drawn(engine, *loras) for loras in sets[:4]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda loras: drawn(engine, *loras), sets))
    assert all(numpy.array_equal(picture, alone[number % 4]) for number, picture in enumerate(together))


def test_a_question_asked_between_two_requests_does_not_bring_the_first_ones_lora_back(
    engine: Engine, files: dict[str, str]
) -> None:
    """What runs is asked outside of any block, too; who has waited meanwhile sees the LoRAs of now."""
    before = weights(engine)
    drawn(engine, files["unet"])
    adapters = engine.adapters
    with ThreadPoolExecutor(1) as pool, ExitStack() as block:
        with adapters._changing:
            asked = pool.submit(engine.route_of, REQUEST)
            with pytest.raises(TimeoutError):
                asked.result(timeout=0.5)
            block.enter_context(adapters.injected(()))
        asked.result()
        assert equal(weights(engine), before)


def test_parts_that_are_dropped_and_read_again_get_their_loras(tiny_folder: Path, files: dict[str, str]) -> None:
    """Read again, weights lie elsewhere in memory, which may move one level of 255."""
    small = Engine.load(str(tiny_folder), device="cpu", dtype="float32", low_memory=True)
    large = Engine.load(str(tiny_folder), device="cpu", dtype="float32", low_memory=False)
    loras = files["unet"], files["text"]
    for chosen in (loras, (), loras):
        assert abs(drawn(small, *chosen) - drawn(large, *chosen)).max() <= 1
    assert len(small.adapters._networks) == 0, "originals of a dropped network are dropped with it"


def test_the_record_holds_hashes_and_a_changed_file_is_told(
    engine: Engine, files: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "mine@home.safetensors"
    file.write_bytes(Path(files["unet"]).read_bytes())
    request = REQUEST.model_copy(update={"loras": (f"{file}@0.8", files["text"])})
    (picture,) = engine.generate(request)
    write_png(picture.image, tmp_path / "it.png", picture.record, "Euler")
    record = read_record(tmp_path / "it.png")
    assert record.request.loras == request.loras
    assert record.loras_sha256 == (file_digest(file), file_digest(Path(files["text"])))
    engine.check_repeats(record, record.request)
    file.write_bytes(Path(files["dora"]).read_bytes())
    with pytest.raises(VegaError, match="loras: .*mine@home.safetensors' has changed since"):
        engine.check_repeats(record, record.request)
    engine.check_repeats(record, request.model_copy(update={"loras": ()}))
    file.unlink()
    with pytest.raises(MissingFile, match="loras: .* is no file"):
        engine.check_repeats(record, record.request)


def test_a_lora_that_does_not_fit_is_told_before_anything_is_changed(
    model_folders: dict[str, Path], files: dict[str, str]
) -> None:
    other = Engine.load(str(model_folders["asymmetric"]), device="cpu")
    plain = drawn(other)
    with pytest.raises(UnreadableModel, match=r"unet.safetensors: \d+ of 120 adapters fit .*asymmetric; not: lora_"):
        drawn(other, files["unet"])
    assert numpy.array_equal(drawn(other), plain)


@pytest.mark.parametrize(
    ("text", "file", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors@0.8", "a.safetensors", 0.8),
        ("a@b.safetensors", "a@b.safetensors", 1.0),
        ("a@b.safetensors@-2", "a@b.safetensors", -2.0),
        ("me@home/folder", "me@home/folder", 1.0),
    ],
)
def test_weights_are_read_off_the_name(text: str, file: str, weight: float) -> None:
    assert WeightedLora.parse(text) == (file, weight)
    assert GenerateRequest(prompt="x", loras=(text,)).loras == (text,)


@pytest.mark.parametrize("text", ["a.safetensors@heavy", "a@nan", "a@11", "@1", "", "a@"])
def test_bad_weights_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="loras: .*FILE@WEIGHT, a weight from -10 to 10"):
        GenerateRequest(prompt="x", loras=(text,))


def test_latents_that_are_taken_one_by_one_keep_nobody_waiting(engine: Engine, files: dict[str, str]) -> None:
    request = REQUEST.model_copy(update={"loras": (files["unet"],), "num_images": 2})
    under: Any = engine.latents(request)
    next(under)
    pool = ThreadPoolExecutor(1)
    try:
        assert len(pool.submit(engine.generate, REQUEST).result(timeout=120)) == 1
    finally:
        under.close()  # lets go of what it may hold
        pool.shutdown()


def test_a_replay_under_a_lora_asks_for_the_route_under_it(
    engine: Engine, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    request = REQUEST.model_copy(update={"loras": (files["unet"],), "profile": "balanced"})
    (picture,) = engine.generate(request)
    assert picture.record.backend == "torch"
    assert engine.check_repeats(picture.record, picture.record.request) == ()
    assert not (tmp_path / "openvino").exists(), "nothing was converted to answer that"
