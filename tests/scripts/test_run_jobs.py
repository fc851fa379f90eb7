"""A plan's jobs: order, failures, the deadline."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "run_jobs.py"))
Job, main, read_plan, run_plan = (SCRIPT[name] for name in ("Job", "main", "read_plan", "run_plan"))
PLANS = Path(__file__).parents[2] / "benchmarks" / "plans"


def test_jobs_wait_for_others_and_are_skipped_where_those_failed(tmp_path: Path) -> None:
    said = tmp_path / "said"
    jobs = (
        Job("second", f"echo second >> {said}", ("first",)),
        Job("first", f"echo first >> {said}"),
        Job("broken", "echo why >&2; false"),
        Job("after", f"echo never >> {said}", ("broken", "first")),
    )
    assert run_plan(jobs, 30, tmp_path / "logs") == {
        "first": "done",
        "second": "done",
        "broken": "failed",
        "after": "skipped",
    }
    assert said.read_text() == "first\nsecond\n"
    assert (tmp_path / "logs" / "broken.log").read_text() == "why\n"


def test_at_the_deadline_jobs_may_save_what_they_have(tmp_path: Path) -> None:
    saving = (
        f"trap 'echo saved > {tmp_path}/state; exit 143' TERM; echo > {tmp_path}/on; while true; do sleep 0.05; done"
    )
    jobs = (Job("long", saving), Job("later", "true", ("long",)))
    assert run_plan(jobs, 1.0, tmp_path) == {"long": "stopped", "later": "skipped"}
    assert (tmp_path / "state").read_text() == "saved\n"


@pytest.mark.parametrize("plan", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_here_can_be_read_and_name_scripts_and_recipes_that_exist(plan: Path) -> None:
    root = PLANS.parents[1]
    for job in read_plan(plan):
        for word in job.command.split():
            if word.startswith(("scripts/", "recipes/")):
                assert (root / word).exists(), word


def test_a_plan_with_a_name_that_is_no_job_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[[jobs]]\nname = "a"\ncommand = "true"\nafter = ["b"]\n')
    with pytest.raises(SystemExit, match="'a' waits for 'b'"):
        main([str(plan)])
