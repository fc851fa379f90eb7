"""Settings that every test needs: one thread, no network, the same hypothesis examples on every run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A property that fails only on some runs would be blamed on whoever pushes next; a slow shared core is no failure.
settings.register_profile("project", derandomize=True, deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On two busy cores, two threads make a tiny step many times slower than one."""
    import torch

    torch.set_num_threads(1)
