"""Result files and the tables made of them: one schema, nothing written by hand, nothing claimed without a file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vega_diffusion.benchmarks.__main__ import CASES, main
from vega_diffusion.benchmarks.headlines import BEGIN as HEADLINES_BEGIN
from vega_diffusion.benchmarks.headlines import END as HEADLINES_END
from vega_diffusion.benchmarks.headlines import HEADLINES, Headline, headlines_table
from vega_diffusion.benchmarks.report import Bar, Code, Measurement, Result, make_result, read_results, write_result
from vega_diffusion.benchmarks.tables import BEGIN, END, bars_table, between, machine_title, number
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.evaluation.ledger import LEDGER, read_ledger
from vega_diffusion.evaluation.report import ledger_table
from vega_diffusion.models.find import EMBEDDED, TEACHERS

ROOT = Path(__file__).parents[2]


def example(measured: float = 0.5) -> Result:
    bar = Bar(what="a thing", measured=measured, unit="s", limit=0.6, better="lower")
    measurement = Measurement(samples={"wall_s": [measured]}, summary={"median_s": measured}, bars=(bar,), protocol="p")
    return make_result("thing", "python -m x thing", measurement, threads=1, load_before=0.1)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = example()
    path = write_result(result, tmp_path)
    assert path == tmp_path / result.hardware.name / "thing.json"
    assert read_results(tmp_path) == [result]
    assert list(path.parent.iterdir()) == [path]


def test_what_another_command_measured_is_not_replaced(tmp_path: Path) -> None:
    first, again = example(0.5), example(0.6)
    other = example(0.7).model_copy(update={"command": "python -m x thing --model mine"})
    path = write_result(first, tmp_path)
    assert write_result(again, tmp_path) == path, "the same command measures the same thing anew"
    beside = write_result(other, tmp_path)
    assert write_result(other, tmp_path) == beside != path
    assert {one.to_json() for one in read_results(tmp_path)} == {again.to_json(), other.to_json()}
    path.write_text("{}")
    assert write_result(first, tmp_path) != path, "nobody knows whose it is"


def test_the_code_is_told_as_it_was_before_measuring() -> None:
    before = Code(commit="abc123", dirty=False)
    measurement = Measurement(samples={}, summary={}, protocol="p")
    result = make_result("thing", "c", measurement, threads=1, load_before=0.0, code=before)
    assert (result.commit, result.dirty) == ("abc123", False)


def test_a_copy_without_history_tells_its_commit_and_not_whether_it_was_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VEGA_COMMIT", "abc123")
    assert (example().commit, example().dirty) == ("abc123", None)


@pytest.mark.parametrize(
    ("written", "dirty"),
    [
        ("benchmarks/results/a-machine/thing.json", False),
        ("src/package/assets/model/certificates/turbo.json", False),
        ("src/package/assets/model/unet.json", True),
    ],
)
def test_what_cases_write_is_no_change_of_the_code(
    written: str, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / written).parent.mkdir(parents=True)
    (tmp_path / written).write_text("{}")
    assert example().dirty is dirty


def test_a_result_that_cannot_be_written_is_one_line_and_leaves_the_old_one(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("old")
    with pytest.raises(VegaError, match="--output"):
        write_result(example(), blocked)
    assert blocked.read_text() == "old"


def test_reading_a_missing_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="benchmarks CASE"):
        read_results(tmp_path / "none")


@pytest.mark.parametrize(
    ("measured", "better", "met"),
    [(1.0, "lower", True), (1.01, "lower", False), (1.0, "higher", True), (0.9, "higher", False)],
)
def test_a_bar_is_met_on_its_side_and_at_its_limit(measured: float, better: str, met: bool) -> None:
    bar = Bar.from_dict({"what": "x", "measured": measured, "unit": "s", "limit": 1.0, "better": better})
    assert bar.met is met


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0218, "0.0218"),
        (0.99835, "0.998"),
        (-0.00001, "0"),
        (0.0, "0"),
        (7.0, "7"),
        (27.31, "27.3"),
        (1411.2, "1411"),
        (100.0, "100"),
        (0.5, "0.5"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_the_table_marks_a_missed_goal_and_replaces_only_what_is_between_the_markers() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    filled = between(text, BEGIN, END, bars_table([example(0.7)]))
    assert f"| a thing | 0.7 s | <= 0.6 s | **no** | {example().finished[:10]} | `python -m x thing` |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith(f"{END}\nafter\n")
    assert between(filled, BEGIN, END, bars_table([example(0.7)])) == filled


def test_without_results_there_is_no_table() -> None:
    assert bars_table([]) == headlines_table([]) == ""
    with pytest.raises(ValueError, match="markers"):
        between("no markers", BEGIN, END, "")


def test_a_headline_is_of_the_newest_result_and_says_which_machine_gave_it() -> None:
    old, new = example(0.7), example(0.25)
    old = old.model_copy(update={"finished": "2001-01-01T00:00:00+00:00"})
    lines = headlines_table([new, old], [Headline("how long", "thing", "median_s", "ms", 1000)]).splitlines()
    assert lines[2:] == [f"| how long | 250 ms | {machine_title(new.hardware)} |"]
    ratio = Headline("a share", "thing", "median_s", "%", 100, of="median_s")
    assert "| a share | 100 % |" in headlines_table([old, new], [ratio])
    assert headlines_table([new], [Headline("another case", "other", "median_s", "s")]) == ""
    for missing in (
        Headline("x", "thing", "gone", "s"),
        Headline("x", "thing", "median_s", "s", where={"model": "vega-mini"}),
    ):
        assert headlines_table([new], [missing]) == ""
    assert "| 0.46 s |" in headlines_table([example(0.4561)], [Headline("two digits", "thing", "median_s", "s")])


def test_pages_hold_exactly_what_the_result_files_give() -> None:
    folder = ROOT / "benchmarks" / "results"
    results = read_results(folder) if folder.is_dir() else []
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/measurements.md"))
    assert between(page, BEGIN, END, bars_table(results)) == page
    assert between(readme, HEADLINES_BEGIN, HEADLINES_END, headlines_table(results)) == readme
    assert all(any(one.is_in(result) for result in results) for one in HEADLINES), "what no file has, has no line"


def test_readme_quotes_the_last_line_of_each_model_that_is_kept_here_and_no_other() -> None:
    ledger = read_ledger(ROOT / LEDGER)
    assert any(line["settings"].get("profile") == "balanced" for line in ledger), "or leaving profiles out is no matter"
    lines = [
        next(line for line in reversed(ledger) if line["model"] == model and "profile" not in line["settings"])
        for model in (*EMBEDDED, *TEACHERS)
    ]
    assert len(lines) == 2
    quoted = (ROOT / "README.md").read_text().partition("<!-- scores:begin (make docs) -->")[2]
    assert quoted.partition("<!-- scores:end -->")[0] == "\n" + "\n".join(map(ledger_table, lines))


def test_committed_results_name_a_known_case_and_a_clean_commit() -> None:
    folder = ROOT / "benchmarks" / "results"
    for result in read_results(folder) if folder.is_dir() else []:
        name = result.measurement.name
        case = result.case.removesuffix(f"-{name}") if name else result.case
        assert case in CASES
        assert result.commit is not None
        # None: a copy without its history, which `$VEGA_COMMIT` names; a GPU machine gets one.
        known = result.dirty is not None or result.hardware.accelerator is not None
        assert known, f"{result.case}: measure it again in a checkout"
        assert not result.dirty, f"{result.case}: measure it again on a clean checkout"
        assert f"{result.command} ".startswith(f"python -m vega_diffusion.benchmarks {case} ")


def test_the_command_writes_its_file_and_ends_with_one_json_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["cli-help", "--repeats", "5", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    (result,) = read_results(tmp_path)
    assert Result.from_json(printed[-1]) == result
    assert len(result.measurement.samples["wall_s"]) == 5
    assert json.loads(printed[-1])["command"] == "python -m vega_diffusion.benchmarks cli-help --repeats 5"


def test_an_unknown_case_is_one_line_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-case"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(case in error for case in CASES)
