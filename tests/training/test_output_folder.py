"""A user's folder as the place of a run: what is the user's stays, states are taken over, results replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vega_diffusion.errors import MissingFile, VegaError
from vega_diffusion.training.output_folder import (
    RESULT,
    check_free,
    claim,
    find_state,
    foreign,
    staged,
    standing_states,
)
from vega_diffusion.training.run_directory import RunDirectory
from vega_diffusion.training.state import RunState, save_state

NAMES = ["weights.safetensors", "README.md", "unet"]


def run_with_states(path: Path, *steps: int, value: float = 0.0) -> RunDirectory:
    directory = RunDirectory.at(path)
    directory.create()
    for step in steps:
        tensors = {"w": torch.full((2,), value + step)}
        save_state(directory.states, RunState(step, tensors, {}, {}, {"identity": {}}), keep=9)
    return directory


def test_a_fresh_folder_is_claimed_and_a_standing_run_is_not(tmp_path: Path):
    said: list[str] = []
    directory = RunDirectory.at(tmp_path / "out")
    check_free(directory, None, NAMES)
    assert not directory.path.exists()
    claim(directory, None, said.append)
    assert directory.states.is_dir()
    check_free(directory, None, NAMES)  # a run that was killed before its first state
    run_with_states(directory.path, 5)
    with pytest.raises(VegaError, match=r"--output_dir: a run stands in .*out, after step 5; allowed: --resume_from"):
        check_free(directory, None, NAMES)
    check_free(directory, "latest", NAMES)
    claim(directory, "latest", said.append)
    assert said == []


def test_latest_without_a_state_says_so_and_begins(tmp_path: Path):
    said: list[str] = []
    directory = RunDirectory.at(tmp_path)
    check_free(directory, "latest", NAMES)
    claim(directory, "latest", said.append)
    assert said == [f"--resume_from_checkpoint: no saved state in {tmp_path}; the run starts from the beginning"]


@pytest.mark.parametrize("name", ["weights.safetensors", "README.md", "unet/config.json", "samples/mine.png"])
def test_what_is_the_users_refuses_the_run_and_stays(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(VegaError, match="is there, and is not of this run; nothing is overwritten"):
        check_free(RunDirectory.at(tmp_path), None, NAMES)
    assert (tmp_path / name).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {name.split("/")[0]}


def test_other_files_of_the_user_are_no_hindrance(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    check_free(RunDirectory.at(tmp_path), None, NAMES)
    (tmp_path / RESULT).write_text("[]")
    with pytest.raises(VegaError, match=r"result.json is there, and is not of this run"):
        check_free(RunDirectory.at(tmp_path), None, NAMES)


def test_results_replace_results_and_never_what_was_changed(tmp_path: Path):
    for content in ("first", "second"):
        with staged(tmp_path) as place:
            (place / "unet").mkdir()
            (place / "unet" / "config.json").write_text(content)
        assert (tmp_path / "unet/config.json").read_text() == content
        assert not foreign(tmp_path, "unet")
    (tmp_path / "unet/config.json").write_text("mine")
    assert foreign(tmp_path, "unet")
    with pytest.raises(VegaError, match="was changed meanwhile"), staged(tmp_path) as place:
        (place / "unet").mkdir()
        (place / "unet" / "config.json").write_text("third")
    assert (tmp_path / "unet/config.json").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"unet", RESULT}


def test_a_state_is_taken_over_from_anywhere(tmp_path: Path):
    source = run_with_states(tmp_path / "elsewhere", 3, 6)
    directory = RunDirectory.at(tmp_path / "out")
    for given in (str(source.path), str(source.states), str(source.states / "step-00000006")):
        assert find_state(given, directory) == source.states / "step-00000006"
    older = str(source.states / "step-00000003")
    check_free(directory, older, NAMES)
    claim(directory, older, lambda line: None)
    assert [path.name for path in standing_states(directory)] == ["step-00000003"]
    assert [path.name for path in standing_states(source)] == ["step-00000003", "step-00000006"]
    claim(directory, older, lambda line: None)  # the same command again
    run_with_states(directory.path, 4)
    with pytest.raises(VegaError, match="holds states after step 3, which nothing removes"):
        claim(directory, older, lambda line: None)
    with pytest.raises(VegaError, match="another run stands"):
        claim(directory, str(source.path), lambda line: None)


def test_a_state_that_is_none_or_damaged(tmp_path: Path):
    source = run_with_states(tmp_path / "elsewhere", 3)
    directory = RunDirectory.at(tmp_path / "out")
    with pytest.raises(MissingFile, match="--resume_from_checkpoint: 'nowhere' holds no saved state; allowed: latest"):
        check_free(directory, "nowhere", NAMES)
    theirs = tmp_path / "checkpoint-5"
    theirs.mkdir()
    (theirs / "optimizer.bin").write_text("x")
    with pytest.raises(MissingFile, match="is a state of diffusers, which cannot be resumed exactly"):
        check_free(directory, str(theirs), NAMES)
    state = source.states / "step-00000003"
    (state / "student.safetensors").write_bytes(b"damaged")
    with pytest.raises(VegaError, match="damaged"):
        claim(directory, str(state), lambda line: None)
    assert standing_states(directory) == []
    assert list(directory.states.iterdir()) == []


def test_notes_of_an_interrupted_result_are_kept(tmp_path: Path):
    with staged(tmp_path) as place:
        (place / "a").write_text("first")
    noted = json.loads((tmp_path / RESULT).read_text())["files"]["a"]
    with staged(tmp_path) as place:
        (place / "a").write_text("second")
    both = json.loads((tmp_path / RESULT).read_text())["files"]["a"]
    assert both[:-1] == noted
    (tmp_path / "a").write_text("first")  # as if the second one had never been put in place
    assert not foreign(tmp_path, "a")
