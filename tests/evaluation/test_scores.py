"""Scores, chance, intervals and comparisons in closed form."""

from __future__ import annotations

import pytest

from tiny_evaluation import identity, judged, prompt
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.evaluation.bootstrap import intervals
from vega_diffusion.evaluation.compare import compare
from vega_diffusion.evaluation.report import comparison_table, result_table
from vega_diffusion.evaluation.results import EvaluationResult, make_result, read_result
from vega_diffusion.evaluation.run_folder import Identity, JudgedPicture
from vega_diffusion.evaluation.scores import chance_rates, derangement, prompt_rates, scores_of, seen_and_unseen
from vega_diffusion.models.detections import Detection, Finding
from vega_diffusion.specs.evaluation import OVERALL_KINDS, ExpectedObject, SuitePrompt

Verdicts = dict[str, tuple[bool, ...]]


def asked(verdicts: Verdicts) -> list[SuitePrompt]:
    return [prompt(name, 10 * index, len(passed)) for index, (name, passed) in enumerate(verdicts.items())]


def pictures(verdicts: Verdicts) -> list[JudgedPicture]:
    return [one for asked_one in asked(verdicts) for one in judged(asked_one, *verdicts[asked_one.id])]


def result(verdicts: Verdicts, owner: Identity | None = None) -> EvaluationResult:
    found = pictures(verdicts)
    about = {"run": "r", "commit": None, "finished": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
    return make_result(asked(verdicts), found, found, owner or identity(), **about)  # type: ignore[arg-type]


HALF: Verdicts = {f"{kind}-{n:03d}": (n % 2 == 0, n % 2 == 0) for kind in OVERALL_KINDS for n in range(4)}


def test_kinds_are_means_of_prompts_and_overall_the_mean_of_six_kinds() -> None:
    verdicts = {f"{kind}-000": (True, True) for kind in OVERALL_KINDS}
    verdicts |= {"colours-000": (True, False), "colours-001": (False, False), "style-000": (True, False)}
    scores = scores_of(prompt_rates(pictures(verdicts)))
    assert scores.kinds["colours"] == 0.25
    assert scores.overall == round((5 + 0.25) / 6, 4)
    assert scores.rows == {"style": 0.5}


def test_intervals_hold_the_mean_and_shrink_to_a_point_where_all_prompts_agree() -> None:
    found = result(HALF)
    low, high = found.intervals["overall"]
    assert low < 0.5 < high
    assert high - low < found.intervals["colours"][1] - found.intervals["colours"][0], "six kinds are surer than one"
    sure = result({name: (True, True) for name in HALF})
    assert set(sure.intervals.values()) == {(1.0, 1.0)}
    assert result(HALF).intervals == found.intervals, "the seed is fixed"


def test_an_interval_is_about_two_standard_errors() -> None:
    values = [1.0] * 200 + [0.0] * 200
    low, high = intervals({"x": values})["x"]
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.1)


def test_seen_and_unseen_are_compared_over_kinds_that_have_both() -> None:
    prompts = [
        prompt("colours-000", 0, 2),
        prompt("colours-001", 2, 2, unseen=True),
        prompt("position-000", 4, 2, unseen=True),
        prompt("natural-000", 6, 2, unseen=True),
        prompt("natural-001", 8, 2),
    ]
    verdicts = [(True, True), (True, False), (False, False), (False, False), (True, True)]
    found = [one for which, passed in zip(prompts, verdicts, strict=True) for one in judged(which, *passed)]
    split = seen_and_unseen(prompt_rates(found))
    assert (split.seen.overall, split.unseen.overall, split.difference) == (1.0, 0.5, -0.5)
    assert split.interval == (-0.5, -0.5), "one prompt each leaves nothing to draw"
    assert split.unseen.kinds.keys() == {"colours"}
    assert split.unseen.rows == {}


def test_a_derangement_moves_everything() -> None:
    for count in (2, 3, 10, 92):
        order = derangement(count)
        assert sorted(order) == list(range(count))
        assert all(place != index for index, place in enumerate(order))
        assert order == derangement(count)


def test_chance_judges_the_same_pictures_under_other_prompts() -> None:
    nouns = ("cat", "dog", "cow", "cat")
    prompts = [
        prompt(f"single_object-{n:03d}", 10 * n, 1, objects=(ExpectedObject(nouns=(noun,)),))
        for n, noun in enumerate(nouns)
    ]
    lonely = prompt("style-000", 90, 1, style="noto")
    found = [
        one.model_copy(update={"finding": Finding((Detection(noun, 1, "natural", (0, 0, 9, 9), 1),), "white", "noto")})
        for which, noun in zip(prompts, nouns, strict=True)
        for one in judged(which, True)
    ]
    rates = chance_rates([*prompts, lonely], [*found, *judged(lonely, True)])
    expected = sum(nouns[place] == nouns[index] for index, place in enumerate(derangement(4))) / 4
    assert scores_of(rates).kinds == {"single_object": expected}
    assert "style-000" not in rates, "one prompt alone has no chance"


def test_identical_runs_differ_by_nothing() -> None:
    comparison = compare(result(HALF), result(HALF))
    assert comparison.overall is not None
    assert (comparison.overall.difference, comparison.overall.interval) == (0.0, (0.0, 0.0))
    assert {(one.difference, one.interval) for one in comparison.kinds.values()} == {(0.0, (0.0, 0.0))}
    assert not comparison.overall.is_clear


def test_known_flips_give_the_exact_paired_difference() -> None:
    flipped = HALF | {"colours-001": (True, False), "colours-003": (True, True)}
    comparison = compare(result(HALF), result(flipped))
    assert comparison.overall is not None
    colours = comparison.kinds["colours"]
    assert (colours.a, colours.b, colours.difference) == (0.5, 0.875, 0.375)
    low, high = colours.interval
    assert 0 <= low < 0.375 < high <= 1
    assert comparison.overall.difference == round(0.375 / 6, 4)
    assert comparison.kinds["counting"].interval == (0.0, 0.0)
    everything = compare(result({name: (False, False) for name in HALF}), result({name: (True, True) for name in HALF}))
    assert everything.overall is not None
    assert (everything.overall.difference, everything.overall.interval) == (1.0, (1.0, 1.0))
    assert everything.overall.is_clear


@pytest.mark.parametrize(
    "change", [{"suite_sha256": "0" * 64}, {"checker_sha256": "0" * 64}, {"split": "test"}, {"limit": 3}]
)
def test_results_that_do_not_compare_are_refused(change: dict) -> None:
    with pytest.raises(VegaError, match=next(iter(change))):
        compare(result(HALF), result(HALF, identity(**change)))


def test_other_models_and_settings_do_compare_and_are_named() -> None:
    other = identity(model="other", model_digest="d" * 64, settings={"num_steps": 4})
    comparison = compare(result(HALF), result(HALF, other))
    assert comparison.settings == {"num_steps": ("2", "4")}
    text = "\n".join(comparison_table(comparison))
    assert "other (dddddddddd)" in text
    assert "num_steps: 2 (A), 4 (B)" in text


def test_a_result_survives_its_file_and_a_damaged_one_is_one_line(tmp_path) -> None:
    (tmp_path / "result.json").write_text(result(HALF).to_json())
    assert read_result(tmp_path, "A") == read_result(tmp_path / "result.json", "A") == result(HALF)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(VegaError, match="A: "):
        read_result(tmp_path, "A")
    with pytest.raises(MissingFile, match="no result there"):
        read_result(tmp_path / "nothing", "A")
    (tmp_path / "result.json").unlink()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MissingFile, match="not finished"):
        read_result(tmp_path, "A")


def test_the_table_says_everything() -> None:
    lines = result_table(result(HALF, identity(limit=4)))
    text = "\n".join(lines)
    assert "PARTIAL" in lines[0]
    for kind in OVERALL_KINDS:
        assert kind.replace("_", " ") in text
    assert "48 pictures of 24 prompts" in text
