"""The case `adapting-speed`: what it times, its two sides at tiny size, the folders and flags that it gives them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vega_diffusion.benchmarks import adapting_speed
from vega_diffusion.benchmarks.adapting_loops import run as run_naively
from vega_diffusion.benchmarks.adapting_speed import JOBS, Setting, flags, measure, recipe_of, write_pictures
from vega_diffusion.benchmarks.watched import watch_command
from vega_diffusion.errors import InvalidValue, MissingFile
from vega_diffusion.specs.diffusers_flags import FLAGS

# Says what diffusers' scripts say: after its imports, and as its bar begins and ends; a step takes a tenth of a second.
SCRIPT = """
import os, sys, time
steps = int(next(a for a in sys.argv if a.startswith("--max_train_steps=")).partition("=")[2])
assert os.environ["OMP_NUM_THREADS"] == "1"
print("INFO - __main__ - Distributed environment: NO", file=sys.stderr)
print("Map:  100%|###| 1/1 [00:00<00:00, 9.0 examples/s]", file=sys.stderr)
for step in range(steps + 1):
    print(f"\\rSteps: {100 * step // steps:3}%|# | {step}/{steps} [00:00<?, ?it/s, lr=0.1]", end="", file=sys.stderr)
    time.sleep(0.1 * (step < steps))
time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("adapting")
    write_pictures(home, 4)
    return home


@pytest.fixture
def setting(pictures: Path, tiny_folder: Path, tmp_path: Path) -> Setting:
    return Setting(
        model=str(tiny_folder),
        pictures=str(pictures / "captioned"),
        class_pictures=str(pictures / "class"),
        output=str(tmp_path / "output"),
        steps=3,
        batch=2,
        resolution_px=64,
    )


def test_signs_are_timed_from_the_start_even_in_pieces() -> None:
    program = """if True:
        import sys, time
        for piece in ("be", "gun\\r3/", "3 [x", ""):
            print(piece, end="", file=sys.stderr, flush=True)
            time.sleep(0.2)
    """
    watched = watch_command([sys.executable, "-c", program], {"begun": "begun", "done": r"3/3 \["})
    assert 0.15 < watched.between("begun", "done").wall_s < 0.6
    assert watched.between("begun").wall_s == pytest.approx(watched.end.wall_s - watched.signs["begun"].wall_s)
    assert watched.between("begun").cpu_s < 0.15  # it slept
    with pytest.raises(RuntimeError, match="never gave the sign 'late'"):
        watch_command([sys.executable, "-c", "print('begun')"], {"begun": "begun", "late": "late"})
    with pytest.raises(RuntimeError, match="ended with 3: last words"):
        watch_command([sys.executable, "-c", "print('last words'); raise SystemExit(3)"], {})


def test_folders_are_what_both_sides_can_read(pictures: Path) -> None:
    names = {f"scene-{number:07d}.png" for number in range(4)}
    assert {path.name for path in (pictures / "captioned").iterdir()} == names | {"metadata.jsonl"}
    assert {path.name for path in (pictures / "bare").iterdir()} == names
    assert {path.name for path in (pictures / "class").iterdir()} == names
    rows = [json.loads(line) for line in (pictures / "captioned/metadata.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"file_name", "text"}] * 4
    assert (pictures / "class" / "scene-0000000.png").read_bytes() != (
        pictures / "bare" / "scene-0000000.png"
    ).read_bytes()


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_the_naive_loop_learns_and_leaves_its_result(job: adapting_speed.Job, setting: Setting) -> None:
    losses = run_naively(job.name, setting)
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    found = {path.name for path in Path(setting.output).rglob("*.safetensors")}
    assert found == {
        "diffusion_pytorch_model.safetensors" if job.name == "full" else "pytorch_lora_weights.safetensors"
    }


def test_both_sides_of_a_job_do_the_same_work(setting: Setting) -> None:
    for job in JOBS:
        recipe: Any = recipe_of(job.name, setting)
        assert recipe.steps == setting.steps
        assert recipe.batch_size == recipe.micro_batch_size == setting.batch * job.pictures_per_sample
        assert (recipe.mixed_precision, recipe.ema, recipe.tracker, recipe.sample_every) == ("no", None, None, None)
        assert (recipe.model.lora is None) == (job.name == "full")
        assert recipe.model.lora is None or recipe.model.lora.rank == 4
        assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (setting.lr, setting.weight_decay)
        assert recipe.objective.min_snr_gamma is None
        assert (not recipe.data.prior) == (job.name != "dreambooth")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_flag_is_one_that_the_script_has(job: adapting_speed.Job, setting: Setting) -> None:
    letter = {"lora": "L", "full": "F", "dreambooth": "D"}[job.name]
    known = {flag.name for flag in FLAGS if letter in flag.scripts}
    required = {flag.name for flag in FLAGS if letter in flag.scripts and flag.required}
    given = {one.removeprefix("--").partition("=")[0] for one in flags(job, setting)}
    assert given <= known
    assert required <= given
    assert "validation_prompt" not in given


def test_a_checkout_s_scripts_are_run_as_they_are(
    pictures: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in JOBS:
        script = tmp_path / job.script
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(SCRIPT)
    given = {"model": str(tiny_folder), "steps": 3, "batch": 2, "resolution_px": 64}
    before = dict(os.environ)
    for job in JOBS:
        watched = adapting_speed.run_once(job, "theirs", pictures, given, tmp_path)
        assert 0.25 < watched.between("first", "last").wall_s < 0.9
        assert watched.between("begun").wall_s > watched.between("first", "last").wall_s + 0.15
    assert dict(os.environ) == before
    with pytest.raises(MissingFile, match="give a checkout of diffusers"):
        measure(diffusers=tmp_path / "nowhere")
    with pytest.raises(InvalidValue, match=r"--job: 'style' .* lora, full, dreambooth"):
        measure(job=("style",))


def test_the_figures_are_medians_of_the_rounds_own_ratios() -> None:
    from vega_diffusion.benchmarks.protocol import Timing
    from vega_diffusion.benchmarks.watched import Watched

    def run(begun: float, first: float, last: float, end: float) -> Watched:
        signs = {"begun": begun, "first": first, "last": last}
        return Watched({name: Timing(value, value) for name, value in signs.items()}, Timing(end, end))

    ours = [run(1, 2, 4, 5), run(1, 2, 4, 6), run(1, 2, 4, 9)]
    theirs = [run(1, 2, 8, 9), run(1, 2, 8, 16), run(1, 2, 8, 9)]
    samples: dict[str, list[float]] = {}
    summary: dict[str, float | int | str] = {"against": "a loop"}
    bar = adapting_speed._figures(JOBS[0], 80, {"ours": ours, "theirs": theirs}, samples, summary)
    assert bar.measured == summary["lora_run_ratio"] == 2.0  # of 2, 3 and 1
    assert summary["lora_steps_ratio"] == 3.0
    assert summary["lora_process_ratio"] == 1.8
    assert summary["lora_ours_run_samples_per_cpu_s"] == 16.0
    assert samples["lora_theirs_steps_cpu_s"] == [6.0, 6.0, 6.0]
    assert not bar.model_copy(update={"measured": 1.49}).met


def test_our_side_of_a_job_as_a_program(
    pictures: Path,
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    own = setting.model_copy(update={"pictures": str(pictures / "bare"), "steps": 1})
    file = tmp_path / "setting.json"
    file.write_text(own.to_json())
    adapting_speed.main("dreambooth", str(file))
    err = capsys.readouterr().err
    assert err.index(adapting_speed.BEGUN) < err.index("?step/s") < err.index("1/1 [")
    assert list((tmp_path / "home/runs/dreambooth/ema").iterdir())
    assert torch.get_num_threads() == 1
