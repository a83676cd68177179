"""PPO on the table of a few-step solver (EPD, arXiv 2507.14797): the model is frozen, some forty numbers are learnt.

    for each step:
        draw prompts, k images each, from the same noise within a prompt
        draw a table per image from the policy; sample; score
        A = reward - mean reward of the prompt's other images, whitened
        a few solver steps on the clipped surrogate + kl KL(policy, start) - entropy H
        now and then: is the policy's mean table the best so far on the validation images?

The denoising is deterministic given table and noise, so that a whole image is one action of a bandit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from t2ialign import Optimizer, State, StepResult, seeding
from t2ialign.problem.advantages import leave_one_out, standardised
from t2ialign.problem.problem import Batch, Problem
from t2ialign.tensors import solver_state
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_ppo import ppo
from t2ialign_ppo.distributions import Draws
from t2ialign_ppo.export import check_table, export_table
from t2ialign_ppo.policy import Policy
from t2ialign_ppo.rollouts import rollout, sampler_of, scored
from t2ialign_ppo.validation import Validation
from t2ialign_solvers.table import SolverTable

#: Images of a step that are worth a look.
SHOWN = 8


class PpoEpd(Optimizer):
    """The base of its evaluation is the spec's sampler: the table that the policy starts from."""

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        config = self.config
        self.seed = problem.spec.run.seed
        path = problem.backend.denoiser(problem.conditioning[:1]).path
        self.start_table = sampler_of(problem).table_on(path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(self.seed, "ppo-policy"))
            self.policy = Policy(
                self.start_table,
                config.concentration,
                scale_dir=config.scale_dir,
                scale_time=config.scale_time,
                scale_std=config.scale_std,
                scale_bound=config.scale_bound,
                width=config.width,
                blocks=config.blocks,
            )
        self.parameters = dict(self.policy.named_parameters())
        self.solver = torch.optim.AdamW(self.parameters.values(), lr=config.learning_rate, weight_decay=0.0)
        self.validation = Validation(problem, self.start_table, config)

    def step(self, index: int) -> StepResult:
        batch = self.problem.draw(index)
        seeds = self._noise_seeds(batch)
        with torch.no_grad():
            policy = self.policy()
            draws = policy.draw([seeding.derive(self.seed, "ppo-table", index, row) for row in range(len(seeds))])
            old = policy.log_prob(draws).sum(-1)
        found = scored(self.problem, draws.table(self.start_table), batch.conditioning, seeds)
        combined = self.problem.rewards.combine(found.rewards, batch.prompt_index.cpu()).double()
        advantages = self._advantages(combined)
        metrics = {f"reward/{name}": values[values.isfinite()].mean().item() for name, values in found.rewards.items()}
        metrics |= {"reward/std": combined[~combined.isnan()].std(correction=0).item()}
        metrics |= self._learn(index, draws, old, advantages, ~combined.isnan())
        every = self.config.validate_every
        if every and ((index + 1) % every == 0 or index + 1 == self.problem.spec.run.steps):
            gain = self.validation.try_table(self.mean_table(), index + 1)
            metrics |= {"validation/gain": gain.mean, "validation/se": gain.se}
            metrics |= {"validation/best": self.validation.best_gain}
        return StepResult(metrics, found.images[:SHOWN])

    def _noise_seeds(self, batch: Batch) -> list[int]:
        if not self.config.shared_noise:
            return batch.seeds
        group = self.problem.spec.prompts.images_per_prompt
        return [batch.seeds[row - row % group] for row in range(len(batch.seeds))]

    def _advantages(self, rewards: Tensor) -> Tensor:
        """(B,) float64 from combined rewards (B,); NaN, where a sample was dropped, has advantage 0."""
        own = leave_one_out(rewards.unflatten(0, (-1, self.problem.spec.prompts.images_per_prompt)))
        white = standardised(own.flatten() if self.config.whiten == "batch" else own)
        return white.flatten().nan_to_num(0.0)

    def _learn(self, index: int, draws: Draws, old: Tensor, advantages: Tensor, valid: Tensor) -> dict[str, float]:
        """All solver steps of a step; returns the means over them."""
        config, rows = self.config, valid.nonzero().flatten()
        log: list[dict[str, float]] = []
        for epoch in range(config.epochs):
            source = seeding.generator(seeding.derive(self.seed, "ppo-minibatches", index, epoch))
            for part in rows[torch.randperm(len(rows), generator=source)].split(config.minibatch):
                loss = ppo.loss(
                    self.policy(),
                    self.policy.start(),
                    draws.rows(part),
                    old[part],
                    advantages[part],
                    config.clip,
                    config.kl,
                    config.entropy,
                )
                norm = ppo.update(self.policy, self.solver, loss, config.max_grad_norm)
                log.append({name: value.item() for name, value in (loss._asdict() | {"grad_norm": norm}).items()})
        return {f"ppo/{name}": sum(entry[name] for entry in log) / len(log) for name in (log[0] if log else ())}

    @torch.no_grad()
    def mean_table(self) -> SolverTable:
        """The table at the policy's mean, float32."""
        return self.policy().mean.table(self.start_table)

    @property
    def table(self) -> SolverTable:
        """What the run delivers: the best table on the validation images, or the mean where there is no validation."""
        return self.validation.best if self.config.validate_every else self.mean_table()

    def generate(self, conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        return rollout(self.problem, self.table, conditioning, seeds)

    def state(self) -> State:
        state = self.validation.state()
        state.tensors |= {f"policy.{name}": value.clone() for name, value in self.policy.state_dict().items()}
        state.tensors |= solver_state.pack(self.solver, self.parameters)
        return state

    def load_state(self, state: State) -> None:
        own = {name: value for name, value in state.tensors.items() if name.startswith("policy.")}
        self.policy.load_state_dict({name.removeprefix("policy."): value for name, value in own.items()})
        solver_state.unpack(self.solver, self.parameters, state.tensors)
        self.validation.load_state(state)

    def export(self, folder: Path) -> None:
        validation = self.validation
        chosen = {"step": validation.best_step, "validation_gain": validation.best_gain}
        export_table(self.problem, self.table, chosen if self.config.validate_every else {}, folder)

    def check(self, folder: Path) -> str:
        return check_table(self.problem, self.table, folder)
