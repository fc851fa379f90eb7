"""Records of an experiment's runs: found while they stand, refused when anything differs that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vega_diffusion.benchmarks.experiment_records import Records, Score, check_alike, new_record, weights_of
from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation.compare import compare_seeds
from vega_diffusion.evaluation.results import EvaluationResult, make_result
from vega_diffusion.evaluation.run_folder import Identity, JudgedPicture
from vega_diffusion.evaluation.suites import read_suite
from vega_diffusion.models.detections import Finding
from vega_diffusion.specs.recipe import TrainRecipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/vega-mini-distill-cpu.toml"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "trial.toml")


def test_a_record_is_found_while_recipe_and_weights_are_the_same(records: Records) -> None:
    recipe, made_of = TrainRecipe.read(RECIPE), {"unet of a": "1", "vae of b": "2"}
    assert records.find("x", recipe, made_of) is None
    kept = records.write(new_record("x", recipe, made_of, 12.5).model_copy(update={"held_out_loss": 0.05}))
    assert records.find("x", recipe, made_of) == kept
    assert records.find("y", recipe, made_of) is None
    assert records.find("x", recipe, {"vae of b": "2"}) == kept, "weights that are not here any more"
    assert records.find("x", recipe, made_of | {"vae of b": "3"}) is None
    assert records.find("x", TrainRecipe.read(RECIPE, ["optimizer.lr=1e-3"]), made_of) is None
    assert records.find("x", TrainRecipe.read(RECIPE, ["log_every=7"]), made_of) == kept, "decides no weight"
    (records.folder / "x.json").write_text("{")
    with pytest.raises(VegaError, match=r"x\.json: no whole record .* remove it to run again"):
        records.find("x", recipe, made_of)


def test_the_weights_of_a_recipe_are_told_by_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plain = weights_of(TrainRecipe.read(RECIPE))
    assert {"unet of mini-sdxl", "vae of mini-sdxl", "text_encoder of mini-sdxl"} <= plain.keys()
    assert all(len(value) == 64 for value in plain.values())
    proposed = ["model.surgery.map=benchmarks/proposals/mini-sdxl-vega.toml"]
    assert weights_of(TrainRecipe.read(RECIPE, proposed)).keys() - plain.keys() == {"map mini-sdxl-vega.toml"}
    absent = ["objective.teachers.0.weights=run:nobody"]
    assert weights_of(TrainRecipe.read(RECIPE, absent)) == plain, "what is not here has no hash"


def test_runs_of_two_teachers_under_one_name_are_not_compared() -> None:
    one, two = (new_record(name, None, {"unet of run:a": digest}) for name, digest in (("x", "1"), ("y", "2")))
    check_alike([one, one])
    with pytest.raises(VegaError, match="y: made of another unet of run:a than x"):
        check_alike([one, two])


def evaluated(first: int) -> EvaluationResult:
    suite = read_suite("scenes", "dev").limited(2)
    judged = [
        JudgedPicture(
            id=prompt.id,
            kind=prompt.kind,
            unseen=prompt.unseen,
            seed=seed,
            file="x.png",
            passed=(seed * 7 + first) % 3 > 0,
            reasons=(),
            finding=Finding((), "white", "flat"),
        )
        for prompt in suite.prompts
        for seed in prompt.seeds
    ]
    identity = Identity(
        suite="scenes",
        split="dev",
        suite_sha256=suite.sha256,
        limit=2,
        model="m",
        model_digest="d",
        checker_sha256="c",
        settings={},
    )
    return make_result(suite.prompts, judged, judged, identity, run="r", commit=None, finished="", seconds=1.0)


def test_a_score_keeps_what_comparisons_read(records: Records) -> None:
    results = [evaluated(first) for first in range(2)]
    scores = [Score.of(result, {"flat": 1.0}) for result in results]
    assert compare_seeds([(scores[0], scores[1])]) == compare_seeds([(results[0], results[1])])
    record = records.write(new_record("x", None, {}).model_copy(update={"score": scores[0]}))
    again = records.find("x", None, {})
    assert again == record
    assert again is not None
    assert again.score is not None
    assert {name: rates.rate for name, rates in again.score.prompts.items()} == {
        name: rates.rate for name, rates in results[0].prompts.items()
    }
    assert (again.score.overall, again.score.kinds) == (results[0].overall, results[0].kinds)
    other = scores[0].identity.model_copy(update={"suite_sha256": "0"})
    with pytest.raises(VegaError, match="scored on other prompts"):
        _ = scores[0].model_copy(update={"identity": other}).prompts
