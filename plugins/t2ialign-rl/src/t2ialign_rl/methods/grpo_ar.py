"""GRPO on next-scale autoregressive models (arXiv 2505.23331; weights of arXiv 2601.02256): every token is an action.

tokens ~ policy, scale by scale;   A = (r - mean of its prompt) / (std of its prompt + 1e-4)
ratio_l  = exp(log p_theta(token_l) - log p_old(token_l))              all from one teacher-forced forward
policy_l = max(-A ratio_l, -A clamp(ratio_l, 1 - clip, 1 + clip))
k3_l     = exp(d_l) - 1 - d_l,   d_l = log p_base(token_l) - log p_theta(token_l)
L        = mean over images of sum_l w_l (policy_l + kl k3_l)
w_l      = (tokens of its scale)^-alpha / Z,   1 together: alpha = 0 leaves most of the loss to the last scale
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign import StepResult
from t2ialign.problem.problem import Batch
from t2ialign_rl.advantages import advantages, clipped_loss
from t2ialign_rl.config import GrpoArConfig
from t2ialign_rl.loop import Drawn, Online


def token_weights(scale_of: Tensor, alpha: float) -> Tensor:
    """w (L,), float64, 1 together.

    Args:
        scale_of: the scale of every token (L,).
    """
    weights = scale_of.bincount().double().pow(-alpha)[scale_of]
    return weights / weights.sum()


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """An unbiased estimate of KL(theta || base) from samples of theta, never negative; same shape."""
    return torch.expm1(reference - log_prob) - (reference - log_prob)


class GrpoAr(Online):
    """The present policy draws tokens; the loss is on their log-probabilities."""

    Config = GrpoArConfig
    losses_reported = ("policy", "kl", "whole_kl", "ratio", "ratio_error")

    def step(self, index: int) -> StepResult:
        problem, config, batch = self.problem, self.config, self.problem.draw(index)
        drawn = self.drawn(batch)
        rewards = problem.rewards.combine(drawn.scores, batch.prompt_index)
        better = advantages(rewards, batch.prompt_index, config.advantage_std)
        better = better.clamp(-config.advantage_clip, config.advantage_clip)
        scale_of = problem.backend.scale_of.to(problem.device)
        count = len(scale_of) if config.scales is None else int((scale_of < config.scales).sum())
        tokens, weights = drawn.latents[:, :count], token_weights(scale_of[:count], config.alpha)
        before = self.log_probs(batch, tokens) if config.updates > 1 else None

        def losses(rows: Tensor) -> dict[str, Tensor]:
            conditioning, own = batch.conditioning[rows.cpu()], tokens[rows]
            with torch.no_grad(), problem.adapter.disabled():
                base = problem.backend.log_prob(conditioning, own, self.guided) if config.kl else None
            now = problem.backend.log_prob(conditioning, own, self.guided)
            ratio = torch.exp(now - (now.detach() if before is None else before[rows]))
            w = weights.to(now)
            policy = (w * clipped_loss(better[rows, None].to(now), ratio, config.clip)).sum(1)
            distance = torch.zeros_like(now) if base is None else k3(now, base)
            kl, error = (w * distance).sum(1), (ratio - 1).abs().amax(1)
            found = {"policy": policy, "kl": kl, "whole_kl": distance.sum(1), "ratio": ratio.mean(1)}
            return {"total": policy + config.kl * kl, "ratio_error": error, **found}

        return self.result(drawn, self.update(index, rewards.isfinite(), 1, losses))

    def drawn(self, batch: Batch) -> Drawn:
        """A step's images, their tokens as ``latents``, each rank its share of them."""
        problem, count = self.problem, len(batch.seeds)
        mine = problem.world.mine(count)
        conditioning, seeds = batch.conditioning[mine], [batch.seeds[row] for row in mine]
        surrogate = self.config.policy == "surrogate"
        images, tokens = problem.draw_tokens(conditioning, seeds, plain=not surrogate, guided=self.guided)
        scores = problem.rewards.score(images, conditioning.prompts, micro_batch=problem.micro_batch)
        gathered = {name: problem.world.collect(values, count) for name, values in scores.items()}
        return Drawn(problem.world.collect(tokens, count), gathered, images)

    @torch.no_grad()
    def log_probs(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Of all images (N, l), by the forward that learning uses."""

        def run(size: int) -> Tensor:
            rows = torch.arange(len(tokens)).split(size)
            own = [(batch.conditioning[part], tokens[part]) for part in rows]
            return torch.cat([self.problem.backend.log_prob(*part, self.guided) for part in own])

        return self.problem.retrying(run)

    @property
    def guided(self) -> bool:
        return self.config.policy == "guided"

    def acceptable(self, means: dict[str, float]) -> bool:
        return self.config.max_kl is None or means["whole_kl"] <= self.config.max_kl
