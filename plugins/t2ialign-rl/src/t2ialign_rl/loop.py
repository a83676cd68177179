"""What all methods share: drawing and scoring a step's images, updates in micro-batches and ranks, state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2ialign import LoraOptimizer, Sampler, State, StepResult, seeding
from t2ialign.problem.problem import Batch, Problem
from t2ialign.tensors import solver_state
from t2ialign.tensors.accumulation import Losses, accumulate

#: Images of a step that are worth a look.
SHOWN = 8


@dataclass(frozen=True)
class Drawn:
    """All N images of a step, from the ranks' shares.

    Attributes:
        latents: clean (N, *latent).
        scores: name -> (N,).
        images: this rank's.
        trajectory, log_probs: as in a ``Rollout``, where they were kept.
    """

    latents: Tensor
    scores: dict[str, Tensor]
    images: Tensor
    trajectory: Tensor | None = None
    log_probs: Tensor | None = None


class Online(LoraOptimizer):
    """What all methods share: drawing and scoring, updates in micro-batches and ranks, state.

    Attributes:
        updates: solver steps so far.
        losses_reported: names that losses give beside "total".
    """

    losses_reported: Sequence[str]

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        config, self.updates = self.config, 0
        self.parameters = problem.adapter.parameters()
        self.solver = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def rollout(
        self, batch: Batch, trajectory: bool = False, sampler: Sampler | None = None, same_noise: bool = False
    ) -> Drawn:
        """A step's images, each rank its share of them.

        Args:
            trajectory: keep the transitions.
            sampler: default: the run's.
            same_noise: all images of a prompt start from that of its first.
        """
        problem, count = self.problem, len(batch.seeds)
        mine = problem.world.mine(count)
        conditioning, seeds = batch.conditioning[mine], [batch.seeds[row] for row in mine]
        noise = None
        if same_noise:
            size = count // len(batch.prompts)
            first = [batch.seeds[row - row % size] for row in mine]
            noise = problem.backend.noise(first)
        drawn = problem.rollout(conditioning, seeds, sampler, trajectory, noise)
        references = problem.references(conditioning, seeds, optimised_only=True)
        scores = problem.rewards.score(
            drawn.images, conditioning.prompts, micro_batch=problem.micro_batch, references=references
        )

        def collect(tensor: Tensor) -> Tensor:
            return problem.world.collect(tensor, count)

        return Drawn(
            collect(drawn.latents),
            {name: collect(values) for name, values in scores.items()},
            drawn.images,
            None if drawn.trajectory is None else collect(drawn.trajectory),
            None if drawn.log_probs is None else collect(drawn.log_probs),
        )

    def update(self, index: int, finite: Tensor, times: int, losses: Losses, size: int = 1) -> dict[str, float]:
        """The step's updates on all images with a finite reward (N,), at ``times`` rows for each image, each of which
        is ``size`` rows for the network."""
        problem, config, parameters = self.problem, self.config, list(self.parameters.values())
        kept = finite.nonzero().flatten().cpu()
        seed = seeding.derive(problem.spec.run.seed, "rl-order", index)
        order = kept[torch.randperm(len(kept), generator=seeding.generator(seed))]
        sums = dict.fromkeys([*self.losses_reported, "gradient_norm"], 0.0)
        for images in order.tensor_split(config.updates):
            if not len(images):
                continue  # too few scores were finite
            rows = (images[:, None] * times + torch.arange(times)).flatten()
            micro_batch = max(1, problem.micro_batch // size)
            means, fits = accumulate(
                parameters, rows, losses, self.losses_reported, micro_batch, problem.world, problem.sharded
            )
            if fits < micro_batch:
                problem.micro_batch = fits * size
            means["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
            if self.acceptable(means):
                self.solver.step()
            self.updates += 1
            sums = {name: total + means[name] for name, total in sums.items()}
        means = {name: total / config.updates for name, total in sums.items()}
        return {name if "/" in name else f"learn/{name}": mean for name, mean in means.items()}

    def acceptable(self, means: dict[str, float]) -> bool:
        """Whether to take an update whose losses have these means."""
        return True

    def result(self, drawn: Drawn, learnt: dict[str, float]) -> StepResult:
        means = {f"reward/{name}": values[values.isfinite()] for name, values in drawn.scores.items()}
        metrics = {name: values.mean().item() for name, values in means.items() if len(values)}
        return StepResult(metrics | learnt, drawn.images[:SHOWN])

    def state(self) -> State:
        state = super().state()
        state.tensors |= solver_state.pack(self.solver, self.parameters)
        state.values["updates"] = self.updates
        return state

    def load_state(self, state: State) -> None:
        super().load_state(state)
        solver_state.unpack(self.solver, self.parameters, state.tensors)
        self.updates = state.values["updates"]
