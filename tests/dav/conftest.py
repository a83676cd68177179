"""The tiny models of the golden vectors: a one-layer policy, a linear decoder, a reward that likes one picture."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import t2ialign
from t2ialign.spec import parse as specs
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath, VPPath
from t2ialign.testing import installed, toy
from t2ialign_dav import plugin
from t2ialign_dav.model import Draws, Model
from t2ialign_diffusers.parameterisation import to_prediction
from t2ialign_solvers.config import DdimConfig
from t2ialign_solvers.ddim import Ddim


class Golden:
    """Tensors recorded from the upstream functions: ``golden["vg.grad"]``, or a block ``golden.block("vg")``."""

    def __init__(self):
        self.tensors = load_file(Path(__file__).parents[1] / "golden" / "dav.safetensors")

    def __getitem__(self, name):
        return self.tensors[name]

    def block(self, name):
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}

    def close(self, found, name, tolerance=2e-5):
        torch.testing.assert_close(found, self[name], rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture(scope="session")
def golden():
    return Golden()


class TinyNet(nn.Module):
    """eps(x, t, e) = 0.9 h + 0.1 tanh h, h = W x + u t / 1000 + V mean(e)."""

    def __init__(self, w, u, v):
        super().__init__()
        self.W, self.u, self.V = nn.Parameter(w.clone()), nn.Parameter(u.clone()), nn.Parameter(v.clone())
        self.rows_seen = 0

    def forward(self, x, t, e):
        self.rows_seen += len(x)
        h = (
            torch.einsum("oc,nchw->nohw", self.W, x)
            + (self.u * t[:, None] / 1000 + e.mean(1) @ self.V.T)[..., None, None]
        )
        return 0.9 * h + 0.1 * torch.tanh(h)


class TinyDenoiser(t2ialign.Denoiser):
    def __init__(self, net, path, conditioning, negative, guidance=5.0):
        super().__init__(path, conditioning)
        self.net, self.negative, self.guidance = net, negative, guidance

    def predict(self, x, t):
        text = self.conditioning.tensors["prompt_embeds"]
        both = self.net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.negative.expand_as(text), text]))
        without, with_prompt = both.chunk(2)
        return to_prediction("epsilon", self.path, x, t, without + self.guidance * (with_prompt - without))

    def rows(self, index):
        return TinyDenoiser(self.net, self.path, self.conditioning[index], self.negative, self.guidance)


class Tiny:
    """Everything that the golden vectors were made with."""

    def __init__(self, golden):
        self.tensors = golden.block("tiny")
        self.alphas = golden["sched.alphas_cumprod"]
        self.decodes = 0

    def net(self, kind=""):
        return TinyNet(*(self.tensors[name + kind] for name in ("W", "u", "V")))

    def path(self, steps):
        path = VPPath(self.alphas, unit_prior=True)
        stride = 1000 // steps
        path.grid = lambda n: torch.tensor([*range(stride * (n - 1) + 1, 0, -stride), 0.0])
        return path

    def sampler(self, steps, eta=1.0):
        return Ddim(DdimConfig(steps=steps, eta=eta))

    def denoiser(self, steps, rows=1, kind="", net=None):
        conditioning = Conditioning(("",) * rows, {"prompt_embeds": self.tensors["e_pos"].expand(rows, -1, -1)})
        return TinyDenoiser(net or self.net(kind), self.path(steps), conditioning, self.tensors["e_neg"])

    def decode(self, latents):
        self.decodes += len(latents)
        z = latents / 0.18215
        image = torch.einsum("oc,nchw->nohw", self.tensors["A"], z) + self.tensors["b"].view(-1, 1, 1)
        return (image / 2 + 0.5).clamp(0, 1)

    def reward(self, images, prompts=None, base=None):
        start, scale = self.tensors["reward_base_scale"]
        start = start if base is None else base
        return start - scale * (images - self.tensors["target"]).square().mean((1, 2, 3))

    def model(self, denoiser, base=None, micro_batch=64):
        return Model(denoiser, self.decode, lambda images, prompts: self.reward(images, prompts, base), micro_batch)


@pytest.fixture
def tiny(golden):
    return Tiny(golden)


class Replay(Draws):
    """Recorded noise and choices in place of random ones; keeps what was asked."""

    def __init__(self, trace):
        self.x_T, self.recorded = trace["x_T"], trace["noise"]
        self.indices = [int(i) for i in trace["is_index"] if i >= 0]
        self.asked = []

    def initial(self, count):
        return self.x_T[None]

    def noise(self, step, count):
        return self.recorded[step][None]

    def choose(self, step, probabilities):
        index = self.indices[len(self.asked)]
        self.asked.append((step, probabilities))
        return torch.tensor([index])


@pytest.fixture
def replay():
    return Replay


class ToyDenoiser(t2ialign.Denoiser):
    def __init__(self, net, conditioning):
        super().__init__(FlowPath(), conditioning)
        self.net = net

    def predict(self, x, t):
        text = self.conditioning.tensors["prompt_embeds"]
        velocity = self.net(torch.cat([x.flatten(1), text, t[:, None]], 1)).view_as(x)
        return to_prediction("flow_prediction", self.path, x, t, velocity)

    def rows(self, index):
        return ToyDenoiser(self.net, self.conditioning[index])


class ToyDiffusion(toy.ToyBackend):
    """A small rectified flow: 48 latent numbers, 8 of text and the time through two linear layers; counts its work."""

    def __init__(self, config, device="cpu"):
        super().__init__(config, device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(57, 32), nn.Tanh(), nn.Linear(32, 48)).requires_grad_(False)
        self.forwards = self.decodes = self.backwards = 0
        self.net.register_forward_hook(self._count)

    def _count(self, module, inputs, output):
        self.forwards += len(output)
        if inputs[0].requires_grad:
            output.register_hook(self._count_backward)

    def _count_backward(self, gradient):
        self.backwards += len(gradient)

    def denoiser(self, conditioning):
        return ToyDenoiser(self.net, conditioning)

    def decode(self, latents):
        self.decodes += len(latents)
        return super().decode(latents)


#: Options of the optimizers under test unless a test gives its own; None leaves one out.
FAST = {"kind": "dav", "learning_rate": 2e-2}


class Lightness(toy.Darkness):
    """Minus the number of dark pixels: never positive, without a gradient."""

    def score(self, images, prompts):
        return -super().score(images, prompts)


class ToyPlugin:
    @staticmethod
    @t2ialign.hookimpl
    def t2ialign_backends(register):
        provides = {"diffusion", "denoiser", "lora", "differentiable", "multi-step"}
        register("toy-diffusion", ToyDiffusion, provides=provides)

    @staticmethod
    @t2ialign.hookimpl
    def t2ialign_rewards(register):
        register("toy-lightness", Lightness)


@pytest.fixture
def dav_spec(toy_spec, tmp_path):
    """Write and load a toy spec for our optimizers; keyword arguments replace tables."""
    import t2ialign_solvers.plugin

    def load(optimizer=None, run=None, **tables):
        tables = {
            "backend": {"kind": "toy-diffusion", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 4}},
            "sampler": {"kind": "ddim", "steps": 4, "eta": 1.0},
            "prompts": {"file": "prompts.txt", "per_step": 3, "images_per_prompt": 2},
            "evaluation": {"images_per_prompt": 4},
            **tables,
        }
        return specs.load(
            toy_spec(
                optimizer={k: v for k, v in (FAST | (optimizer or {})).items() if v is not None},
                run={"steps": 4, "out": str(tmp_path / "runs"), **(run or {})},
                **tables,
            )
        )

    with installed(plugin, t2ialign_solvers.plugin, ToyPlugin):
        yield load
