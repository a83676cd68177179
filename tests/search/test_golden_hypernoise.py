"""HyperNoise against numbers of the published code: a network of two layers, its LoRA as noise network, training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from t2ialign.config import LoraConfig
from t2ialign.lora.adapter import Adapter
from t2ialign.testing.toy import Redness
from t2ialign_reno.objective import RewardGradient
from t2ialign_search.hyper_noise.network import NoiseNetwork
from t2ialign_search.hyper_noise.objective import losses, penalty, warmed
from t2ialign_search.hyper_noise.optimizer import solver

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "rl_hypernoise.safetensors")
FACTORS = {
    "A1": "first.lora_A.weight",
    "B1": "first.lora_B.weight",
    "A2": "out.lora_A.weight",
    "B2": "out.lora_B.weight",
}
STATES = [prefix for prefix in ("", "init/") if f"{prefix}residual" in GOLDEN]


def hyper(name):
    return GOLDEN[f"hp/{name}"].item()


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found.detach().float(), expected.float(), rtol=tolerance, atol=tolerance)


class Toy(nn.Module):
    """W2 silu(W1 x + b1 + C1 c) + b2 on flat latents."""

    def __init__(self):
        super().__init__()
        hidden, size = GOLDEN["W1"].shape
        self.first, self.out = nn.Linear(size, hidden), nn.Linear(hidden, size)
        for layer, number in ((self.first, 1), (self.out, 2)):
            layer.weight.data.copy_(GOLDEN[f"W{number}"])
            layer.bias.data.copy_(GOLDEN[f"b{number}"])

    def forward(self, x, cond):
        hidden = self.first(x.flatten(1)) + cond @ GOLDEN["C1"].T
        return self.out(nn.functional.silu(hidden)).view_as(x)


class World:
    """The network as f and g, the reward, and the losses of a batch."""

    def __init__(self, zero=False):
        scale, rank = hyper("alpha_multiplier"), hyper("lora_rank")
        config = LoraConfig(rank=rank, alpha=float(scale * rank))
        self.net = Toy()
        self.adapter = Adapter(self.net, config, ["first", "out"])
        factors = {name: GOLDEN[key] * (0 if zero and key.startswith("B") else 1) for key, name in FACTORS.items()}
        self.adapter.load(factors)
        self.switch = NoiseNetwork(self.adapter)
        self.parameters = {key: self.adapter.parameters()[name] for key, name in FACTORS.items()}

    def residual(self, x, cond):
        with self.switch.noise_network():
            return self.net(x, cond)

    def generate(self, z, cond):
        with self.switch.generator():
            return self.net(z, cond)

    def reward(self, images):
        flat = torch.tanh(images.flatten(1))
        return flat @ GOLDEN["reward_w"] / flat.shape[1] ** 0.5

    def losses(self, x, cond, form, weight, gain):
        def scored(z):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                images = self.generate(z, cond)
                total = gain * self.reward(images)
                (gradient,) = torch.autograd.grad(total.sum(), z)
            return RewardGradient({}, total.detach(), gradient, images.detach())

        return losses(x, lambda noise: self.residual(noise, cond), scored, form, weight)[0]

    def gradients(self, total):
        found = torch.autograd.grad(total, list(self.parameters.values()))
        return dict(zip(self.parameters, found, strict=True))


@pytest.mark.parametrize("prefix", STATES, ids=lambda prefix: prefix.strip("/") or "trained")
def test_what_the_two_networks_give(prefix):
    world, x, cond = World(zero=prefix == "init/"), GOLDEN["x"], GOLDEN["cond"]
    delta = world.residual(x, cond)
    close(delta, GOLDEN[f"{prefix}residual"])
    close(x + delta, GOLDEN[f"{prefix}refined"])
    image = world.generate(x + delta, cond)
    close(image, GOLDEN[f"{prefix}image"])
    close(world.reward(image), GOLDEN[f"{prefix}reward"])
    base = world.generate(x, cond)
    close(base, GOLDEN["base_image"])
    close(world.reward(base), GOLDEN["base_reward"])
    for form, name in (("mean", "mean"), ("norm", "norm"), ("half_sum", "half")):
        close(penalty(form, delta, x + delta).mean(), GOLDEN[f"{prefix}reg_{name}"])


def test_latents_and_the_colour_that_is_followed():
    assert list(GOLDEN["x"].shape[1:]) == GOLDEN["hp/latent_shape"].tolist()
    redness = Redness(Redness.Config()).score(GOLDEN["red/image"], [""] * len(GOLDEN["red/image"]))
    close(-redness.mean(), GOLDEN["red/loss"])


def test_the_noise_network_is_exactly_nothing_at_first():
    world = World(zero=True)
    assert not world.residual(GOLDEN["x"], GOLDEN["cond"]).any()
    assert world.switch.last == "out"


@pytest.mark.parametrize("prefix", STATES, ids=lambda prefix: prefix.strip("/") or "trained")
@pytest.mark.parametrize(("form", "name"), [("mean", "mean"), ("norm", "norm"), ("half_sum", "half")])
def test_losses_and_gradients(prefix, form, name):
    """The reward's gradient passes from one graph to the other as if they were one."""
    world = World(zero=prefix == "init/")
    weight, gain, offset = hyper("reg_weight"), hyper("reward_weight"), hyper("reward_offset")
    if name == "half":  # the published objective has no weights
        weight, gain, offset = 1.0, 1.0, 0.0
    values = world.losses(GOLDEN["x"], GOLDEN["cond"], form, weight, gain)
    close(values["loss"].mean() + gain * offset, GOLDEN[f"{prefix}loss_{name}"])
    close(values["mean_square"].mean(), GOLDEN[f"{prefix}reg_mean"])
    close(values["half_sum"].mean(), GOLDEN[f"{prefix}reg_half"])
    found = world.gradients(values["total"].mean())
    for factor, gradient in found.items():
        expected = GOLDEN[f"{prefix}grad_{name}_{factor}"]
        assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max(), factor
    if f"{prefix}gradnorm_{name}" in GOLDEN:
        norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
        torch.testing.assert_close(norm, GOLDEN[f"{prefix}gradnorm_{name}"], rtol=1e-4, atol=1e-6)


def test_half_the_squared_norm_is_the_divergence_up_to_second_order():
    """tr J - log |det (I + J)| of the residual's Jacobian is what the published objective leaves out."""
    world, x, cond = World(), GOLDEN["x"], GOLDEN["cond"]
    size = x[0].numel()
    for row in range(len(x)):

        def f(flat, row=row):
            return world.residual(flat.view_as(x[row : row + 1]), cond[row : row + 1]).flatten()

        jacobian = torch.autograd.functional.jacobian(f, x[row].flatten())
        trace, logdet = jacobian.trace(), torch.linalg.slogdet(torch.eye(size) + jacobian)[1]
        close(trace, GOLDEN["jac_trace"][row], 1e-4)
        close(logdet, GOLDEN["jac_logdet"][row], 1e-4)
        half = penalty("half_sum", world.residual(x[row : row + 1], cond[row : row + 1]), x[row : row + 1])[0]
        close(half + trace - logdet, GOLDEN["kl_integrand"][row], 1e-4)


def test_training():
    """Warm-up, clip and momentum of every update, from factors B = 0."""
    world = World(zero=True)
    gain, parameters = hyper("reward_weight"), list(world.parameters.values())
    moved = solver("sgd", parameters, hyper("lr"))
    assert moved.defaults["momentum"] == hyper("momentum")
    for k in range(int(hyper("train_steps"))):
        rate = warmed(hyper("lr"), k, int(hyper("warmup_updates")))
        assert rate == pytest.approx(GOLDEN["train/lr_used"][k].item(), abs=1e-12)
        values = world.losses(GOLDEN["train/x"][k], GOLDEN["train/cond"][k], "mean", hyper("reg_weight"), gain)
        close(values["loss"].mean() + gain * hyper("reward_offset"), GOLDEN["train/loss"][k])
        moved.zero_grad()
        values["total"].mean().backward()
        norm = nn.utils.clip_grad_norm_(parameters, hyper("grad_clip"))
        torch.testing.assert_close(norm, GOLDEN["train/gradnorm"][k], rtol=1e-4, atol=1e-6)
        for group in moved.param_groups:
            group["lr"] = rate
        moved.step()
        for factor, parameter in world.parameters.items():
            close(parameter, GOLDEN[f"train/{factor}"][k])
