"""Direct reward gradients: DRaFT (arXiv 2309.17400), AlignProp (arXiv 2310.03739) and ReFL (arXiv 2304.05977).

x_T ~ noise;  x_0 = sampler(x_T), where all but the last K calls of the network are constants
L = mean of -r(decode(x_0)), or max(0, target - r)                                      + kl |v_theta - v_base|^2

DRaFT-K has a fixed K, AlignProp draws it; in TRL each call keeps its gradient by a draw of its own. ReFL ends at one of
the last steps and takes the x0 predicted there. DRaFT-LV noises x_0 again to the last step's noise level, several
times, and learns from those steps alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import torch
from torch import Tensor

from t2ialign import Denoiser, StepResult, StepSampler, UsageError, seeding
from t2ialign.problem.problem import Problem
from t2ialign_rl.config import DraftConfig
from t2ialign_rl.forward import noised
from t2ialign_rl.gradients import DirectGradients, LastCalls, through_rewards


def renoised(denoiser: Denoiser, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """One step of DRaFT-LV: x0 without its gradient is noised to time t (n,), and denoised with one (n, *latent)."""
    return denoiser(noised(denoiser.path, x0.detach(), noise, t), t).x0


def stopped_at(sampler: StepSampler, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int], end: int) -> Tensor:
    """ReFL's images: x0 (n, *latent) as the network predicts it after ``end`` steps."""
    times = sampler.times(denoiser.path).to(noise.device)
    x = denoiser.path.prior(noise, times[0])
    for step in islice(sampler.walk(denoiser, noise, seeds), end):
        x = step.next
    return denoiser(x, times[end]).x0


def constant_calls(draws: Tensor) -> list[int]:
    """Calls without a gradient, from one draw a call (calls,): i where draw i is larger than i.

    Draws from 0 to ``calls`` make later calls likelier to keep theirs. Where none would, the last one does.
    """
    numbers = (draws > torch.arange(len(draws))).nonzero().flatten().tolist()
    return numbers[:-1] if len(numbers) == len(draws) else numbers


class Draft(DirectGradients):
    """Every image of a step is drawn with gradients, once."""

    Config = DraftConfig

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        assert problem.sampler is not None
        self.sampler = problem.sampler
        self.calls = problem.spec.sampler_config.evaluations()
        if self.config.refl is not None and not isinstance(self.sampler, StepSampler):
            raise UsageError("optimizer.refl needs a sampler whose steps can be stopped at, for example 'ddim'")

    def step(self, index: int) -> StepResult:
        problem, batch = self.problem, self.problem.draw(index)
        end, constant = self.drawn(index)

        def losses(rows: Tensor) -> dict[str, Tensor]:
            conditioning, seeds = batch.conditioning[rows.cpu()], [batch.seeds[row] for row in rows.tolist()]
            inner = problem.backend.denoiser(conditioning)
            denoiser = LastCalls(inner, constant, problem.adapter.disabled if self.config.kl else None)
            total = loss = torch.zeros(len(rows), device=problem.device)
            raw: dict[str, Tensor] = {}

            def score(pixels: Tensor) -> Tensor:
                raw.update(self.optimised.score(pixels, conditioning.prompts))
                return self.loss(self.optimised.combine(raw))

            estimates = self.estimates(denoiser, seeds, end)
            for x0 in estimates:
                images = problem.backend.decode(x0)
                surrogate, value = through_rewards(images, score)
                total, loss = total + surrogate / len(estimates), loss + value / len(estimates)
            drift = torch.zeros_like(loss) + denoiser.drift
            found = self.scored(raw, images, conditioning.prompts)
            active = (loss != 0).float()
            return {"total": total + self.config.kl * drift, "loss": loss, "kl": drift, "active": active, **found}

        everything = torch.ones(len(batch.seeds), dtype=torch.bool)
        return self.report(self.update(index, everything, 1, losses))

    def drawn(self, index: int) -> tuple[int | None, Collection[int]]:
        """The step where ReFL ends, or None, and the calls without a gradient; one draw for all images."""
        config, seed = self.config, self.problem.spec.run.seed
        source = seeding.generator(seeding.derive(seed, "draft", index))
        end, calls = None, self.calls
        if config.refl is not None:
            end = calls - 1 - int(torch.randint(min(config.refl, calls), (), generator=source))
            calls = end + 1
        if config.noisings:
            return end, range(self.calls)
        if config.last_draw == "each":
            return end, constant_calls(torch.randint(calls + 1, (calls,), generator=source))
        last = min(config.last, calls)
        if config.last_draw == "uniform":
            last = 1 + int(torch.randint(last, (), generator=source))
        return end, range(calls - last)

    def estimates(self, denoiser: LastCalls, seeds: list[int], end: int | None) -> list[Tensor]:
        """Clean latents with a gradient (n, *latent), one or as many as ``noisings``."""
        noise = self.problem.backend.noise(seeds)
        if end is not None:
            assert isinstance(self.sampler, StepSampler)
            return [stopped_at(self.sampler, denoiser, noise, seeds, end)]
        latents = self.sampler.sample(denoiser, noise, seeds)
        if not self.config.noisings:
            return [latents]
        assert denoiser.last is not None
        t, found = denoiser.last, []
        for number in range(self.config.noisings):
            fresh = [seeding.derive(seed, "draft-noise", number) for seed in seeds]
            found.append(renoised(denoiser, latents, seeding.normal(fresh, noise.shape[1:], noise.device), t))
        return found
