"""Flow-GRPO (arXiv 2505.05470): PPO on the denoising steps of a stochastic sampler, with advantages per prompt.

    x_T ... x_0 ~ policy, every step Gaussian;   log p = mean log-density of x_s over the latent's dimensions
    ratio = exp(log p_theta(x_s | x_t) - log p_old(x_s | x_t))            for the stored x_s
    L = mean of max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip)) + kl KL(p_theta || p_base)(x_t)

With a VP model and "ddim" this is DDPO (arXiv 2305.13301) with advantages per prompt.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2ialign import Prediction, StepResult, StepSampler, UsageError
from t2ialign.problem.problem import Problem
from t2ialign.problem.transitions import Buffer, Policy, noise_levels
from t2ialign.tensors.gaussian import divergence, log_prob
from t2ialign_rl.advantages import advantages, clipped, clipped_loss
from t2ialign_rl.config import FlowGrpoConfig
from t2ialign_rl.forward import flow_time
from t2ialign_rl.forward_process import distance
from t2ialign_rl.loop import Online
from t2ialign_rl.windows import Windowed, window_start

KlForm = Literal["published", "exact"]
RatioForm = Literal["density", "distance", "guard"]


def kl(mean: Tensor, reference: Tensor, std: Tensor, length: Tensor, form: KlForm) -> Tensor:
    """KL of two transitions of equal std, the mean over dimensions (n,).

    Args:
        mean, reference: (n, ...).
        std: broadcasts.
        length: of the step in flow time, positive (n,).
        form: "published" multiplies the exact one by the length: recipes' weights belong to it.
    """
    exact = divergence(mean, reference, std)
    return exact if form == "exact" else exact * length


def log_ratio(change: Tensor, mean: Tensor, old: Tensor | None, std: Tensor, form: RatioForm) -> Tensor:
    """What the ratio of two transitions of equal std is the exponential of (n,).

    Args:
        change: of the mean log-density (n,).
        mean, old: of the transitions (n, ...); ``old`` serves "guard" alone.
        std: (n, 1, ...).
        form: "density" is ``change``; "distance" leaves 1 / (2 std^2) out of the densities; "guard" takes out what
            makes every ratio fall as the policy moves, and weighs all steps alike (GRPO-Guard, arXiv 2510.22319).
    """
    if form == "density":
        return change
    level = std.flatten()
    if form == "distance":
        return change * 2 * level.square()
    assert old is not None
    return change * level + (mean - old).square().flatten(1).mean(1) / (2 * level)


def moved(change: Tensor, ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """How far the policy is from the one that drew (n,): which ratios the clip holds, and half the squared change of
    the mean log-density, an estimate of the divergence.

    Args:
        change: of the mean log-density (n,).
        ratio: (n,).
    """
    return {"clipped": ((ratio - 1).abs() > clip).to(ratio), "approx_kl": change.square() / 2}


class FlowGrpo(Online):
    """The present policy draws trajectories; the loss is on their steps."""

    Config = FlowGrpoConfig
    losses_reported = ("policy", "kl", "ratio", "ratio_error", "clipped", "approx_kl")

    def setup(self, problem: Problem) -> None:
        """
        Raises:
            UsageError: the sampler's steps are no Gaussian transitions.
        """
        super().setup(problem)
        if not isinstance(problem.sampler, StepSampler):
            raise UsageError("optimizer.kind = 'flow-grpo' needs a sampler of Gaussian steps, for example 'flow-sde'")
        self.sampler = problem.sampler

    def step(self, index: int) -> StepResult:
        problem, config, batch = self.problem, self.config, self.problem.draw(index)
        size = problem.micro_batch
        denoiser = problem.backend.denoiser(batch.conditioning)
        times = self.sampler.times(denoiser.path).to(problem.device)
        last = max(1, int((len(times) - 1) * config.timestep_fraction))
        sampler = self.windowed(index, last)
        drawn = self.rollout(batch, True, sampler, config.same_noise)
        assert drawn.trajectory is not None and drawn.log_probs is not None  # noqa: PT018
        rewards = problem.rewards.combine(drawn.scores, batch.prompt_index)
        better = advantages(rewards, batch.prompt_index, config.advantage_std)
        better = clipped(better, config.advantage_clip)

        steps = noise_levels(sampler, denoiser.path, times)[:last].nonzero().flatten()
        policy = Policy(denoiser, sampler, Buffer.of(drawn.trajectory, drawn.trajectory[:, 1:], steps))
        buffer, lengths = policy.buffer, -flow_time(denoiser.path, times).diff()
        before = drawn.log_probs[:, steps].flatten()
        every = torch.arange(len(buffer), device=before.device)
        old = base = None
        if (
            config.log_prob == "guard" or problem.micro_batch != size
        ):  # kernels may depend on the batch: a ratio sees it
            old, std = policy.transition(every, problem.retrying(policy.cached))
            before = log_prob(buffer.target, old, std)
        if config.kl:
            with problem.adapter.disabled():
                base = problem.retrying(policy.cached)

        def losses(rows: Tensor) -> dict[str, Tensor]:
            prediction = policy.predict(rows)
            mean, std = policy.transition(rows, prediction)
            change = log_prob(buffer.target[rows], mean, std) - before[rows]
            ratio = torch.exp(log_ratio(change, mean, None if old is None else old[rows], std, config.log_prob))
            loss = clipped_loss(better[buffer.trajectory[rows]].to(ratio), ratio, config.clip)
            drift = torch.zeros_like(loss)
            if base is not None:
                other = Prediction(base.x0[rows], base.eps[rows])
                if config.kl_form == "velocity":
                    drift = distance(denoiser.path, prediction, other)
                else:
                    reference = policy.transition(rows, other)[0]
                    drift = kl(mean, reference, std, lengths[buffer.step[rows]], config.kl_form)
            total = loss + config.kl * drift
            found = {"total": total, "policy": loss, "kl": drift, "ratio": ratio, "ratio_error": (ratio - 1).abs()}
            return found | moved(change, ratio, config.clip)

        return self.result(drawn, self.update(index, rewards.isfinite(), len(steps), losses))

    def windowed(self, index: int, last: int) -> StepSampler:
        """The sampler of a step of the run, whose first ``last`` steps are learnt from."""
        config = self.config
        if config.window is None:
            return self.sampler
        start = window_start(config, index, last, self.problem.spec.run.seed)
        return Windowed(self.sampler, start, min(start + config.window, last))
