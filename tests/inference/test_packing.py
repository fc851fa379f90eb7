"""Step packing: pictures do not depend on their company, evaluations are shared, cancelled runs leave alone."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from tiny_lora import adapter, random_lora
from vega_diffusion.inference.backends.protocol import joined
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.denoise import Cancelled
from vega_diffusion.inference.engine import Engine
from vega_diffusion.inference.packing import FixedRows, Packed, Packer
from vega_diffusion.models.lora_file import write_lora
from vega_diffusion.models.lora_layouts import MapTree
from vega_diffusion.models.lora_weights import arrange
from vega_diffusion.specs.request import GenerateRequest

# Small: processors without bf16 instructions take their time over every product.
SIZE: dict[str, Any] = {"width": 32, "height": 32}
HALF: dict[str, Any] = {"guidance_interval": (0.0, 0.5), "guidance_kept": 0.5}
MIXED = (
    GenerateRequest(prompt="a cat", num_steps=3, seed=1, guidance_scale=4.0, **SIZE),
    GenerateRequest(prompt="two red apples", num_steps=4, seed=2, guidance_scale=1.0, **SIZE),
    GenerateRequest(prompt="a dog in the snow", num_steps=2, seed=3, guidance_scale=7.5, sampler="euler_a", **SIZE),
    GenerateRequest(prompt="a cat", num_steps=4, seed=4, guidance_scale=3.0, **HALF, **SIZE),
    GenerateRequest(prompt="a fox", num_steps=3, seed=5, guidance_scale=3.0, reuse=2, num_images=2, **SIZE),
    GenerateRequest(prompt="a fox", num_steps=2, seed=6, guidance_scale=3.0, width=40, height=32),
)


def difference(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of two pictures, in levels of 255."""
    values = [numpy.asarray(image, dtype=numpy.int16) for image in (one, other)]
    return int(numpy.abs(values[0] - values[1]).max())


@pytest.fixture(scope="module", params=[("float32", 1), ("bfloat16", 0)], ids=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, tiny_folder: Path) -> tuple[Engine, int]:
    dtype, most = request.param
    components = Components.open(str(tiny_folder), "cpu", dtype, None)
    assert components.unet().dtype == getattr(torch, dtype)
    return Engine(components), most


Drawn = dict[tuple[int, int], Image.Image]


def drawn(engine: Engine, requests: tuple[GenerateRequest, ...], **options: object) -> Drawn:
    """Return the pictures of requests drawn together, by request and seed."""
    found = engine.stream_many(requests, **options)  # type: ignore[arg-type]
    return {(number, picture.seed): picture.image for number, picture in found}


def test_pictures_do_not_depend_on_their_company(engine: tuple[Engine, int]):
    ours, most = engine
    together = drawn(ours, MIXED, max_rows=7)
    assert len(together) == 7
    for number, request in enumerate(MIXED):
        for picture in ours.generate(request):
            assert difference(picture.image, together[number, picture.seed]) <= most


def kernels_treat_rows_alike(ours: Engine, rows: int) -> bool:
    """Whether equal rows of one evaluation get equal bits here, wherever they stand: what fixed rows build on."""
    job = ours._job(MIXED[1], {})
    question = ours._started(job, range(1), None, None).question()
    answer = job.denoiser.predict(question.mapped(lambda one: one.expand(rows, *one.shape[1:]).contiguous()))
    return all(torch.equal(answer[0], row) for row in answer)


def test_with_fixed_rows_every_evaluation_has_the_same_shape(engine: tuple[Engine, int]):
    ours, _ = engine
    job = ours._job(MIXED[0], {})
    asked: list[int] = []

    class Noting(FixedRows):
        """Notes the rows that really go through."""

        def _filled(self, rows):
            filled = super()._filled(rows)
            asked.append(len(filled))
            return filled

    runs = [ours._started(job, range(index, index + 1), None, None) for index in range(2)]
    for count in (1, 2):
        Noting(job.denoiser, 6).predict(joined([run.question() for run in runs[:count]]))
    assert set(asked) == {6}


def test_with_fixed_rows_company_changes_no_bit(engine: tuple[Engine, int]):
    ours, most = engine
    most = 0 if kernels_treat_rows_alike(ours, 6) else most
    mixed = MIXED[:5]
    together = drawn(ours, mixed, max_rows=6, fixed_rows=True)
    reversed_order = drawn(ours, mixed[::-1], max_rows=6, fixed_rows=True)
    for (number, seed), picture in together.items():
        alone = drawn(ours, (mixed[number],), max_rows=6, fixed_rows=True)
        assert difference(picture, alone[0, seed]) <= most
        assert difference(picture, reversed_order[len(mixed) - 1 - number, seed]) <= most


def test_steps_of_different_requests_share_evaluations(engine: tuple[Engine, int]):
    ours, _ = engine
    jobs = [ours._job(request, {}) for request in MIXED[:3]]
    runs = [ours._started(job, range(1), None, None) for job in jobs]
    packer = Packer(max_rows=5)  # two guided images and one that is not
    for job, run in zip(jobs, runs, strict=True):
        packer.add(Packed(run, job.denoiser))
    ended = [run for run, why in packer.drain() if why is None]
    assert [ended.index(run) for run in (runs[2], runs[0], runs[1])] == [0, 1, 2]  # after 2, 3 and 4 steps
    assert packer.evaluations == 4
    assert len(packer) == 0


def test_rows_are_never_more_than_allowed_and_who_waits_longest_goes_first(engine: tuple[Engine, int]):
    ours, _ = engine
    asked: list[int] = []

    class Counting:
        """Notes how many rows each evaluation has."""

        def __init__(self, denoiser):
            self.denoiser = denoiser

        def __getattr__(self, name):
            return getattr(self.denoiser, name)

        def predict(self, question):
            asked.append(len(question.x_t))
            return self.denoiser.predict(question)

    job = ours._job(MIXED[0], {})
    counting = Counting(job.denoiser)
    packer = Packer(max_rows=4)
    runs = [ours._started(job, range(index, index + 1), None, None) for index in range(3)]
    for run in runs:
        packer.add(Packed(run, counting))  # type: ignore[arg-type]
    packer.step()
    assert [run.step for run in runs] == [1, 1, 0]
    packer.step()
    assert [run.step for run in runs] == [2, 1, 1]
    list(packer.drain())
    assert max(asked) == 4
    assert sum(asked) == 2 * 3 * 3


def test_a_cancelled_run_leaves_and_the_others_go_on(engine: tuple[Engine, int]):
    ours, most = engine
    job = ours._job(MIXED[0], {})
    stop = False
    kept = ours._started(job, range(1), None, None)
    gone = ours._started(job, range(1, 2), None, lambda: stop)
    packer = Packer(max_rows=4)
    packer.add(Packed(kept, job.denoiser))
    packer.add(Packed(gone, job.denoiser))
    packer.step()
    stop = True
    ended = list(packer.drain())
    assert [(run is gone, type(why)) for run, why in ended] == [(True, Cancelled), (False, type(None))]
    assert (gone.step, kept.step) == (1, 3)
    finished = ours._finished(job, 0, kept.latents, job.denoiser.in_use)
    assert difference(finished.image, ours.generate(MIXED[0])[0].image) <= most


@pytest.fixture(scope="module")
def lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA file for the U-Net: linear maps and convolutions, some with magnitudes of their own (DoRA)."""
    tree = MapTree.of_spec(Components.open(str(tiny_folder), "cpu", "float32", None).spec)
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    plain = random_lora(tree, ["unet"], size=0.4)["unet"]
    shapes = tree.shapes["unet"]
    convolution = next(path for path in sorted(shapes) if path.endswith("conv1"))
    plain[convolution] = adapter(shapes[convolution], size=0.4)
    first = next(iter(plain))
    plain[first] = adapter(shapes[first], size=0.4, dora=True)
    write_lora(file, arrange({"unet": plain}, "kohya", tree))
    return str(file)


def test_requests_under_loras_of_their_own_share_evaluations(engine: tuple[Engine, int], lora: str):
    ours, most = engine
    mixed = (
        MIXED[0],
        MIXED[0].model_copy(update={"loras": (lora,)}),
        MIXED[1].model_copy(update={"loras": (f"{lora}@0.5",)}),
        MIXED[4].model_copy(update={"loras": (lora,), "num_images": 1}),
    )
    plain = ours.generate(MIXED[0])[0].image
    together = drawn(ours, mixed, max_rows=8)
    for number, request in enumerate(mixed):
        (alone,) = ours.generate(request)
        assert difference(together[number, alone.seed], alone.image) <= most
    assert difference(together[0, 1], together[1, 1]) > 1
    assert difference(ours.generate(MIXED[0])[0].image, plain) == 0, "no weight is left behind"
    assert not any("forward" in vars(module) for module in ours.components.unet().modules())


def test_rows_under_different_loras_are_one_evaluation(engine: tuple[Engine, int], lora: str):
    ours, _ = engine
    requests = [MIXED[0].model_copy(update={"loras": loras}) for loras in ((), (lora,), (f"{lora}@0.5",))]
    jobs = [ours._job(request, {}) for request in requests]
    packer = Packer(6, ours._during)
    for job in jobs:
        packer.add(Packed(ours._started(job, range(1), None, None), job.denoiser, (), job))
    assert len(list(packer.drain())) == 3
    assert packer.evaluations == 3, "as many as one of them has steps"


def test_while_rows_have_weights_of_their_own_nobody_else_draws(tiny_folder: Path, lora: str):
    adapters = Engine(Components.open(str(tiny_folder), "cpu", "float32", None)).adapters
    loaded, order = adapters.load((lora,)), []

    def draw() -> None:
        with adapters.injected(()):
            order.append("other")

    with adapters.by_rows([(1, ()), (1, loaded)]):
        other = Thread(target=draw)
        other.start()
        other.join(0.2)
        order.append("rows")
    other.join()
    assert order == ["rows", "other"]


def test_filling_refuses_more_rows_than_it_has(engine: tuple[Engine, int]):
    ours, _ = engine
    job = ours._job(MIXED[0], {})
    run = ours._started(job, range(1), None, None)
    with pytest.raises(ValueError, match="2 rows for evaluations of 1"):
        FixedRows(job.denoiser, 1).predict(run.question())
