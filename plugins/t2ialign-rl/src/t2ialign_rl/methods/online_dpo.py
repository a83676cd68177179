"""Online DPO for diffusion (arXiv 2311.12908): the best image of a prompt against its worst, on the same noise.

e = |v_theta(x_t) - v|^2,  f = |v_base(x_t) - v|^2        for winner and loser, with the same t and eps
z = -beta / 2 [ (e_w - f_w) - (e_l - f_l) ]
L = mean of -log sigmoid(z)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from t2ialign import Prediction, seeding
from t2ialign.problem.problem import Batch
from t2ialign_rl.config import OnlineDpoConfig
from t2ialign_rl.forward import noised, squared_error
from t2ialign_rl.forward_process import SlowPolicy


def best_against_worst(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of winners and losers (P,), by ascending group; the first of equals.

    Groups whose finite rewards have no spread give no pair.

    Args:
        rewards: (N,).
        groups: the prompt of each, as integers (N,).
    """
    win, lose = [], []
    for group in groups.unique():
        rows = ((groups == group) & rewards.isfinite()).nonzero().flatten()
        own = rewards[rows]
        if len(rows) > 1 and bool(own.max() > own.min()):
            win.append(rows[(own == own.max()).nonzero()[0, 0]])
            lose.append(rows[(own == own.min()).nonzero()[0, 0]])
    empty = groups.new_empty(0, dtype=torch.long)
    return (torch.stack(win), torch.stack(lose)) if win else (empty, empty)


def implicit_reward(error: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-beta / 2 (e - f) (n,): how much better than the base the policy denoises an image."""
    return -beta / 2 * (error - reference)


def dpo_loss(win: Tensor, lose: Tensor) -> Tensor:
    """-log sigmoid(z) (n,) of the two implicit rewards."""
    return -logsigmoid(win - lose)


def shifted_time(u: Tensor, shift: float, steps: int = 1000) -> Tensor:
    """Flow time (n,) at position floor(steps u) of the training schedule, u in [0, 1): noisy times come first."""
    even = 1 - (u * steps).floor() / steps
    return shift * even / (1 + (shift - 1) * even)


class OnlineDpo(SlowPolicy):
    """The present policy draws; the best and the worst image of every prompt are learnt from."""

    Config = OnlineDpoConfig
    losses_reported = ("loss", "accuracy", "margin")

    def decay(self) -> float:
        every = self.config.reference_every
        before = self.updates - self.config.updates
        return 0.0 if every and self.updates // every > before // every else 1.0

    def learn(self, index: int, batch: Batch, latents: Tensor, rewards: Tensor) -> dict[str, float]:
        problem, config, times = self.problem, self.config, self.config.times
        denoiser = problem.backend.denoiser(batch.conditioning)
        path = denoiser.path
        win, lose = best_against_worst(rewards, batch.prompt_index)
        grid = path.times(config.grid).to(latents.device)

        def losses(rows: Tensor) -> dict[str, Tensor]:
            pair = rows // times
            pairs = zip(win[pair].tolist(), rows.tolist(), strict=True)
            seeds = [seeding.derive(batch.seeds[image], "dpo-noise", row % times) for image, row in pairs]
            t = grid[torch.tensor([self.position(seed) for seed in seeds], device=rows.device)]
            noise = seeding.normal(seeds, latents.shape[1:], latents.device)
            both = torch.cat([win[pair], lose[pair]])  # in one forward, with the same t and eps
            x0, t, noise = latents[both], t.repeat(2), torch.cat([noise, noise])
            x, own = noised(path, x0, noise, t), denoiser.rows(both)
            target = path.direction(Prediction(x0, noise))
            with torch.no_grad(), problem.adapter.swapped(self.old):  # before theta, whose graph a swap would break
                reference = squared_error(path.direction(own(x, t)), target)
            error = squared_error(path.direction(own(x, t)), target)
            good, bad = implicit_reward(error, reference, config.beta).chunk(2)
            loss = dpo_loss(good, bad)
            return {"total": loss, "loss": loss, "accuracy": (good > bad).float(), "margin": good - bad}

        everything = torch.ones(len(win), dtype=torch.bool)
        return {"learn/pairs": float(len(win)), **self.update(index, everything, times, losses)}

    def position(self, seed: int) -> int:
        """Where on the time grid, noisy first."""
        source = seeding.generator(seeding.derive(seed, "time"))
        if self.config.time_draw == "uniform":
            return int(torch.randint(self.config.grid, (), generator=source))
        u = torch.randn((), generator=source).sigmoid()
        return min(int(u * self.config.grid), self.config.grid - 1)
