"""`vega map propose` for real at tiny size: scores, candidates, trials that resume, report, figure, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny_distillation import recipe_text, teacher_text
from vega_diffusion.cli.main import main
from vega_diffusion.errors import InvalidValue
from vega_diffusion.models.detect import load_spec
from vega_diffusion.specs.known_maps import read_map
from vega_diffusion.specs.lora import LORA_FILE
from vega_diffusion.training import propose
from vega_diffusion.training.proposal_figure import labels
from vega_diffusion.training.propose import Budget, Candidate


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    file = tmp_path / "distill.toml"
    schedule = '[lr_schedule]\nkind = "cosine"\nwarmup_steps = 5\n'
    text = recipe_text(teacher_text("one", "mini-sdxl", "first"), steps=6, micro_batch_size=1)
    file.write_text(text.replace("\nbatch_size = 4", "\nbatch_size = 1") + schedule)
    return file


@pytest.mark.slow
def test_a_proposal_from_scores_to_trials(
    recipe: Path,
    stretched_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(propose, "RULES", ("first",))  # all of them are tried below
    teacher, output = stretched_folder, tmp_path / "proposal"
    argv = ["map", "propose", str(teacher), "--budget", "parameters=0.31", "--recipe", str(recipe)]
    argv += ["--output", str(output), "--samples", "1", "--candidates", "1", "--trial-steps", "2", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((output / "proposal.json").read_text())
    assert {one["name"] for one in report["candidates"]} == {"scores-1", "first"}
    assert len(report["errors"]) == 61
    losses = [one["recovered_loss"] for one in report["candidates"]]
    assert losses == sorted(losses)
    best = {one["name"]: one for one in report["candidates"]}
    assert best["scores-1"]["prior"] <= min(one["prior"] for one in best.values())
    whole = best["scores-1"]["unet_parameters"]
    assert whole <= 0.31 * 25_611_140
    for name, one in best.items():
        assert one["recovered_loss"] != one["carved_loss"]
        layers = read_map(str(output / one["file"]))
        assert load_spec(output / "students" / name).unet.same_network(layers.student_spec(load_spec(teacher).unet))
    assert set(report["pareto"]) <= best.keys()
    assert (output / "proposal.png").stat().st_size > 10_000
    assert main(argv[:-1]) == 0  # trials stand where they ended
    captured = capsys.readouterr()
    assert captured.err.count("resuming trial-") == 2
    assert "best " in captured.out


@pytest.mark.slow
def test_trials_may_train_adapters_alone(
    recipe: Path,
    stretched_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(propose, "RULES", ("first",))
    teacher, output = stretched_folder, tmp_path / "proposal"
    argv = ["map", "propose", str(teacher), "--budget", "parameters=0.31", "--recipe", str(recipe)]
    argv += ["--output", str(output), "--samples", "1", "--candidates", "1", "--trial-steps", "1", "--json"]
    assert main([*argv, "--set", "model.lora.rank=2", "--set", "optimizer.lr=1e-2"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {one["name"] for one in report["candidates"]} == {"scores-1", "first"}
    for one in report["candidates"]:
        assert one["recovered_loss"] != one["carved_loss"]
        assert (output / f"trial-{one['name']}/ema/{LORA_FILE}").is_file()
    assert main([*argv, "--set", "model.lora.rank=2", "--set", 'model.surgery={teacher="a", map="b"}']) == 2
    assert "model.surgery: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_proposal_for_a_given_shape(
    recipe: Path, stretched_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, output = stretched_folder, tmp_path / "proposal"
    argv = ["map", "propose", str(teacher), "--budget", "shape=vega-mini", "--recipe", str(recipe)]
    assert main([*argv, "--output", str(output), "--samples", "1", "--candidates", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["budget"] == "shape=vega-mini"
    found = {one["name"]: one for one in report["candidates"]}
    assert found.keys() == {"scores-1", "scores-2", "first", "even", "random-0"}
    assert {one["unet_parameters"] for one in found.values()} == {7_456_708}
    assert found["scores-1"]["prior"] <= found["scores-2"]["prior"]
    assert found["scores-1"]["prior"] <= min(found[rule]["prior"] for rule in ("first", "even", "random-0"))


def test_what_is_wrong_is_one_line(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*changes: str) -> str:
        argv = ["vega-mini", "--budget", "parameters=0.9", "--recipe", str(recipe), "--output", str(tmp_path / "out")]
        assert main(["map", "propose", *argv, "--samples", "4", *changes]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "--budget" in refused("--budget", "parameters=0.1")
    assert "--candidates" in refused("--candidates", "0")
    assert "--samples" in refused("--samples", "0")
    assert "objective" in refused("--set", 'objective={ kind = "denoising" }')
    assert "nothing-such" in refused("--budget", "shape=nothing-such")
    for text in ("size=1", "shape=", "parameters", "parameters=x", "parameters=-1", "latency=3"):
        with pytest.raises(InvalidValue, match="--budget"):
            Budget.parse(text)
    assert Budget.parse("macs=1e9") == Budget("macs", 1e9)


def test_labels_that_would_cover_each_other_become_one():
    def candidate(name: str, prior: float, loss: float) -> Candidate:
        return Candidate(name, f"maps/{name}.toml", "scores", prior, 1, loss, loss)

    near = [candidate("a", 0.0, 1.0), candidate("b", 0.02, 1.02), candidate("c", 0.0, 1.5), candidate("d", 1.0, 2.0)]
    assert list(labels(near).values()) == [["a", "b"], ["c"], ["d"]]
    assert labels(near[:1]) == {(0.0, 1.0): ["a"]}
    assert list(labels([candidate("a", 0.5, 1.0), candidate("b", 0.5, 1.0)]).values()) == [["a", "b"]]
