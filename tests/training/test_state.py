"""States on disk: complete or not there, verified, and the newest good one is found."""

from __future__ import annotations

import errno
import resource
import shutil

import pytest
import torch

from vega_diffusion.errors import VegaError
from vega_diffusion.training.state import RunState, load_newest_state, save_state, verify, write_folder


def state(step, size=10):
    return RunState(
        step=step,
        student={"a.weight": torch.full((size,), float(step))},
        ema={"a.weight": torch.full((size,), step + 0.5)},
        optimizer={"a.weight|exp_avg": torch.arange(3.0), "a.weight|step": torch.tensor(float(step))},
        extra={"identity": {"x": 1}, "scaler": None},
    )


def never(line):
    raise AssertionError(line)


def test_there_and_back(tmp_path):
    save_state(tmp_path, state(3), keep=2)
    loaded = load_newest_state(tmp_path, never)
    assert loaded is not None
    assert (loaded.step, loaded.extra) == (3, {"identity": {"x": 1}, "scaler": None})
    for field in ("student", "ema", "optimizer"):
        mine, its = getattr(state(3), field), getattr(loaded, field)
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert loaded.optimizer["a.weight|step"].ndim == 0


def test_nothing_saved_is_none(tmp_path):
    assert load_newest_state(tmp_path, never) is None
    assert load_newest_state(tmp_path / "nowhere", never) is None


def test_only_the_newest_are_kept_and_other_folders_are_left_alone(tmp_path):
    (tmp_path / "step-best").mkdir()
    for step in (2, 9, 10, 100):
        save_state(tmp_path, state(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100", "step-best"]


def test_states_of_a_lost_future_do_not_push_out_the_new_one(tmp_path):
    for step in (5, 10):
        save_state(tmp_path, state(step), keep=2)
    (tmp_path / "step-00000010" / "manifest.json").write_text("{")  # so the run goes on from 5
    save_state(tmp_path, state(6), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    loaded = load_newest_state(tmp_path, never)
    assert loaded is not None
    assert loaded.step == 6


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_newest_state_is_passed_over_with_a_word(tmp_path, damage):
    save_state(tmp_path, state(1), keep=2)
    newest = save_state(tmp_path, state(2), keep=2)
    file = newest / "optimizer.safetensors"
    match damage:
        case "truncate":
            file.write_bytes(file.read_bytes()[:-1])
        case "flip":
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        case "remove":
            file.unlink()
        case "manifest":
            (newest / "manifest.json").write_text("{")
    said = []
    loaded = load_newest_state(tmp_path, said.append)
    assert loaded is not None
    assert loaded.step == 1
    assert len(said) == 1
    assert "step-00000002: damaged" in said[0]
    assert "\n" not in said[0]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    (save_state(tmp_path, state(1), keep=1) / "student.safetensors").unlink()
    with pytest.raises(VegaError, match="every saved state is damaged"):
        load_newest_state(tmp_path, lambda line: None)


def test_a_full_disk_leaves_the_old_state_and_nothing_half_written(tmp_path):
    save_state(tmp_path, state(1), keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(VegaError, match="cannot be saved .* free disk space") as failed:
            save_state(tmp_path, state(2, size=100_000), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(failed.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    loaded = load_newest_state(tmp_path, never)
    assert loaded is not None
    assert loaded.step == 1


def test_a_failing_replacement_leaves_the_old_folder(tmp_path):
    target = tmp_path / "ema"
    write_folder(target, lambda where: (where / "x").write_text("old") and None)

    def full(where):
        (where / "x").write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(VegaError, match="No space left"):
        write_folder(target, full)
    assert (target / "x").read_text() == "old"
    verify(target)
    write_folder(target, lambda where: (where / "x").write_text("new") and None)
    assert (target / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["ema"]


def test_rubbish_of_a_killed_save_is_removed_by_the_next(tmp_path):
    shutil.copytree(save_state(tmp_path, state(1), keep=1), tmp_path / ".tmp-step-00000002-1234")
    save_state(tmp_path, state(3), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
