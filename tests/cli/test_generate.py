"""`vega generate` as a user meets it: pictures, paths, JSON, replay, and one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tiny_certificate import MADE
from vega_diffusion.cli.main import main
from vega_diffusion.inference.certificates import keep_certificate
from vega_diffusion.inference.components import Components
from vega_diffusion.inference.metadata import read_record
from vega_diffusion.inference.routes import route_ahead
from vega_diffusion.specs.profile import PROFILES


class Vega:
    """Runs the command in this process, on the tiny model, in a folder of its own."""

    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.model, self.capsys = folder, model, capsys

    def __call__(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        """Return exit code, lines of stdout, lines of stderr."""
        self.capsys.readouterr()
        code = main(["generate", *arguments])
        captured = self.capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    def draw(self, *arguments: str) -> list[Path]:
        """Draw with two steps on the tiny model; return the pictures."""
        code, out, err = self("a cat", "--model", str(self.model), "--num-steps", "2", *arguments)
        assert code == 0, err
        return [Path(line) for line in out]


@pytest.fixture
def vega(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Vega:
    monkeypatch.chdir(tmp_path)
    return Vega(tmp_path, tiny_folder, capsys)


def pixels(path: Path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.asarray(image).astype(int)


def test_pictures_go_to_a_folder_and_never_replace_one_another(vega: Vega) -> None:
    first = vega.draw("--seed", "3", "--num-images", "2")
    second = vega.draw("--seed", "3")
    assert first == [Path("pictures/a-cat-3.png"), Path("pictures/a-cat-4.png")]
    assert second == [Path("pictures/a-cat-3-2.png")]
    assert numpy.array_equal(pixels(first[0]), pixels(second[0]))
    assert not numpy.array_equal(pixels(first[0]), pixels(first[1]))
    assert pixels(first[0]).shape == (64, 64, 3)


def test_json_is_the_last_line(vega: Vega) -> None:
    code, out, _ = vega("a cat", "--model", str(vega.model), "--num-steps", "1", "--json", "--output", "one.png")
    assert code == 0
    result = json.loads(out[-1])
    assert set(result) == {"images", "seed", "seconds", "first_step_seconds", "model"}
    assert 0 < result["first_step_seconds"] < result["seconds"]
    assert result["images"] == ["one.png"]
    assert read_record(Path("one.png")).request.seed == result["seed"], "a random seed is recorded"
    assert result["seconds"] > 0
    assert result["model"] == str(vega.model)


def test_every_flag_reaches_the_record(vega: Vega) -> None:
    Image.new("RGB", (40, 40), "red").save("init.png")
    Image.new("L", (40, 40), 255).save("mask.png")
    given = {
        "negative_prompt": "blurry",
        "guidance_scale": 3.5,
        "num_steps": 4,
        "sampler": "euler_a",
        "seed": 9,
        "width": 72,
        "height": 56,
        "init_image": "init.png",
        "strength": 0.75,
        "mask": "mask.png",
        "original_size": (50, 60),
        "crop_top_left": (1, 2),
        "profile": "turbo",
        "guidance_interval": (0.0, 0.5),
        "guidance_kept": 0.25,
        "reuse": 3,
        "decoder": "full",
        "precision": "fp32",
    }
    flags: list[str] = []
    for field, value in given.items():
        joint = "," if field == "guidance_interval" else "x"
        text = joint.join(map(str, value)) if isinstance(value, tuple) else str(value)
        flags += [f"--{field.replace('_', '-')}", text]
    code, _, err = vega("a cat", "--model", str(vega.model), "--output", "x.png", "--dtype", "bfloat16", *flags)
    assert code == 0, err
    record = read_record(Path("x.png"))
    assert {field: getattr(record.request, field) for field in given} == given
    assert record.dtype == "bfloat16"
    assert record.init_image_sha256 != record.mask_sha256 is not None


def test_a_picture_is_made_again_from_itself(vega: Vega) -> None:
    _, second = vega.draw("--seed", "5", "--num-images", "2", "--sampler", "euler_a", "--dtype", "bfloat16")
    code, out, err = vega("--from", str(second), "--output", "again.png")
    assert code == 0, err
    assert out == ["again.png"]
    assert numpy.array_equal(pixels(second), pixels(Path("again.png")))
    assert read_record(Path("again.png")) == read_record(second)


def test_a_replay_takes_changes(vega: Vega) -> None:
    (picture,) = vega.draw("--seed", "5")
    code, _, err = vega("a dog", "--from", str(picture), "--seed", "6", "--output", "changed.png")
    assert code == 0, err
    changed, original = read_record(Path("changed.png")).request, read_record(picture).request
    assert changed == original.model_copy(update={"prompt": "a dog", "seed": 6})


def test_a_replay_drops_what_only_followed_from_what_changes(vega: Vega) -> None:
    (picture,) = vega.draw("--seed", "5", "--negative-prompt", "blurry")
    code, _, err = vega("--from", str(picture), "--guidance-scale", "1", "--width", "72", "--output", "changed.png")
    assert code == 0, err
    changed = read_record(Path("changed.png")).request
    assert (changed.negative_prompt, changed.guidance_interval, changed.original_size) == (None, None, (64, 72))


def test_a_replay_on_other_weights_is_refused(vega: Vega, model_folders: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "model"
    moved.symlink_to(vega.model)
    code, _, _ = vega("a cat", "--model", "model", "--num-steps", "1", "--output", "x.png")
    assert code == 0
    moved.unlink()
    moved.symlink_to(model_folders["no-mid-block"])
    code, out, err = vega("--from", "x.png", "--output", "y.png")
    assert (code, out, len(err)) == (2, [], 1)
    assert "from" in err[0]
    assert "weights" in err[0]
    assert not Path("y.png").exists()
    assert vega("--from", "x.png", "--model", "model", "--output", "y.png")[0] == 0


def test_a_changed_initial_picture_is_refused(vega: Vega) -> None:
    Image.new("RGB", (64, 64), "red").save("init.png")
    (picture,) = vega.draw("--init-image", "init.png")
    Image.new("RGB", (64, 64), "blue").save("init.png")
    code, _, err = vega("--from", str(picture), "--output", "y.png")
    assert (code, len(err)) == (2, 1)
    assert "init_image" in err[0]


def test_pictures_of_any_common_kind_can_be_started_from(vega: Vega) -> None:
    for mode in ("RGBA", "P", "L", "1"):
        Image.new(mode, (64, 64)).save("init.png")
        Image.new(mode, (64, 64)).save("mask.png")
        assert len(vega.draw("--init-image", "init.png", "--mask", "mask.png", "--output", f"{mode}.png")) == 1
    Image.new("I;16", (64, 64)).save("deep.png")
    code, _, err = vega("x", "--model", str(vega.model), "--init-image", "deep.png")
    assert (code, len(err)) == (2, 1)
    assert "8 bits" in err[0]


def test_a_long_plain_prompt_is_cut_with_a_word(vega: Vega) -> None:
    """The tiny tokenizer spends a token on every letter."""
    code, out, err = vega("b" * 75 + "cut", "--model", str(vega.model), "--num-steps", "1", "--output", "x.png")
    assert (code, out) == (0, ["x.png"])
    assert [line for line in err if line.startswith("warning: prompt") and "'cut'" in line]


def test_a_plan_draws_nothing(vega: Vega) -> None:
    asked = ("a cat", "--model", str(vega.model), "--profile", "turbo", "--num-steps", "10", "--plan", "--json")
    code, out, _ = vega(*asked)
    assert code == 0
    plan = json.loads(out[-1])
    assert (plan["profile"], plan["num_steps"], plan["guided_steps"], plan["deep_steps"]) == ("turbo", 10, 8, 6)
    assert plan["work_ratio"] > 1
    assert out[0].split() == ["profile", "turbo"]
    assert list(vega.folder.iterdir()) == []


def test_a_plan_counts_the_pixels_of_the_picture_it_starts_from(vega: Vega) -> None:
    Image.new("RGB", (96, 96)).save("init.png")
    asked = ("a cat", "--model", str(vega.model), "--num-steps", "4", "--strength", "1", "--plan", "--json")
    small, large, its_own = (
        json.loads(vega(*asked, "--init-image", "init.png", *size)[1][-1])["unet_gmac"]
        for size in (("--width", "64", "--height", "64"), ("--width", "96", "--height", "96"), ())
    )
    assert small < large == its_own


def test_a_plan_says_what_is_known_of_the_profile(vega: Vega, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA_HOME", str(vega.folder / "home"))
    asked = ("a cat", "--model", str(vega.model), "--profile", "turbo", "--dtype", "float32", "--plan")
    _, out, _ = vega(*asked)
    assert [line for line in out if line.startswith("profile turbo: not certified for these weights on ")] == out[-1:]
    parts = Components.open(str(vega.model), "cpu", "float32", None)
    backend, precision = route_ahead(parts, PROFILES["turbo"], (), lambda line: None)
    route = {"backend": backend, "precision": precision, "model_digest": parts.digest}
    made = MADE.model_copy(update=route | {"definition": PROFILES["turbo"].definition(backend, precision)})
    keep_certificate(made)
    _, out, _ = vega(*asked)
    assert out[5:] == str(made).splitlines()
    _, out, _ = vega(*asked, "--reuse", "8")
    assert "its certificate does not hold with reuse as this request has it" in out[-1]
    assert len(out) == 6
    _, out, _ = vega("a cat", "--model", str(vega.model), "--plan")
    assert len(out) == 5, "exact needs no certificate"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "prompt: missing"),
        ([""], "prompt"),
        (["x", "--width", "130"], "width"),
        (["x", "--num-steps", "0"], "num_steps"),
        (["x", "--num-steps", "many"], "num_steps"),
        (["x", "--seed", "-1"], "seed"),
        (["x", "--sampler", "best"], "sampler"),
        (["x", "--device", "toaster"], "device"),
        (["x", "--device", "xpu"], "device"),
        (["x", "--dtype", "int3"], "dtype"),
        (["x", "--model", "nothing-here"], "model"),
        (["x", "--model", "nobody/nothing"], "nobody/nothing"),
        (["x", "--init-image", "none.png"], "init_image"),
        (["x", "--crop-top-left", "5"], "crop_top_left"),
        (["x", "--prompt-syntax", "fancy"], "prompt_syntax"),
        (["x", "--profile", "fastest"], "profile"),
        (["x", "--guidance-interval", "0.5"], "guidance_interval"),
        (["x", "--guidance-interval", "0.5,0.2"], "guidance_interval"),
        (["x", "--guidance-interval", "0,0.5", "--guidance-scale", "1"], "guidance_interval"),
        (["x", "--reuse", "0"], "reuse"),
        (["x", "--decoder", "huge"], "decoder"),
        (["x", "--precision", "int8"], "precision"),
        (["x", "--compile"], "compile"),
        (["x", "--precision", "int3", "--profile", "turbo"], "precision"),
        (["x", "--plan", "--width", "130"], "width"),
        (["a AND b", "--prompt-syntax", "weighted"], "AND"),
        (["--from", "none.png"], "from"),
        (["x", "--output", "/dev/null/x"], "output"),
        (["x", "--frobnicate"], "frobnicate"),
        (["x", "--seed"], "seed"),
        (["x", "y"], "y"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(vega: Vega, arguments: list[str], names: str) -> None:
    model = [] if "--model" in arguments or "--from" in arguments else ["--model", str(vega.model)]
    code, out, err = vega(*arguments, *model)
    assert (code, out) == (2, [])
    assert len(err) == 1, err
    assert err[0].startswith("error: ")
    assert names in err[0]


def test_interrupted_is_130_and_leaves_no_half_picture(vega: Vega) -> None:
    command = [sys.executable, "-u", "-m", "vega_diffusion.cli.main", "generate", "a cat", "--num-images", "500"]
    with subprocess.Popen(
        [*command, "--model", str(vega.model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A suite that runs in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert pixels(Path(first)).shape == (64, 64, 3)
    assert not list(Path("pictures").glob(".*"))
