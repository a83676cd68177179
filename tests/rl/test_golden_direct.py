"""Gradients of rewards through samplers against numbers of the published codes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2ialign import Denoiser, Prediction
from t2ialign.tensors import seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath, VPPath
from t2ialign_rl.config import SrpoConfig
from t2ialign_rl.gradients import LastCalls, reward_loss, through_rewards
from t2ialign_rl.methods.draft import renoised, stopped_at
from t2ialign_rl.methods.srpo import jumps, noise_levels, recovered
from t2ialign_solvers.config import DdimConfig
from t2ialign_solvers.ddim import Ddim

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "rl_direct.safetensors")
PUBLISHED = SrpoConfig(levels=GOLDEN["srpo.timestep_length"].item())


def close(found, expected):
    torch.testing.assert_close(found.detach(), expected, rtol=2e-5, atol=2e-5)


def gradients_close(loss, leaves, expected):
    for name, gradient in zip(leaves, torch.autograd.grad(loss, leaves.values(), retain_graph=True), strict=True):
        want = expected[name]
        assert (gradient - want).abs().max() <= 1e-3 * want.abs().max(), name


def leaves_of(prefix, names):
    return {name: GOLDEN[f"{prefix}.{name}"].clone().requires_grad_() for name in names}


class Linear(Denoiser):
    """eps = W x + t / 1000 b + V text, with classifier-free guidance where it is given."""

    def __init__(self, weights, path, guidance=None):
        super().__init__(path, Conditioning(("", ""), {}))
        self.weights, self.guidance = weights, guidance

    def eps(self, x, t, text):
        w = self.weights
        added = (t / 1000)[:, None] * w["b"] + text @ w["V"].T
        return torch.einsum("oc,bchw->bohw", w["W"], x) + added[:, :, None, None]

    def predict(self, x, t):
        eps = self.eps(x, t, GOLDEN["chain.prompt_embeds"])
        if self.guidance is not None:
            other = self.eps(x, t, GOLDEN["chain.negative_embeds"])
            eps = other + self.guidance * (eps - other)
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.coefficients(t))
        return Prediction((x - sigma * eps) / alpha, eps)

    def rows(self, index):
        raise NotImplementedError


def vp_path(timesteps, end):
    path = VPPath(GOLDEN["chain.alphas_cumprod"], unit_prior=True)
    path.grid = lambda _steps: torch.tensor([*timesteps.tolist(), end], dtype=torch.float32)
    return path


def decode(x):
    return (torch.einsum("oc,bchw->bohw", GOLDEN["dec.M"], x / GOLDEN["dec.scaling_factor"]) / 2 + 0.5).clamp(0, 1)


def reward(images):
    errors = (images - GOLDEN["rew.target"]).square().flatten(1).mean(1)
    return (GOLDEN["rew.R"] * images).flatten(1).sum(1) - 2 * errors


@pytest.fixture
def recorded(monkeypatch):
    """Make samplers draw recorded noises, one a step."""

    def use(noises):
        draws = iter(noises)
        monkeypatch.setattr(seeding, "normal", lambda *_args: next(draws))

    return use


def chain():
    timesteps = GOLDEN["chain.timesteps"]
    path = vp_path(timesteps, max(int(timesteps[-1]) - 1000 // len(timesteps), 0))
    leaves = leaves_of("model", ("W", "b", "V"))
    return leaves, Linear(leaves, path, GOLDEN["chain.guidance"]), len(timesteps)


@pytest.mark.parametrize("last", [None, 1, 2, 3])
def test_draft(recorded, last):
    leaves, model, steps = chain()
    recorded(GOLDEN["chain.noises"])
    denoiser = LastCalls(model, steps - (last or steps))
    sampler = Ddim(DdimConfig(steps=steps, eta=GOLDEN["chain.eta"].item()))
    images = decode(sampler.sample(denoiser, GOLDEN["chain.x_T"], [0, 1]))
    close(images, GOLDEN["chain.images"])
    rows, loss = through_rewards(images, lambda pixels: reward_loss(reward(pixels)))
    close(-loss, GOLDEN["chain.rewards"])
    name = f"K{last}" if last else "full"
    gradients_close(rows.mean(), leaves, {key: GOLDEN[f"draft.{name}.grad_{key}"] for key in leaves})


def test_losses():
    r = GOLDEN["chain.rewards"]
    close(10 + reward_loss(r).mean(), GOLDEN["chain.loss_trl"])
    close(reward_loss(r).mean(), GOLDEN["loss.draft"])
    close(0.01 * reward_loss(r, 10.0).mean(), GOLDEN["loss.alignprop_aesthetic"])
    close(0.01 * (1 + reward_loss(r)).mean(), GOLDEN["loss.alignprop_hps"])
    close(1e-3 * reward_loss(r, 2.0).mean(), GOLDEN["loss.refl"])


def test_draft_lv():
    leaves, model, _ = chain()
    t = GOLDEN["chain.timesteps"][-1].float().expand(2)
    total = 0.0
    for number, noise in enumerate(GOLDEN["lv.noises"]):
        x0 = renoised(model, GOLDEN["chain.latents"][-1], noise, t)
        close(x0, GOLDEN[f"lv.x0_hat.{number}"])
        rows, loss = through_rewards(decode(x0), lambda pixels: reward_loss(reward(pixels)))
        close(-loss, GOLDEN[f"lv.rewards.{number}"])
        total = total + rows.mean() / len(GOLDEN["lv.noises"])
    gradients_close(total, leaves, {key: GOLDEN[f"lv.grad_{key}"] for key in leaves})


def test_refl(recorded):
    leaves, timesteps, mid = leaves_of("model", ("W", "b", "V")), GOLDEN["refl.timesteps"], int(GOLDEN["refl.mid"])
    recorded(GOLDEN["refl.noises"])
    denoiser = LastCalls(Linear(leaves, vp_path(timesteps, -1.0)), mid)
    sampler = Ddim(DdimConfig(steps=len(timesteps), eta=1.0))
    images = decode(stopped_at(sampler, denoiser, GOLDEN["refl.x_T"], [0, 1], mid))
    close(images, GOLDEN["refl.images"])
    rows, loss = through_rewards(images, lambda pixels: reward_loss(0.3 * reward(pixels) - 0.5, 2.0))
    close(1e-3 * loss.mean(), GOLDEN["refl.loss"])
    gradients_close(1e-3 * rows.mean(), leaves, {key: GOLDEN[f"refl.grad_{key}"] for key in leaves})


class Packed(Denoiser):
    """A velocity of packed latents, which sees whole thousandths of the time."""

    def __init__(self, weights):
        super().__init__(FlowPath(shift=3.0), Conditioning(("",), {}))
        self.weights = weights

    def predict(self, x, t):
        w = self.weights
        seen = (1000 * t).floor() / 1000
        v = x @ w["A"].T + seen * w["b"] + 3.5 * w["g"] + GOLDEN["srpo.pooled"] @ w["V"].T
        t = t.view(-1, 1, 1)
        return Prediction(x - t * v, x + (1 - t) * v)

    def rows(self, index):
        raise NotImplementedError


def pack(x):
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * w // 2, 4 * c)


def unpack(z):
    return z.view(len(z), 2, 2, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(len(z), 16, 4, 4)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_srpo(case):
    leaves, noise = leaves_of("srpo", ("A", "b", "g", "V")), pack(GOLDEN["srpo.noise"])
    levels = noise_levels(FlowPath(shift=3.0), PUBLISHED)
    total = 0.0
    for branch, invert in (("denoise", False), ("invert", True)):
        want = {k: GOLDEN[f"srpo.{case}.{branch}.{k}"] for k in ("input", "timestep", "image", "k", "reward", "loss")}
        steps = jumps(levels, GOLDEN["srpo.mid_select"][case : case + 1], torch.tensor([invert]), PUBLISHED)
        start = steps.start.view(-1, 1, 1)
        close((1 - start) * GOLDEN["srpo.rollout_latents"] + start * noise, want["input"])
        close((1000 * steps.start).floor() / 1000, want["timestep"])
        close(steps.discount, want["k"].view(1))
        x = unpack(recovered(Packed(leaves), GOLDEN["srpo.rollout_latents"], noise, steps)) / 0.3611 + 0.1159
        images = (torch.einsum("oc,bchw->bohw", GOLDEN["srpo.M"], x) / 2 + 0.5).clamp(0, 1)
        close(images, want["image"])
        wanted, other = (GOLDEN[f"srpo.text_{name}"][case] for name in (("neg", "pos") if invert else ("pos", "neg")))

        def loss_of(pixels, wanted=wanted, other=other, discount=steps.discount):
            features = torch.nn.functional.normalize(pixels.flatten(1) @ GOLDEN["srpo.P"].T, dim=1)
            return reward_loss((1 + discount) * (features @ wanted) - features @ other, 0.7)

        rows, loss = through_rewards(images, loss_of)
        close(loss / 2, want["loss"].view(1))
        total = total + rows.mean() / 2
    gradients_close(total, leaves, {key: GOLDEN[f"srpo.{case}.grad_{key}"] for key in leaves})
