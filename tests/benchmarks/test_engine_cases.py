"""Cases about the engine, run for real on a tiny model: what a profile costs, what packing gives."""

from __future__ import annotations

import inspect
import json
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

from vega_diffusion.benchmarks import certify, contestants, packing, parameters, speed
from vega_diffusion.benchmarks.figures import draw_sizes, draw_speed
from vega_diffusion.benchmarks.openvino_plain import PlainUNet
from vega_diffusion.benchmarks.protocol import Timing
from vega_diffusion.benchmarks.report import make_result
from vega_diffusion.errors import InvalidValue, Unavailable
from vega_diffusion.inference.backends.torch_eager import TorchEager
from vega_diffusion.inference.certificates import FOLDER
from vega_diffusion.models.measure import unet_macs
from vega_diffusion.specs.certificate import Certificate
from vega_diffusion.specs.presets import preset


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the profile's last route: converting is tested where the backends are."""
    from vega_diffusion.specs.profile import PROFILES

    torch_alone = PROFILES["turbo"].model_copy(update={"routes": PROFILES["turbo"].routes[-1:]})
    monkeypatch.setitem(PROFILES, "turbo", torch_alone)


@pytest.mark.usefixtures("only_torch")
def test_a_certificate_is_measured_and_kept(tiny_folder: Path, home: Path):
    found = certify.measure("turbo", str(tiny_folder), prompts=3, repeats=5, ruler=False)
    (file,) = (home / FOLDER).rglob("*.json")
    certificate = Certificate.from_json(file.read_text())
    assert (certificate.profile, certificate.backend, certificate.precision) == ("turbo", "torch", "fp32")
    assert certificate.model == tiny_folder.name
    assert (certificate.num_prompts, certificate.following_change) == (3, None)
    assert found.name == "turbo-torch-fp32-full"
    assert len(found.samples["exact_wall_s"]) == len(found.samples["turbo_wall_s"]) == 5
    cosines = found.samples["latent_cosine"]
    assert len(cosines) == 3
    assert max(cosines) < 1 - 1e-6  # something was left out, and it shows
    assert min(cosines) == pytest.approx(certificate.latent_cosine_min, abs=1e-4)
    assert found.bars == ()  # goals are for what the ruler measures
    assert "not measured" in str(certificate)


def test_as_many_prompts_as_a_certificate_asks_for_are_there():
    default = inspect.signature(certify.measure).parameters["prompts"].default
    texts = certify._texts(default)
    assert len(texts) == default == 200
    assert len(set(texts)) == 175
    assert len(set(certify._texts(35))) == 35


def test_exact_and_too_many_prompts_are_refused(tiny_folder: Path):
    with pytest.raises(InvalidValue, match="exact needs no certificate"):
        certify.measure("exact", str(tiny_folder))
    with pytest.raises(InvalidValue, match="--prompts"):
        certify.measure("turbo", str(tiny_folder), prompts=100_000)
    with pytest.raises(InvalidValue, match="allowed: --no-ruler with --may-compile"):
        certify.measure("turbo", str(tiny_folder), may_compile=True)


def test_packing_is_timed_beside_one_at_a_time(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    few = [request.model_copy(update={"num_steps": 2}) for request in packing.mixed_requests("exact")[:3]]
    monkeypatch.setattr(packing, "mixed_requests", lambda profile: few)
    found = packing.measure(str(tiny_folder), max_rows=6)
    assert found.name == "torch-fp32"
    assert set(found.samples) == {
        f"{way}_{clock}_s" for way in ("one_at_a_time", "packed", "fixed_rows") for clock in ("wall", "cpu")
    }
    assert [bar.limit for bar in found.bars] == [1.7, 1]
    assert found.bars[1].met


def test_mixed_requests_differ_in_all_that_may_differ():
    requests = packing.mixed_requests("exact")
    assert len(requests) == 8
    for field in ("num_steps", "guidance_scale", "sampler", "seed", "prompt"):
        assert len({getattr(request, field) for request in requests}) > 2


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("vega", "vega:torch:own"),
        ("vega:openvino", "vega:openvino:own"),
        ("vega:openvino:int8", "vega:openvino:int8"),
    ],
)
def test_contestants_are_read_from_text(text: str, read: str):
    assert str(speed.Contestant.parse(text)) == read


@pytest.mark.parametrize(
    "text", ["", "vega:", "a:b:c:d", ":torch", "vega@fast", "@turbo", "vega+large", "vega@turbo:torch"]
)
def test_what_is_no_contestant_is_refused(text: str):
    with pytest.raises(InvalidValue, match="contestants"):
        speed.Contestant.parse(text)


def test_unets_are_timed_in_turn_and_told_as_they_ran():
    found = speed.measure(("vega-mini", "mini-sdxl:torch:fp32"), size_px=64)
    assert found.name == "vega-mini-torch-own-64"
    assert found.summary["vega-mini:torch:own in use"] == "torch fp32"
    assert float(found.summary["vega-mini:torch:own against mini-sdxl:torch:fp32"]) > 0
    assert len(found.samples["mini-sdxl:torch:fp32 cpu_s"]) == 5
    work = 2 * unet_macs(preset("vega-mini").unet, 64, 64) / 1e12
    seconds = statistics.median(found.samples["vega-mini:torch:own wall_s"])
    assert found.summary["vega-mini:torch:own TFLOP/s"] == pytest.approx(work / seconds, abs=0.006)
    with pytest.raises(InvalidValue, match="two or more"):
        speed.measure(("vega-mini", "vega-mini:torch:own"))


def test_what_a_device_cannot_run_is_refused_before_it_is_built():
    asked = speed.Contestant.parse("vega-mini:openvino:bf16")
    with pytest.raises(InvalidValue, match="torch backends on cuda"):
        contestants.open_contestant(asked, 64, 1, 1, device="cuda")
    with pytest.raises(InvalidValue, match="cuda_graphs: True is not allowed; allowed: False on cpu"):
        speed.measure(("vega-mini:torch-graphs:fp32", "vega-mini"), size_px=64, device="cpu")


def test_goals_are_of_what_a_picture_asks_and_say_who_chose_layers(monkeypatch: pytest.MonkeyPatch):
    pair = ("vega-mini:torch:own", "mini-sdxl:torch:own")
    monkeypatch.setitem(speed.GOALS, (*pair, 64, "none"), 1.5)
    (bar,) = speed.measure(pair, size_px=64, rows=2).bars
    assert (bar.what, bar.limit) == (" against ".join(pair) + ", 64 px", 1.5)
    assert speed.measure(pair, size_px=64, rows=3).bars == ()
    told = list(speed._bars({pair[1]: [2.0, 2.0]}, {}, (pair[0], 64, "none"), "vega-mini"))
    assert [bar.what for bar in told] == [" against ".join(pair) + ", 64 px, layers in int8 as of vega-mini"]


def test_pictures_are_steps_and_one_decoding(tmp_path: Path):
    found = speed.measure(("vega-mini", "ssd-mini"), size_px=64, rows=4, decoder="tiny", num_steps=3)
    assert found.name == "vega-mini-torch-own-64-tiny-4-rows", "beside what one picture asks for"
    steps, last = (found.samples[f"vega-mini:torch:own{part} cpu_s"] for part in ("", " decoding"))
    picture = statistics.median(3 * step + decoding for step, decoding in zip(steps, last, strict=True))
    assert found.summary["vega-mini:torch:own picture cpu_s"] == pytest.approx(picture, abs=1e-3)
    result = make_result("speed", "command", found, threads=1, load_before=0.0)
    on_wall = {key.replace("picture cpu_s", "picture wall_s"): value for key, value in found.summary.items()}
    on_gpu = make_result("speed", "command", found.model_copy(update={"summary": on_wall}), threads=1, load_before=0.0)
    draw_speed([result, on_gpu], tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").read_text().count("<!-- ssd-mini -->") == 2


@pytest.mark.usefixtures("only_torch")
def test_a_profile_is_timed_by_what_its_steps_ask():
    asked = ("vega-mini@turbo+tiny", "vega-mini@exact", "ssd-mini")
    found = speed.measure(asked, size_px=64, rows=2, decoder="full", num_steps=10)
    assert found.name == "vega-mini-turbo-tiny-64-full"
    # Guided at steps 0 to 7; deep at 0 and 1, the first fifth, and at every other one.
    kinds = {"2 rows": 5, "2 rows, shallow": 3, "1 row": 1, "1 row, shallow": 1}
    turbo = "vega-mini@turbo+tiny"
    parts = [(f"{turbo} {kind}", count) for kind, count in kinds.items()] + [(f"{turbo} decoding", 1)]
    assert set(name for name in found.samples if "turbo" in name) == {
        f"{part} {clock}" for part, _ in parts for clock in ("wall_s", "cpu_s")
    }
    rounds = zip(*(found.samples[f"{part} cpu_s"] for part, _ in parts), strict=True)
    pictures = [sum(n * s for (_, n), s in zip(parts, each, strict=True)) for each in rounds]
    assert found.summary[f"{turbo} picture cpu_s"] == pytest.approx(statistics.median(pictures), abs=1e-3)
    assert found.summary[f"{turbo} asks for"] == "; ".join(f"{count} x {kind}" for kind, count in kinds.items())
    assert found.summary["vega-mini@exact asks for"] == "10 x 2 rows"
    assert found.summary["ssd-mini:torch:own asks for"] == "10 x 2 rows"
    work = {name: float(found.summary[f"{name} picture cpu_s"]) for name in (turbo, "vega-mini@exact")}
    assert work[turbo] < work["vega-mini@exact"]


def test_a_profile_of_few_steps_has_its_own_number_and_no_guidance(monkeypatch: pytest.MonkeyPatch):
    from vega_diffusion.specs.profile import PROFILES

    alone = PROFILES["realtime"].model_copy(update={"routes": PROFILES["realtime"].routes[-1:]})
    monkeypatch.setitem(PROFILES, "realtime", alone)
    one = contestants.open_contestant(speed.Contestant.parse("vega-mini@realtime"), 64, 2, 1, "full", num_steps=25)
    assert dict(one.counts) == {contestants.Evaluation(1, True): 4}
    assert one.in_use() == "torch fp32"
    assert contestants.decoder_of(speed.Contestant.parse("vega-mini@realtime"), "full") == "tiny"
    assert contestants.decoder_of(speed.Contestant.parse("vega-mini@realtime+full"), "tiny") == "full"


def test_a_peer_that_is_not_there_or_cannot_is_refused_before_weights_are_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "stable_diffusion_cpp", None)
    for text, wrong, said in (
        ("vega-mini:stable-diffusion.cpp:fp16", Unavailable, "pip install stable-diffusion-cpp-python"),
        ("vega-mini:stable-diffusion.cpp", InvalidValue, "'own' is not allowed"),
        ("vega-mini:stable-diffusion.cpp:fp16+tiny", InvalidValue, "without a decoder"),
        ("vega-mini:torch:int4", InvalidValue, "of torch: fp32, bf16, fp16, int8"),
    ):
        with pytest.raises(wrong, match=said):
            contestants.open_contestant(speed.Contestant.parse(text), 64, 1, 1)


STAND_IN = """
import json, time
from pathlib import Path
from safetensors.torch import load_file

class StableDiffusion:
    def __init__(self, model_path, wtype, **_):
        self.tensors = {name: str(tensor.dtype) for name, tensor in load_file(model_path).items()}
        self.wtype = wtype

    def generate_image(self, *, sample_steps, progress_callback, **asked):
        Path(__file__).with_name("seen.json").write_text(json.dumps([self.wtype, self.tensors, asked]))
        progress_callback(1, 7, 0.0)  # of loading
        for step in range(1, sample_steps + 1):
            time.sleep(0.3 if step == 1 else 0.05)
            progress_callback(step, sample_steps, 0.0)
            if step == 4:
                raise RuntimeError("a fault of its own")
"""


def test_a_peer_that_draws_whole_pictures_goes_on_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The binding is not installed here; what stands in for it reads the file and tells of its steps as it does."""
    (tmp_path / "stable_diffusion_cpp.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    one = contestants.open_contestant(speed.Contestant.parse("vega-mini:stable-diffusion.cpp:int8"), 64, 2, 1)
    (step,) = one.evaluate.values()
    time.sleep(1.0)  # it waits: what passes between steps is no step
    for _ in range(3):
        taken = step()
        assert isinstance(taken, Timing)
        assert 0.05 <= taken.wall_s < 1.0
        assert 0 <= taken.cpu_s < taken.wall_s + 0.05
    assert one.in_use() == "stable-diffusion.cpp q8_0"
    wtype, tensors, asked = json.loads((tmp_path / "seen.json").read_text())
    assert (wtype, asked["width"], asked["cfg_scale"]) == ("q8_0", 64, 5.0)
    assert set(tensors.values()) == {"torch.float16"}
    assert len(tensors) == 897  # as `vega convert single-file vega-mini` writes
    with pytest.raises(RuntimeError, match="stable-diffusion.cpp: ended with 1 before its step was done"):
        step()


def test_a_peer_in_openvino_holds_nothing_of_ours_and_answers_as_torch_does():
    pytest.importorskip("openvino")
    question = contestants.random_question(preset("vega-mini"), 8, 2)
    _, _, build = contestants._model("vega-mini")
    unet = build(torch.float32)
    peer = PlainUNet(unet, question, "fp32", 1)
    ((answer,),) = peer._compiled.run(peer._arrays)
    expected = TorchEager(lambda: unet).predict(question)
    torch.testing.assert_close(torch.from_numpy(answer), expected, atol=1e-4, rtol=1e-4)
    assert peer.precision_in_use() == "fp32"


def test_sizes_are_counted_by_part_and_drawn(tmp_path: Path):
    found = parameters.measure(("vega", "sdxl"))
    assert (found.summary["vega unet"], found.summary["sdxl unet"]) == (745_225_604, 2_567_463_684)
    assert all(bar.met for bar in found.bars)
    result = make_result("parameters", "command", found, threads=1, load_before=0.0)
    draw_sizes(result, tmp_path / "sizes.svg")
    drawn = (tmp_path / "sizes.svg").read_text()
    assert drawn.count("<!-- sdxl -->") == 2
    with pytest.raises(InvalidValue, match="two or more"):
        parameters.measure(("vega",))


def test_torch_in_8_bits_is_a_contestant():
    one = contestants.open_contestant(speed.Contestant.parse("vega-mini:torch:int8"), 64, 1, 1)
    for evaluate in one.evaluate.values():
        evaluate()
    assert one.in_use() == "torch int8"
