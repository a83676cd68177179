"""A small rectified flow that depends on time, and specs that run PPO on it."""

import pytest
import torch
import toy
from torch import nn

import t2ialign
from t2ialign import plugins
from t2ialign.spec import parse as specs
from t2ialign.tensors.paths import FlowPath
from t2ialign_diffusers.parameterisation import to_prediction


class FlowDenoiser(toy.ToyDenoiser):
    def predict(self, x, t):
        text = self.conditioning.tensors["prompt_embeds"]
        velocity = self.net(torch.cat([x.flatten(1), text, t[:, None]], 1)).view_as(x)
        return to_prediction("flow_prediction", FlowPath(), x, t, velocity)

    def rows(self, index):
        return FlowDenoiser(self.net, self.conditioning[index])


class ToyFlow(toy.ToyBackend):
    """48 latent numbers, 8 of text and the time through two layers, curved enough that solvers differ."""

    def __init__(self, config, device="cpu"):
        super().__init__(config, device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(57, 32), nn.Tanh(), nn.Linear(32, 48)).requires_grad_(False)
            for layer in (self.net[0], self.net[2]):
                layer.weight.mul_(3)

    def denoiser(self, conditioning):
        return FlowDenoiser(self.net, conditioning)


class ToyPlugin:
    @staticmethod
    @t2ialign.hookimpl
    def t2ialign_backends(register):
        register("toy-flow", ToyFlow, provides={"diffusion", "denoiser", "lora", "multi-step"})


#: Small and quick to learn.
FAST = {"kind": "ppo-epd", "learning_rate": 3e-3, "width": 16, "validate_every": 2, "validation_images": 4}


@pytest.fixture
def ppo_spec(toy_spec, tmp_path, monkeypatch):
    """Write and load a toy spec for ppo-epd; keyword arguments replace tables or add to them."""
    import t2ialign_ppo.plugin
    import t2ialign_solvers.plugin

    parts = {"toy": toy, "flow": ToyPlugin, "ppo": t2ialign_ppo.plugin, "solvers": t2ialign_solvers.plugin}
    found = plugins.load([toy.entry_point(name, module) for name, module in parts.items()])
    monkeypatch.setattr("t2ialign.plugins.registry", lambda: found)
    monkeypatch.setattr("t2ialign.spec.parse.registry", lambda: found)

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

    return load
