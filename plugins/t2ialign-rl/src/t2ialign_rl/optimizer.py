"""The forward-process methods as optimizers of a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from t2ialign import Prediction
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_rl.advantages import clipped_loss
from t2ialign_rl.awm import log_prob, scaled_advantages, slow_decay
from t2ialign_rl.config import AwmConfig, NftConfig
from t2ialign_rl.forward import flow_time, squared_error, stratified
from t2ialign_rl.loop import ForwardProcess, Noised
from t2ialign_rl.nft import nft_loss, old_decay, optimality


def predicted(rows: Noised, context: AbstractContextManager[None]) -> Prediction:
    """Another policy's prediction: the network inside the context."""
    with torch.no_grad(), context:
        return rows.denoiser(rows.x, rows.t)


def distance(path: DiffusionPath, prediction: Prediction, other: Prediction | None) -> Tensor:
    """Mean squared difference of the directions (n,); 0 without another one."""
    if other is None:
        return torch.zeros(len(prediction.x0), device=prediction.x0.device)
    return squared_error(path.direction(prediction), path.direction(other))


class Nft(ForwardProcess):
    """The old policy draws; the loss is on x0."""

    Config = NftConfig
    losses_reported = ["policy", "kl"]  # noqa: RUF012

    def drawing(self) -> AbstractContextManager[None]:
        return self.problem.adapter.swapped(self.old)

    def decay(self) -> float:
        return old_decay(self.config.old_decay, self.updates)

    def positions(self, source: torch.Generator) -> Tensor:
        usable = int(self.config.grid * self.config.timestep_fraction)
        return torch.randperm(usable, generator=source)[: self.config.times]

    def losses(self, rows: Noised, behaviour: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        config, adapter = self.config, self.problem.adapter
        path = rows.denoiser.path
        # The others come before theta, whose graph a swap would break.
        old = predicted(rows, adapter.swapped(self.old)).x0
        base = predicted(rows, adapter.disabled()) if config.kl else None
        prediction = rows.denoiser(rows.x, rows.t)
        r = optimality(rows.advantages, config.advantage_clip, config.advantage_mode).to(old)
        policy = config.advantage_clip * nft_loss(prediction.x0, old, rows.x0, r, config.beta)
        kl = distance(path, prediction, base)
        return {"total": policy + config.kl * kl, "policy": policy, "kl": kl}


class Awm(ForwardProcess):
    """The present policy draws; the loss is on the direction."""

    Config = AwmConfig
    losses_reported = ["policy", "kl", "slow_kl", "ratio"]  # noqa: RUF012

    def decay(self) -> float:
        return slow_decay(self.updates, self.config.slow_decay)

    def positions(self, source: torch.Generator) -> Tensor:
        config = self.config
        u = torch.rand(config.times, generator=source)
        return stratified(u, config.grid, config.timestep_fraction, config.first)

    def losses(self, rows: Noised, behaviour: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        config, adapter = self.config, self.problem.adapter
        path, time = rows.denoiser.path, flow_time(rows.denoiser.path, rows.t)
        target = path.direction(Prediction(rows.x0, rows.noise))

        def surrogate(prediction: Prediction) -> Tensor:
            error = squared_error(path.direction(prediction), target)
            return log_prob(error, time, config.weighting, config.power)

        # The others come before theta, whose graph a swap would break.
        before = surrogate(predicted(rows, adapter.swapped(behaviour))) if behaviour else None
        base = predicted(rows, adapter.disabled()) if config.kl else None
        slow = predicted(rows, adapter.swapped(self.old)) if config.slow_kl else None
        prediction = rows.denoiser(rows.x, rows.t)
        now = surrogate(prediction)
        ratio = torch.exp(now - (now.detach() if before is None else before))
        advantages = scaled_advantages(rows.advantages, config.advantage_clip, config.advantage_max)
        policy = clipped_loss(advantages, ratio, config.clip)
        kl, slow_kl = distance(path, prediction, base), distance(path, prediction, slow)
        total = policy + config.kl * kl + config.slow_kl * slow_kl
        return {"total": total, "policy": policy, "kl": kl, "slow_kl": slow_kl, "ratio": ratio}
