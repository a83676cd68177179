"""DAV (arXiv 2510.00502) as an optimizer of a text-to-image LoRA: search trajectories, learn to follow them, repeat."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from t2ialign import LoraOptimizer, Prediction, State, StepResult, seeding
from t2ialign.problem.problem import Batch, Problem
from t2ialign.problem.transitions import Buffer, Policy, noise_levels
from t2ialign.tensors import solver_state
from t2ialign_dav import upstream
from t2ialign_dav.config import DavConfig, DavUpstreamConfig
from t2ialign_dav.e_step import Trajectories
from t2ialign_dav.explore import SHOWN, explore, lockstep_search, report, reward_unit, step_sampler
from t2ialign_dav.m_step import Objective, Progress, improve, likelihood, shuffled
from t2ialign_dav.model import Draws, Model


class Loop(LoraOptimizer):
    """E-step, M-step; subclasses say how each is done.

    Attributes:
        unit: what rewards are divided by before the temperature divides them.
    """

    unit: float

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        config = self.config
        self.sampler = step_sampler(problem)
        self.parameters = problem.adapter.parameters()
        self.solver = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )

    def step(self, index: int) -> StepResult:
        problem, batch = self.problem, self.problem.draw(index)
        with nullcontext() if self.config.hill_climbing else problem.base():
            found, cost = explore(problem, self.search, batch.conditioning, batch.seeds, self.unit, problem.world)
        progress = self.learn(index, batch, found)
        metrics = report(problem, batch.conditioning, batch.seeds, found, cost)
        learnt = {f"learn/{name}": value for name, value in progress._asdict().items()}
        return StepResult(metrics | learnt, found.images[:SHOWN])

    def learn(self, index: int, batch: Batch, found: Trajectories) -> Progress:
        """The M-step on all noisy transitions of the found trajectories."""
        problem, config = self.problem, self.config
        denoiser = problem.backend.denoiser(batch.conditioning)
        levels = noise_levels(self.sampler, denoiser.path, self.sampler.times(denoiser.path).to(self.device))
        buffer = Buffer.of(found.latents, found.targets, levels.nonzero().flatten())
        policy = Policy(denoiser, self.sampler, buffer)
        reference = None
        if config.train_kl:
            with problem.adapter.disabled():
                reference = problem.retrying(policy.cached)
        progress, problem.micro_batch = improve(
            list(self.parameters.values()),
            self.solver,
            self.objective(policy, reference),
            chain.from_iterable(self.updates(index, number, policy) for number in range(config.improve_steps)),
            config.max_grad_norm,
            problem.micro_batch,
            problem.world,
            problem.sharded,
        )
        return progress

    @abstractmethod
    def search(self, model: Model, draws: Draws) -> Trajectories:
        """The E-step."""

    @abstractmethod
    def objective(self, policy: Policy, reference: Prediction | None) -> Objective:
        """The M-step's loss."""

    @abstractmethod
    def updates(self, index: int, number: int, policy: Policy) -> Iterable[Tensor]:
        """Buffer rows of every update of improvement pass ``number`` in step ``index``."""

    def state(self) -> State:
        state = super().state()
        state.tensors |= solver_state.pack(self.solver, self.parameters)
        return state

    def load_state(self, state: State) -> None:
        super().load_state(state)
        solver_state.unpack(self.solver, self.parameters, state.tensors)


class Dav(Loop):
    """Trajectories in lock-step; weighted, shuffled transitions."""

    Config = DavConfig

    @cached_property
    def unit(self) -> float:  # type: ignore[override]
        return reward_unit(self.problem, self.config.reward_unit)

    def search(self, model: Model, draws: Draws) -> Trajectories:
        found = lockstep_search(self.config, model, self.sampler, draws)
        return found if self.config.target == "mean" else replace(found, targets=found.chosen)

    def objective(self, policy: Policy, reference: Prediction | None) -> Objective:
        return likelihood(policy, reference, self.config.train_kl, self.config.weight_cap)

    def updates(self, index: int, number: int, policy: Policy) -> Iterable[Tensor]:
        seed = seeding.derive(self.problem.spec.run.seed, "dav-updates", index, number)
        count = -(-policy.trajectories // self.config.accumulation)
        return shuffled(len(policy.buffer), count, self.config.timestep_fraction, seeding.generator(seed))


class DavUpstream(Loop):
    """One tree at a time; trajectory by trajectory, from noise to image."""

    Config = DavUpstreamConfig
    unit = 1.0

    def search(self, model: Model, draws: Draws) -> Trajectories:
        config = self.config

        def tree(model: Model, draws: Draws) -> upstream.TreeSearch:
            return upstream.TreeSearch(
                model,
                self.sampler,
                draws,
                config.alpha,
                config.gamma,
                config.particles,
                config.initial,
                config.value_gradient,
            )

        return upstream.search_one_by_one(model, draws, tree)

    def objective(self, policy: Policy, reference: Prediction | None) -> Objective:
        return upstream.published_loss(policy, reference, self.config.train_kl)

    def updates(self, index: int, number: int, policy: Policy) -> Iterable[Tensor]:
        trajectories = policy.trajectories
        steps = len(policy.buffer) // trajectories
        return upstream.in_order(trajectories, steps, self.config.accumulation, self.config.timestep_fraction)
