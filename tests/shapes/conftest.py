"""The training recipe lives beside the tests, not in an installed package."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small run fastest, and repeat to the last bit, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
