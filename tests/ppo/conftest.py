"""Specs that run PPO on the toy rectified flow."""

import pytest

from t2ialign.spec import parse as specs
from t2ialign.testing import installed

#: Small and quick to learn.
FAST = {"kind": "ppo-epd", "learning_rate": 3e-3, "width": 16, "validate_every": 2, "validation_images": 4}


@pytest.fixture
def ppo_spec(toy_spec, tmp_path):
    """Write and load a toy spec for ppo-epd; keyword arguments replace tables or add to them."""
    import t2ialign_ppo.plugin
    import t2ialign_solvers.plugin

    def load(optimizer=None, run=None, **tables):
        tables = {
            "backend": {"kind": "toy-flow", "checkpoint": "some/model", "dtype": "float32"},
            "sampler": {"kind": "epd", "steps": 3},
            "reward": [{"kind": "agreement", "sampler": {"kind": "heun", "steps": 40}}],
            "prompts": {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 4},
            "evaluation": {"images_per_prompt": 4, "save_images": False},
            "samples": {"every": 0},
            **tables,
        }
        return specs.load(
            toy_spec(
                optimizer=optimizer if "kind" in (optimizer or {}) else FAST | (optimizer or {}),
                run={"steps": 4, "out": str(tmp_path / "runs"), "checkpoint_every": 1, **(run or {})},
                **tables,
            )
        )

    with installed(t2ialign_ppo.plugin, t2ialign_solvers.plugin):
        yield load
