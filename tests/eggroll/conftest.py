from pathlib import Path

import pytest
from safetensors.torch import load_file


class Golden:
    """Tensors recorded from the upstream functions, by block: ``golden("t2i/even_r1")["theta"]``."""

    def __init__(self) -> None:
        self.tensors = load_file(Path(__file__).parents[1] / "golden" / "eggroll.safetensors")

    def __call__(self, block: str) -> dict:
        return {k.removeprefix(block + "/"): v for k, v in self.tensors.items() if k.startswith(block + "/")}


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture
def factored(monkeypatch) -> None:
    """Layers as small as those of a test keep their perturbations factored, as large ones do."""
    monkeypatch.setattr("t2ialign_eggroll.batched.SMALL", 0)
