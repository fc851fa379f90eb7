"""The ledger: a line a finished test run, once, in our repository or beside the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny_evaluation import identity, judged, prompt
from vega_diffusion.errors import VegaError
from vega_diffusion.evaluation import ledger
from vega_diffusion.evaluation.report import ledger_table
from vega_diffusion.evaluation.results import EvaluationResult, make_result


def result(run: str = "one", **changes: object) -> EvaluationResult:
    asked = prompt("colours-000", 0, 2)
    found = judged(asked, True, False)
    about = {"run": run, "commit": "c" * 40, "finished": "2026-01-01T00:00:00+00:00", "seconds": 2.0}
    return make_result([asked], found, found, identity(**{"split": "test"} | changes), **about)  # type: ignore[arg-type]


def test_a_run_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks" / "results" / "test-ledger.jsonl"
    assert ledger.append(path, result("one"))
    assert not ledger.append(path, result("one"))
    assert ledger.append(path, result("two"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["run"] for line in lines] == ["one", "two"]
    assert (
        lines[0].items()
        >= {
            "suite": "scenes-test",
            "suite_sha256": "a" * 64,
            "checker_sha256": "c" * 64,
            "model": "some-model",
            "model_digest": "b" * 64,
            "commit": "c" * 40,
            "finished": "2026-01-01T00:00:00+00:00",
            "overall": 0.5,
            "num_images": 2,
        }.items()
    )


def test_a_torn_line_swallows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "test-ledger.jsonl"
    path.write_text('{"run": "tor')
    ledger.append(path, result("one"))
    assert json.loads(path.read_text().splitlines()[1])["run"] == "one"


def test_only_whole_test_runs_belong_in_it() -> None:
    assert ledger.belongs_in_ledger(result())
    assert not ledger.belongs_in_ledger(result(split="dev"))
    assert not ledger.belongs_in_ledger(result(limit=3))


def test_it_lies_in_our_repository_or_beside_the_run(tmp_path: Path) -> None:
    ours, theirs, run = tmp_path / "ours", tmp_path / "theirs", tmp_path / "run"
    for folder, name in ((ours, "vega-diffusion"), (theirs, "something-else")):
        (folder / ".git").mkdir(parents=True)
        (folder / "docs").mkdir()
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    assert ledger.ledger_path(ours / "docs", run) == (ours / "benchmarks" / "results" / "test-ledger.jsonl", True)
    assert ledger.ledger_path(theirs, run) == (run / "test-ledger.jsonl", False)


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(VegaError, match="cannot be written"):
        ledger.append(Path("/dev/null/ledger.jsonl"), result())


def test_a_line_reads_back_and_becomes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert ledger.read_ledger(path) == []
    ledger.append(path, result("one"))
    (line,) = ledger.read_ledger(path)
    table = ledger_table(line)
    assert table.startswith("**some-model** (bbbbbbbbbb) on scenes-test, 2 pictures:")
    assert "| colours | 50.0 | 50.0 to 50.0 | 50.0 | - |" in table
    path.write_text("{broken")
    with pytest.raises(VegaError, match="no JSON"):
        ledger.read_ledger(path)
