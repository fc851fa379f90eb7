"""`vega evaluate` as a user meets it: scores, folders, sheets, repeats, comparisons, one line for every mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_evaluation import tiny_checker, tiny_model
from vega_diffusion.cli.main import main
from vega_diffusion.evaluation import suites
from vega_diffusion.evaluation.results import read_result
from vega_diffusion.inference.metadata import read_record
from vega_diffusion.specs.evaluation import OVERALL_KINDS, ROW_KINDS, SuitePrompt


class Vega:
    """Runs the command in this process with the tiny model, the tiny checker and a home of its own."""

    def __init__(self, home: Path, model: Path, checker: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.model, self.checker, self.capsys = home, model, checker, capsys

    def __call__(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        """Return exit code, lines of stdout, lines of stderr without progress bars."""
        self.capsys.readouterr()
        code = main(["evaluate", *arguments])
        captured = self.capsys.readouterr()
        return code, captured.out.splitlines(), [line for line in captured.err.splitlines() if "picture" not in line]

    def evaluate(self, *arguments: str) -> dict:
        """Evaluate with one step; return what --json prints."""
        common = ("--checker", str(self.checker), "--num-steps", "1", "--processes", "1", "--json")
        code, out, err = self(str(self.model), *common, *arguments)
        assert code == 0, err
        return json.loads(out[-1])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("parts")
    return tiny_model(home / "model"), tiny_checker(home / "checker")[0]


@pytest.fixture
def vega(
    tmp_path: Path, parts: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Vega:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VEGA_HOME", str(tmp_path / "home"))
    return Vega(tmp_path / "home", *parts, capsys)


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted((folder / "pictures").iterdir())}


def test_a_quick_look_scores_every_kind_and_a_repeat_gives_the_same(vega: Vega) -> None:
    first = vega.evaluate("--limit", "1")
    assert set(first["kinds"]) == set(OVERALL_KINDS)
    assert set(first["rows"]) == set(ROW_KINDS)
    assert first["partial"] is True
    assert (first["suite"], first["split"], first["num_images"]) == ("scenes", "dev", 20)
    assert first["ceiling"]["overall"] is not None
    assert first["chance"]["overall"] is None, "one prompt of a kind has no other"
    assert first["seconds"] > 0
    assert len(first["suite_sha256"]) == len(first["checker_sha256"]) == len(first["model_digest"]) == 64
    folder = Path(first["folder"])
    assert folder.parent == vega.home / "evaluations"
    assert folder.name.startswith(f"scenes-dev-{first['model_digest'][:12]}-")
    assert first["ledger"] is None
    assert first["model"] == "model"  # a folder's own name, not where it lies

    assert vega.evaluate("--limit", "1") == first, "a finished evaluation is reported again"
    renamed = shutil.copytree(vega.model, vega.home / "renamed")
    by_name = Vega(vega.home, renamed, vega.checker, vega.capsys).evaluate("--limit", "1")
    assert by_name == first | {"model": "renamed"}, "the same weights, under the name that they have now"
    assert read_result(folder, "x").identity.model == "renamed"
    again = vega.evaluate("--limit", "1", "--output", "again")
    same = first.keys() - {"run", "folder", "seconds", "finished"}
    assert {key: again[key] for key in same} == {key: first[key] for key in same}
    mine, theirs = pixels(folder), pixels(Path("again"))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert (Path("again") / "judged.jsonl").read_bytes() == (folder / "judged.jsonl").read_bytes()

    request = read_record(next(folder.glob("pictures/natural-*.png"))).request
    assert (request.num_steps, request.num_images) == (1, 1)
    assert len(list(folder.glob("sheets/*.png"))) == 10

    code, out, err = vega("compare", str(folder), "again/result.json")
    assert (code, err) == (0, [])
    assert any(line.startswith("overall") and "+0.0 to +0.0" in line for line in out)
    code, out, _ = vega("compare", str(folder), "again", "--json")
    assert json.loads(out[-1])["overall"]["interval"] == [0.0, 0.0]


def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the suite two prompts long, without calling that a limit."""
    whole = suites.read_suite("scenes", "test").prompts
    chosen: list[SuitePrompt] = [whole[0], next(prompt for prompt in whole if prompt.negative_prompt)]
    read = suites.Suite("scenes", "test", tuple(chosen), "f" * 64)
    monkeypatch.setattr("vega_diffusion.evaluation.evaluate.read_suite", lambda name, split: read)


def test_a_finished_test_run_goes_into_the_ledger_once(vega: Vega, monkeypatch: pytest.MonkeyPatch) -> None:
    few_prompts(monkeypatch)
    first = vega.evaluate("--split", "test", "--output", "run")
    assert first["ledger"] == "run/test-ledger.jsonl"
    assert vega.evaluate("--split", "test", "--output", "run")["ledger"] is None
    lines = Path("run/test-ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == [first["run"]]

    Path(".git").mkdir()
    Path("pyproject.toml").write_text('name = "vega-diffusion"\n')
    inside = vega.evaluate("--split", "test", "--output", "other")
    assert Path(inside["ledger"]).samefile("benchmarks/results/test-ledger.jsonl")


def test_without_guidance_the_cards_negative_prompt_is_left_out(vega: Vega, monkeypatch: pytest.MonkeyPatch) -> None:
    few_prompts(monkeypatch)
    for scale, negative in (("1", False), ("3", True)):
        vega.evaluate("--output", scale, "--guidance-scale", scale)
        request = read_record(next(Path(scale).glob("pictures/natural-*.png"))).request
        assert bool(request.negative_prompt) == negative
        assert request.guidance_scale == float(scale)


def test_an_output_folder_is_never_mixed(vega: Vega, monkeypatch: pytest.MonkeyPatch) -> None:
    few_prompts(monkeypatch)
    vega.evaluate("--output", "run")
    common = (str(vega.model), "--checker", str(vega.checker), "--output", "run")
    code, out, err = vega(*common, "--num-steps", "2")
    assert (code, out, len(err)) == (2, [], 1)
    assert "num_steps" in err[0]
    assert read_result(Path("run"), "A").identity.settings["num_steps"] == 1


def test_a_checker_that_is_not_the_recorded_one_is_refused(vega: Vega, tmp_path: Path) -> None:
    folder, _ = tiny_checker(tmp_path / "checker")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, out, err = vega(str(vega.model), "--checker", str(folder), "--limit", "1")
    assert (code, out, len(err)) == (2, [], 1)
    assert "sha256" in err[0]


def test_a_model_of_another_size_or_without_text_encoders_is_refused(
    vega: Vega, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    code, out, err = vega(str(model_folders["tiny"]), "--checker", str(vega.checker))
    assert (code, out, len(err)) == (2, [], 1)
    assert "64x64" in err[0]
    assert "128x128" in err[0]
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in vega.model.iterdir():
        if not part.name.startswith("text_encoder"):
            (bare / part.name).symlink_to(part)
    code, out, err = vega(str(bare), "--checker", str(vega.checker))
    assert (code, out, len(err)) == (2, [], 1)
    assert "text_encoder" in err[0]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--suite", "photos"], "suite"),
        (["--split", "train"], "split"),
        (["--limit", "0"], "limit"),
        (["--limit", "few"], "limit"),
        (["--num-steps", "0"], "num_steps"),
        (["--num-steps", "x"], "num_steps"),
        (["--guidance-scale", "-1"], "guidance_scale"),
        (["--sampler", "best"], "sampler"),
        (["--profile", "fastest"], "profile"),
        (["--profile", "turbo", "--precision", "int4"], "precision"),
        (["--precision", "int8"], "precision"),
        (["--processes", "0"], "processes"),
        (["--checker", "nothing"], "nothing"),
        (["--output", "/dev/null/x"], "output"),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(vega: Vega, arguments: list[str], names: str) -> None:
    checker = [] if "--checker" in arguments else ["--checker", str(vega.checker)]
    code, out, err = vega(str(vega.model), *arguments, *checker)
    assert (code, out) == (2, [])
    assert len(err) == 1, err
    assert err[0].startswith("error: ")
    assert names in err[0]


def test_mistakes_without_a_model(vega: Vega) -> None:
    for arguments, names in (
        (["nothing-here", "--checker", str(vega.checker)], "model"),
        (["compare", "a"], "B"),
        (["compare", "a", "b"], "A"),
        ([], "vega evaluate vega-mini"),
    ):
        code, out, err = vega(*arguments)
        assert (code, out, len(err)) == (2, [], 1), arguments
        assert names.lower() in err[0].lower()
