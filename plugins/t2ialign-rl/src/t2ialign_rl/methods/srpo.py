"""SRPO (arXiv 2509.06942): noise a clean image with known noise, take one step, and undo the rest exactly.

y_tau = (1 - tau) x0 + tau eps,  tau = sigma / (alpha + sigma) in [0, 1];   v = eps - x0 as the network sees it
y_out = y_in + (tau_out - tau_in) v;     x0_hat = (y_out - tau_out eps) / (1 - tau_out)
r     = (1 + c) R(image, "good. prompt") - R(image, "bad. prompt")          denoise: tau_out < tau_in
        (1 + c) R(image, "bad. prompt") - R(image, "good. prompt")          invert:  tau_out > tau_in
L     = mean of max(0, target - r) over both branches
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from t2ialign import Denoiser, Prompt, StepResult, seeding
from t2ialign.spec.prompts import data_of
from t2ialign.tensors.paths import DiffusionPath, LinearPath
from t2ialign_rl.config import SrpoConfig
from t2ialign_rl.forward import flow_time, like_rows
from t2ialign_rl.gradients import DirectGradients, through_rewards

#: Levels at both ends where no step is in the middle of.
EDGE = 5


class Jumps(NamedTuple):
    """One step a row: flow times (n,) where it starts and ends, and the discount c (n,)."""

    start: Tensor
    end: Tensor
    discount: Tensor


def jumps(levels: Tensor, middle: Tensor, invert: Tensor, config: SrpoConfig) -> Jumps:
    """Where steps start and end.

    Args:
        levels: flow times (N,), noisy first.
        middle: positions m counted from the clean end (n,).
        invert: which rows step towards the noise, bool (n,).
    """
    count = len(levels)
    longest = int((1 - config.image_share) * count) + 1  # in floats, as published: 0.1 of 1000 is 99
    length = torch.minimum(torch.minimum(count - middle, torch.full_like(middle, longest)), middle)
    low = torch.where(invert, (middle - length).clamp(min=1), middle)
    clean, noisy = levels[count - low], levels[count - (low + length).clamp(max=count)]
    ends = (config.discount, config.discount_invert)
    forth, back = (torch.linspace(*pair, count, device=levels.device)[low] for pair in ends)
    start, end = torch.where(invert, clean, noisy), torch.where(invert, noisy, clean)
    return Jumps(start, end, torch.where(invert, back, forth))


def noise_levels(path: DiffusionPath, config: SrpoConfig) -> Tensor:
    """Flow times (N,) from which steps are drawn, noisy first: even between two steps of the model's grid."""
    grid = flow_time(path, path.times(config.grid))
    first, last = config.between
    return torch.linspace(grid[first].item(), grid[last].item(), config.levels)


def at(path: DiffusionPath, tau: Tensor) -> Tensor:
    """Path times of flow times."""
    return path.time(tau if isinstance(path, LinearPath) else tau / (1 - tau))


def recovered(denoiser: Denoiser, x0: Tensor, noise: Tensor, steps: Jumps) -> Tensor:
    """x0_hat (n, *latent) after one step from the noised ``x0``."""
    start, end = like_rows(steps.start, x0), like_rows(steps.end, x0)
    y = ((1 - start) * x0 + start * noise).detach()
    t = at(denoiser.path, steps.start)
    alpha, sigma = denoiser.path.coefficients(t)
    prediction = denoiser(like_rows(alpha + sigma, y) * y, t)
    after = y + (end - start) * (prediction.eps - prediction.x0)
    return (after - end * noise) / (1 - end)


def named(word: str, prompt: str) -> Prompt:
    """The phrase before the prompt, which keeps its data."""
    return Prompt(f"{word}. {prompt}", data_of(prompt))


class Srpo(DirectGradients):
    """Every image of a step is stepped to and fro, by how much more it looks like the good phrase."""

    Config = SrpoConfig

    def step(self, index: int) -> StepResult:
        problem, config, batch = self.problem, self.config, self.problem.draw(index)
        assert problem.sampler is not None
        mine = problem.world.mine(len(batch.seeds))
        clean = problem.rollout(batch.conditioning[mine], [batch.seeds[row] for row in mine]).latents
        latents = problem.world.collect(clean, len(batch.seeds))
        good = config.positive[index % len(config.positive)]
        bad = config.negative[index % len(config.negative)]
        levels = noise_levels(problem.backend.denoiser(batch.conditioning).path, config).to(latents.device)
        sources = (seeding.generator(seeding.derive(seed, "srpo")) for seed in batch.seeds)
        middles = torch.stack([torch.randint(EDGE, config.levels - EDGE, (), generator=one) for one in sources])

        def losses(rows: Tensor) -> dict[str, Tensor]:
            image, invert = rows // 2, rows % 2 == 1
            seeds = [batch.seeds[row] for row in image.tolist()]
            conditioning = batch.conditioning[image.cpu()]
            steps = jumps(levels, middles.to(rows.device)[image], invert, config)
            noise = problem.backend.noise(seeds)
            x0 = recovered(problem.backend.denoiser(conditioning), latents[image], noise, steps)
            images = problem.backend.decode(x0)
            texts = [[named(word, prompt) for prompt in conditioning.prompts] for word in (good, bad)]
            wanted = [texts[int(turned)][row] for row, turned in enumerate(invert.tolist())]
            unwanted = [texts[1 - int(turned)][row] for row, turned in enumerate(invert.tolist())]

            def score(pixels: Tensor) -> Tensor:
                preferred = self.optimised.combine(self.optimised.score(pixels, wanted))
                other = self.optimised.combine(self.optimised.score(pixels, unwanted))
                return self.loss((1 + steps.discount) * preferred - other)

            total, loss = through_rewards(images, score)
            with torch.no_grad():
                raw = self.optimised.score(images.detach(), conditioning.prompts)
            found = self.scored(raw, images, conditioning.prompts)
            return {"total": total, "loss": loss, "kl": torch.zeros_like(loss), "active": (loss != 0).float(), **found}

        everything = torch.ones(len(batch.seeds), dtype=torch.bool)
        return self.report(self.update(index, everything, 2, losses))
