"""Runs: resumed ones equal unbroken ones, folders are never mixed, what is torn is done again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tiny_evaluation import identity, judged, prompt, tiny_checker
from vega_diffusion.data.scenes.renderer import SceneRenderer
from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.evaluation.renders import sample_atlas
from vega_diffusion.evaluation.run import Worker, run_prompts
from vega_diffusion.evaluation.run_folder import JudgedPicture, RunFolder
from vega_diffusion.evaluation.suites import read_suite
from vega_diffusion.evaluation.workers import RenderJob, renders_digest
from vega_diffusion.models.checker import read_checker
from vega_diffusion.specs.evaluation import SuitePrompt

PROMPTS = [prompt(f"single_object-{n:03d}", 10 * n, 2) for n in range(4)]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return tiny_checker(tmp_path_factory.mktemp("home") / "checker")


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    return SceneRenderer(sample_atlas())


def some_prompts() -> list[SuitePrompt]:
    return list(read_suite("scenes", "dev").limited(1).prompts)


def render(
    folder: Path, checker: tuple[Path, str], prompts: Sequence[SuitePrompt], processes: int = 1
) -> list[JudgedPicture]:
    with RunFolder.opened(folder, identity()) as run:
        return run_prompts(run, prompts, RenderJob(*checker, folder).open, processes=processes)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that says something about pictures, by name."""
    files = [*folder.glob("pictures/*"), folder / "judged.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_that_is_killed_and_resumed_equals_an_unbroken_one(
    tmp_path: Path, checker: tuple[Path, str], renderer: SceneRenderer
) -> None:
    prompts = some_prompts()

    def make_worker(folder: Path) -> Worker:
        return partial(RenderJob(*checker, folder).work, renderer, read_checker(checker[0]))

    with RunFolder.opened(tmp_path / "whole", identity()) as run:
        whole = run_prompts(run, prompts, lambda: make_worker(tmp_path / "whole"))
    assert [one.id for one in whole] == [asked.id for asked in prompts for _ in asked.seeds]

    broken = tmp_path / "broken"
    made = 0

    def killing_worker() -> Worker:
        worker = make_worker(broken)

        def work(asked: Sequence[SuitePrompt]) -> list[JudgedPicture]:
            nonlocal made
            found = worker(asked)
            made += 1
            if made % 4 == 0:
                raise Killed  # after the pictures are written, before the lines are
            return found

        return work

    kills = 0
    while True:
        try:
            with RunFolder.opened(broken, identity()) as run:
                resumed = run_prompts(run, prompts, killing_worker)
            break
        except Killed:
            kills += 1
            # ... and half of a line that was being written
            with open(broken / "judged.jsonl", "ab") as file:
                file.write(b'{"id":"single_obj')
    assert kills >= 2
    assert resumed == whole
    assert content(broken) == content(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path, checker: tuple[Path, str]) -> None:
    prompts = some_prompts()
    assert render(tmp_path / "two", checker, prompts, processes=2) == render(tmp_path / "one", checker, prompts)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def writing_worker(folder: Path) -> Worker:
    def work(asked: Sequence[SuitePrompt]) -> list[JudgedPicture]:
        found = [two for one in asked for two in judged(one, *[True] * len(one.seeds))]
        for one in found:
            (folder / one.file).write_bytes(b"picture")
        return found

    return work


def test_only_prompts_with_all_lines_and_pictures_count_as_done(tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path, identity()) as run:
        first = run_prompts(run, PROMPTS, lambda: writing_worker(tmp_path))
        lines = (tmp_path / "judged.jsonl").read_bytes()
        # prompt 0 lost a picture, of prompt 3 only half was written, a line nobody asked for came in
        (tmp_path / first[0].file).unlink()
        (tmp_path / "judged.jsonl").write_bytes(b"nonsense\n" + lines[: -len(lines) // 8 - 20])
        assert list(run.finished(PROMPTS)) == [PROMPTS[1].id, PROMPTS[2].id]
        drawn = []

        def counting() -> Worker:
            worker = writing_worker(tmp_path)
            return lambda asked: drawn.extend(one.id for one in asked) or worker(asked)

        assert run_prompts(run, PROMPTS, counting) == first
        assert drawn == [PROMPTS[0].id, PROMPTS[3].id]
        assert (tmp_path / "judged.jsonl").read_bytes() == lines
        assert run_prompts(run, PROMPTS, _never) == first, "nothing is loaded where nothing is missing"
        assert run.seconds() > 0


def _never() -> Worker:
    raise AssertionError("a worker was made")


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "0" * 64},
        {"suite_sha256": "0" * 64},
        {"checker_sha256": "0" * 64},
        {"split": "test"},
        {"limit": 2},
        {"settings": {"num_steps": 3}},
        {"settings": {"num_steps": 2, "sampler": "ddim"}},
    ],
    ids=str,
)
def test_a_folder_belongs_to_one_model_suite_checker_and_setting(tmp_path: Path, change: dict) -> None:
    with RunFolder.opened(tmp_path, identity()):
        pass
    names = change["settings"].keys() - {"num_steps"} or {"num_steps"} if "settings" in change else change.keys()
    with (
        pytest.raises(VegaError, match=f"another {next(iter(names))}.*never mixed"),
        RunFolder.opened(tmp_path, identity(**change)),
    ):
        pass


def test_how_the_model_was_called_does_not_matter_and_the_run_keeps_its_name(tmp_path: Path) -> None:
    with RunFolder.opened(tmp_path, identity()) as first:
        pass
    with RunFolder.opened(tmp_path, identity(model="./the-same")) as second:
        assert second.run == first.run


def test_a_folder_is_used_by_one_process_and_never_taken_from_others(tmp_path: Path) -> None:
    with (
        RunFolder.opened(tmp_path / "run", identity()),
        pytest.raises(VegaError, match="another process"),
        RunFolder.opened(tmp_path / "run", identity()),
    ):
        pass
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    (tmp_path / "mine" / "pictures" / "holiday.png").touch()
    with pytest.raises(VegaError, match="something else"), RunFolder.opened(tmp_path / "mine", identity()):
        pass
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(VegaError, match="damaged"), RunFolder.opened(tmp_path / "run", identity()):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(MissingFile, match="output"), RunFolder.opened(tmp_path / "file", identity()):
        pass


def test_folder_names_tell_models_splits_and_settings_apart() -> None:
    changes: Iterator[dict] = iter([{}, {"split": "test"}, {"model_digest": "0" * 64}, {"limit": 1}, {"settings": {}}])
    names = [identity(**change).folder_name for change in changes]
    assert len(set(names)) == 5
    assert names[0].startswith("scenes-dev-bbbbbbbbbbbb-")
    assert identity(model="other").folder_name == names[0]


def test_a_line_holds_what_was_found(tmp_path: Path, checker: tuple[Path, str]) -> None:
    render(tmp_path, checker, some_prompts()[:1])
    line = json.loads((tmp_path / "judged.jsonl").read_text().splitlines()[0])
    assert set(line) == {"id", "kind", "unseen", "seed", "file", "passed", "reasons", "finding"}
    assert set(line["finding"]) == {"detections", "background", "style"}
    assert (tmp_path / line["file"]).is_file()
    assert len(renders_digest()) == 64
