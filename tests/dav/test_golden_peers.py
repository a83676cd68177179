"""DDPO, Flow-GRPO and DRaFT on our transitions, buffers and rollouts: the numbers of their published codes.

None of them is shipped; what they share with DAV (log-densities, transitions with gradients, normalisation) is.
"""

from collections import defaultdict
from itertools import pairwise

import pytest
import torch

from t2ialign import Prediction
from t2ialign.config import RewardMixConfig
from t2ialign.problem import transitions
from t2ialign.problem.mix import normalise
from t2ialign.tensors.gaussian import divergence, log_prob
from t2ialign.tensors.paths import FlowPath
from t2ialign_solvers.config import FlowSdeConfig
from t2ialign_solvers.flow_sde import FlowSde


@pytest.mark.parametrize("noise", [0.7, 0.3])
def test_flow_sde(golden, noise):
    tag = f"flow.a{noise:g}"
    path, sampler = FlowPath(), FlowSde(FlowSdeConfig(noise=noise))
    sigmas, x, index = golden["flow.sigmas"], golden["flow.sample"], golden["flow.step_index"]
    path.grid = lambda steps: sigmas
    assert torch.equal(sampler.times(path), sigmas)
    torch.testing.assert_close(path.from_timestep(golden["flow.timesteps"]), sigmas[:-1])
    t, s = sigmas[index].view(-1, 1, 1, 1), sigmas[index + 1].view(-1, 1, 1, 1)

    def step(velocity):
        return sampler.transition(path, x, Prediction(x - t * velocity, x + (1 - t) * velocity), t, s)

    mean, std = step(golden["flow.velocity"])
    reference, _ = step(golden["flow.velocity_ref"])
    golden.close(mean, f"{tag}.mean")
    golden.close(reference, f"{tag}.mean_ref")
    golden.close((std / torch.sqrt(t - s)).flatten(), f"{tag}.std_dev_t")
    following = mean + std * golden["flow.noise"]
    golden.close(following, f"{tag}.prev_sample")
    golden.close(log_prob(following, mean, std), f"{tag}.log_prob", 1e-4)
    golden.close(log_prob(golden["flow.prev_sample_in"], mean, std), f"{tag}.log_prob_given", 1e-4)
    # the published KL forgets the step's length
    golden.close(divergence(mean, reference, std) * (t - s).flatten(), f"{tag}.kl")


def test_flow_sde_keeps_the_marginals_of_the_flow():
    """Data N(0, 0.3^2): the exact velocity, many steps, and the samples have the data's spread."""
    path, sampler, spread = FlowPath(), FlowSde(FlowSdeConfig(steps=400, noise=0.7)), 0.3
    torch.manual_seed(0)
    x, times = torch.randn(20000), sampler.times(path)
    for t, s in pairwise(times):
        x0 = x * (1 - t) * spread**2 / ((1 - t) ** 2 * spread**2 + t**2)
        mean, std = sampler.transition(path, x, Prediction(x0, (x - (1 - t) * x0) / t), t, s)
        x = mean + std * torch.randn_like(x)
    assert x.std().item() == pytest.approx(spread, rel=0.05)


def clipped(log_prob, old, advantages, clip_range):
    """DDPO's loss per sample, and the ratio."""
    ratio = torch.exp(log_prob - old)
    advantages = advantages.clamp(-5, 5)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)), ratio


@pytest.mark.parametrize("clip_range", [1e-4, 0.2])
def test_ddpo_clip(golden, clip_range):
    new, old = golden["ppo.log_prob"].requires_grad_(), golden["ppo.old_log_prob"]
    losses, ratio = clipped(new, old, golden["ppo.advantages_raw"], clip_range)
    tag = f"ppo.clip{clip_range:g}"
    golden.close(losses.mean().detach(), f"{tag}.loss")
    golden.close(torch.autograd.grad(losses.mean(), new)[0], f"{tag}.dloss_dlogp")
    golden.close(((ratio - 1).abs() > clip_range).float().mean(), f"{tag}.clipfrac")
    golden.close(ratio.detach(), "ppo.ratio")
    golden.close(((new - old) ** 2).mean().detach() / 2, "ppo.approx_kl")


def test_policy_gradient_through_the_buffer(golden, tiny):
    """DDPO on the plain rollout: old log-densities of the reference, gradients of the current policy."""
    latents, net, sampler = golden["plain.latents"], tiny.net(), tiny.sampler(10)
    buffer = transitions.Buffer.of(latents, latents[:, 1:], torch.arange(10))
    rows = torch.arange(20)

    def log_probs(policy):
        return log_prob(buffer.target, *policy.transition(rows, policy.predict(rows)))

    with torch.no_grad():
        old = log_probs(transitions.Policy(tiny.denoiser(10, 2, "_ref"), sampler, buffer))
    golden.close(old.view(2, 10), "plain.log_probs", 1e-4)
    new = log_probs(transitions.Policy(tiny.denoiser(10, 2, net=net), sampler, buffer))
    advantages = golden["ppo_grad.advantages"].repeat_interleave(10)
    losses, _ = clipped(new, old, advantages, golden["ppo_grad.clip_range"].item())
    golden.close(losses.view(2, 10).mean(0).detach(), "ppo_grad.loss_per_step", 1e-4)
    losses.mean().backward()
    for key, parameter in (("W", net.W), ("u", net.u), ("V", net.V)):
        golden.close(parameter.grad, f"ppo_grad.grad_{key}", 1e-3)


@pytest.mark.parametrize("kept", [1, 3, 10])
def test_truncated_reward_gradients(golden, tiny, kept):
    """DRaFT: back-propagate through the last steps of a rollout; earlier network outputs are constants."""
    net, sampler = tiny.net(), tiny.sampler(10)
    denoiser = tiny.denoiser(10, 2, net=net)
    times = sampler.times(denoiser.path)
    x = golden["plain.x_T"]
    for i, noise in enumerate(golden["draft.noise"]):
        t, s = times[i : i + 2]
        prediction = denoiser(x, t)
        if i < 10 - kept:
            eps = prediction.eps.detach()
            prediction = Prediction((x - denoiser.path.sigma(t) * eps) / denoiser.path.alpha(t), eps)
        mean, std = sampler.transition(denoiser.path, x, prediction, t, s)
        x = mean + std * noise
    image = tiny.decode(x)
    rewards = tiny.reward(image)
    loss = 10 - rewards.mean()
    golden.close(image.detach(), "draft.image", 1e-4)
    golden.close(rewards.detach(), "draft.rewards", 1e-4)
    golden.close(loss.detach(), "draft.loss", 1e-4)
    loss.backward()
    for key, parameter in (("W", net.W), ("u", net.u), ("V", net.V)):
        golden.close(parameter.grad, f"draft.K{kept}.grad_{key}", 1e-3)


def test_ddpo_advantages(golden):
    """Over the batch it is the core's normalisation; per prompt, against the last rewards of that prompt."""
    golden.close(normalise(golden["stat.batch.rewards"], RewardMixConfig(normalise="zscore")), "stat.batch.advantages")
    size, enough = golden["stat.buffer_min"].tolist()
    history = defaultdict(list)
    for number in range(4):
        block = golden.block(f"stat.{number}")
        found = torch.empty(8)
        for prompt in block["prompt_id"].unique().tolist():
            rows = block["prompt_id"] == prompt
            history[prompt] = [*history[prompt], *block["rewards"][rows].tolist()][-size:]
            known = torch.tensor(history[prompt]) if len(history[prompt]) >= enough else block["rewards"]
            found[rows] = (block["rewards"][rows] - known.mean()) / (known.std(correction=0) + 1e-6)
        golden.close(found, f"stat.{number}.advantages")


@pytest.mark.parametrize("over_all", [0, 1])
def test_flow_grpo_advantages(golden, over_all):
    rewards, prompts = golden["fstat.rewards"].double(), golden["fstat.prompt_id"]
    centred, spread = torch.empty(9).double(), torch.full((9,), rewards.std(correction=0).item()).double()
    best, worst = torch.zeros(9).double(), torch.zeros(9).double()
    for prompt in prompts.unique():
        rows = (prompts == prompt).nonzero().flatten()
        centred[rows] = rewards[rows] - rewards[rows].mean()
        if not over_all:
            spread[rows] = rewards[rows].std(correction=0)
        best[rows[rewards[rows].argmax()]] = 1
        worst[rows[rewards[rows].argmin()]] = 1
    golden.close(centred / (spread + 1e-4), f"fstat.grpo.global_std{over_all}")
    golden.close(rewards, "fstat.rwr")
    golden.close(best, "fstat.sft")
    golden.close(best - worst, "fstat.dpo")


def test_flow_grpo_moving_average(golden):
    most, every = golden["ema.decay_interval"].tolist()
    average = golden["ema.init"].clone()
    for step, (weights, expected) in enumerate(zip(golden["ema.params"], golden["ema.ema"], strict=True), 1):
        if (step + 1) % every == 0:
            average.lerp_(weights, 1 - min((1 + step) / (10 + step), most))
        torch.testing.assert_close(average, expected, rtol=2e-5, atol=2e-5)


def test_every_recorded_group_is_looked_at(golden):
    """The names of the file's groups, so that none is forgotten."""
    groups = {name.split(".")[0] for name in golden.tensors}
    peers = {"flow", "ppo", "ppo_grad", "draft", "stat", "fstat", "ema"}
    ours = {"tiny", "sched", "sched10", "sched50", "ddim", "search_step", "is", "vg", "plain", "trace"}
    ours |= {"trace_pos", "trace_pos_nograd", "trace_neg", "trace_frozen", "mstep", "mstep_mle", "mstep_kl"}
    assert groups == peers | ours
