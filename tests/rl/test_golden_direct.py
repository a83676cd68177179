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
from t2ialign_rl.methods.draft import constant_calls, renoised, stopped_at
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


#: Images of the chain, and their seeds, which nothing depends on here.
IMAGES = len(GOLDEN["chain.x_T"])
SEEDS = list(range(IMAGES))


class Linear(Denoiser):
    """eps = W x + t / 1000 b + V text, with classifier-free guidance where it is given; keeps its latest input."""

    def __init__(self, weights, path, guidance=None):
        super().__init__(path, Conditioning(("",) * IMAGES, {}))
        self.weights, self.guidance, self.seen = weights, guidance, None

    def eps(self, x, t, text):
        w = self.weights
        added = (t / 1000)[:, None] * w["b"] + text @ w["V"].T
        return torch.einsum("oc,bchw->bohw", w["W"], x) + added[:, :, None, None]

    def predict(self, x, t):
        self.seen = x
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


def drafted(constant):
    """The chain's images and -r with some calls held constant, and the model's leaves."""
    leaves, model, steps = chain()
    sampler = Ddim(DdimConfig(steps=steps, eta=GOLDEN["chain.eta"].item()))
    images = decode(sampler.sample(LastCalls(model, constant), GOLDEN["chain.x_T"], SEEDS))
    close(images, GOLDEN["chain.images"])
    assert not torch.allclose(images, GOLDEN["chain.images_double_denorm"])
    rows, loss = through_rewards(images, lambda pixels: reward_loss(reward(pixels)))
    close(-loss, GOLDEN["chain.rewards"])
    return rows, leaves


@pytest.mark.parametrize("name", sorted({key.split(".")[1] for key in GOLDEN if key.startswith("draft.")}))
def test_draft(recorded, name):
    recorded(GOLDEN["chain.noises"])
    steps = len(GOLDEN["chain.timesteps"])
    rows, leaves = drafted(range(0 if name == "full" else steps - int(name.removeprefix("K"))))
    gradients_close(rows.mean(), leaves, {key: GOLDEN[f"draft.{name}.grad_{key}"] for key in leaves})


def test_draws_of_each_call(recorded):
    """TRL: call i is a constant where its draw is above i; what it was called with keeps its gradient."""
    recorded(GOLDEN["chain.noises"])
    constant = constant_calls(GOLDEN["trlrand.draws"])
    assert [int(i not in constant) for i in range(len(GOLDEN["trlrand.keep"]))] == GOLDEN["trlrand.keep"].tolist()
    rows, leaves = drafted(constant)
    gradients_close(rows.mean(), leaves, {key: GOLDEN[f"trlrand.grad_{key}"] for key in leaves})


def test_one_call_always_keeps_its_gradient():
    assert constant_calls(torch.tensor([3, 3, 3])) == [0, 1]
    assert constant_calls(torch.tensor([0, 0, 0])) == []


def test_losses():
    r = GOLDEN["chain.rewards"]
    close(10 + reward_loss(r).mean(), GOLDEN["chain.loss_trl"])
    close(reward_loss(r).mean(), GOLDEN["loss.draft"])
    close(0.01 * reward_loss(r, 10.0).mean(), GOLDEN["loss.alignprop_aesthetic"])
    close(0.01 * (1 + reward_loss(r)).mean(), GOLDEN["loss.alignprop_hps"])
    close(1e-3 * reward_loss(r, 2.0).mean(), GOLDEN["loss.refl"])


def test_draft_lv():
    leaves, model, _ = chain()
    t = GOLDEN["chain.timesteps"][-1].float().expand(IMAGES)
    total = found = 0.0
    for number, noise in enumerate(GOLDEN["lv.noises"]):
        x0 = renoised(model, GOLDEN["chain.latents"][-1], noise, t)
        close(x0, GOLDEN[f"lv.x0_hat.{number}"])
        rows, loss = through_rewards(decode(x0), lambda pixels: reward_loss(reward(pixels)))
        close(-loss, GOLDEN[f"lv.rewards.{number}"])
        total = total + rows.mean() / len(GOLDEN["lv.noises"])
        found = found + loss.mean() / len(GOLDEN["lv.noises"])
    close(found, GOLDEN["lv.loss"])
    gradients_close(total, leaves, {key: GOLDEN[f"lv.grad_{key}"] for key in leaves})


def test_refl(recorded):
    leaves, timesteps, mid = leaves_of("model", ("W", "b", "V")), GOLDEN["refl.timesteps"], int(GOLDEN["refl.mid"])
    recorded(GOLDEN["refl.noises"])
    model = Linear(leaves, vp_path(timesteps, -1.0))
    denoiser = LastCalls(model, range(mid))
    sampler = Ddim(DdimConfig(steps=len(timesteps), eta=1.0))
    images = decode(stopped_at(sampler, denoiser, GOLDEN["refl.x_T"], SEEDS, mid))
    close(model.seen, GOLDEN["refl.x_mid"])
    close(images, GOLDEN["refl.images"])
    close(-through_rewards(images, lambda pixels: reward_loss(0.3 * reward(pixels) - 0.5))[1], GOLDEN["refl.rewards"])
    rows, loss = through_rewards(images, lambda pixels: reward_loss(0.3 * reward(pixels) - 0.5, 2.0))
    close(1e-3 * loss.mean(), GOLDEN["refl.loss"])
    gradients_close(1e-3 * rows.mean(), leaves, {key: GOLDEN[f"refl.grad_{key}"] for key in leaves})


class Packed(Denoiser):
    """A velocity of packed latents, which sees whole thousandths of the time; keeps its latest input and output."""

    def __init__(self, weights, guidance):
        super().__init__(FlowPath(shift=3.0), Conditioning(("",), {}))
        self.weights, self.guidance, self.seen = weights, guidance, ()

    def predict(self, x, t):
        w = self.weights
        seen = (1000 * t).floor() / 1000
        v = x @ w["A"].T + seen * w["b"] + self.guidance * w["g"] + GOLDEN["srpo.pooled"] @ w["V"].T
        self.seen = (x, v, seen)
        t = t.view(-1, 1, 1)
        return Prediction(x - t * v, x + (1 - t) * v)

    def rows(self, index):
        raise NotImplementedError


def pack(x):
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * w // 2, 4 * c)


def unpack(z):
    b, c, h, w = GOLDEN["srpo.noise"].shape
    return z.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


@pytest.mark.parametrize("case", range(len(GOLDEN["srpo.mid_select"])))
def test_srpo(case):
    leaves, noise = leaves_of("srpo", ("A", "b", "g", "V")), pack(GOLDEN["srpo.noise"])
    levels = noise_levels(FlowPath(shift=3.0), PUBLISHED)
    total = 0.0
    for branch, invert in (("denoise", False), ("invert", True)):
        prefix = f"srpo.{case}.{branch}."
        want = {key.removeprefix(prefix): tensor for key, tensor in GOLDEN.items() if key.startswith(prefix)}
        steps = jumps(levels, GOLDEN["srpo.mid_select"][case : case + 1], torch.tensor([invert]), PUBLISHED)
        close(steps.discount, want["k"].view(1))
        model = Packed(leaves, want["guidance"])
        x = unpack(recovered(model, GOLDEN["srpo.rollout_latents"], noise, steps)) / 0.3611 + 0.1159
        for found, name in zip(model.seen, ("input", "pred", "timestep"), strict=True):
            close(found, want[name])
        images = (torch.einsum("oc,bchw->bohw", GOLDEN["srpo.M"], x) / 2 + 0.5).clamp(0, 1)
        close(images, want["image"])
        wanted, other = (GOLDEN[f"srpo.text_{name}"][case] for name in (("neg", "pos") if invert else ("pos", "neg")))

        def reward_of(pixels, wanted=wanted, other=other, discount=steps.discount):
            features = torch.nn.functional.normalize(pixels.flatten(1) @ GOLDEN["srpo.P"].T, dim=1)
            return (1 + discount) * (features @ wanted) - features @ other

        close(reward_of(images), want["reward"])
        rows, loss = through_rewards(images, lambda pixels, reward_of=reward_of: reward_loss(reward_of(pixels), 0.7))
        close(loss / 2, want["loss"].view(1))
        total = total + rows.mean() / 2
    gradients_close(total, leaves, {key: GOLDEN[f"srpo.{case}.grad_{key}"] for key in leaves})
