"""One step of a forward-process method: draw and score images, noise them again, learn from how they are denoised."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from t2ialign import Denoiser, LoraOptimizer, State, StepResult, seeding
from t2ialign.problem.problem import Batch, Problem
from t2ialign.tensors import solver_state
from t2ialign.tensors.accumulation import Losses, accumulate
from t2ialign_rl.advantages import advantages
from t2ialign_rl.forward import noised

OLD = "old."
#: Images of a step that are worth a look.
SHOWN = 8


@dataclass(frozen=True)
class Noised:
    """Some of a step's images, noised: n rows.

    Attributes:
        denoiser: bound to the rows.
        x0, noise, x: clean latents, eps and x_t (n, *latent).
        t: path times (n,).
        advantages: float64 (n,).
    """

    denoiser: Denoiser
    x0: Tensor
    noise: Tensor
    x: Tensor
    t: Tensor
    advantages: Tensor


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
    trajectory: Tensor | None
    log_probs: Tensor | None


class Online(LoraOptimizer):
    """What all methods share: drawing and scoring, updates in micro-batches and ranks, state.

    Attributes:
        updates: solver steps so far.
        losses_reported: names that losses give beside "total".
    """

    losses_reported: ClassVar[list[str]]

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        config, self.updates = self.config, 0
        self.parameters = problem.adapter.parameters()
        self.solver = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def rollout(self, batch: Batch, trajectory: bool = False) -> Drawn:
        problem, count = self.problem, len(batch.seeds)
        mine = problem.world.mine(count)
        conditioning, seeds = batch.conditioning[mine], [batch.seeds[row] for row in mine]
        drawn = problem.rollout(conditioning, seeds, trajectory=trajectory)
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

    def update(self, index: int, finite: Tensor, times: int, losses: Losses) -> dict[str, float]:
        """The step's updates on all images with a finite reward (N,), at ``times`` rows for each image."""
        problem, config, parameters = self.problem, self.config, list(self.parameters.values())
        kept = finite.nonzero().flatten().cpu()
        seed = seeding.derive(problem.spec.run.seed, "rl-order", index)
        order = kept[torch.randperm(len(kept), generator=seeding.generator(seed))]
        sums = dict.fromkeys([*self.losses_reported, "gradient_norm"], 0.0)
        for images in order.tensor_split(config.updates):
            if not len(images):
                continue  # too few scores were finite
            rows = (images[:, None] * times + torch.arange(times)).flatten()
            means, problem.micro_batch = accumulate(
                parameters, rows, losses, self.losses_reported, problem.micro_batch, problem.world
            )
            means["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
            self.solver.step()
            self.updates += 1
            sums = {name: total + means[name] for name, total in sums.items()}
        return {f"learn/{name}": total / config.updates for name, total in sums.items()}

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


class ForwardProcess(Online):
    """Subclasses give the loss, who draws, and how the slow policy follows.

    Attributes:
        old: the slow policy's tensors: the one that draws for NFT, the one that holds AWM back.
    """

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.old = self.copied()

    @abstractmethod
    def losses(self, rows: Noised, behaviour: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Per row (n,): "total", and what is reported.

        Args:
            behaviour: theta before the step's first update, where the step has several.
        """

    @abstractmethod
    def decay(self) -> float:
        """What ``old`` keeps of itself after this step."""

    @abstractmethod
    def positions(self, source: torch.Generator) -> Tensor:
        """Positions on the time grid (times,) for one image."""

    def drawing(self) -> AbstractContextManager[None]:
        """Context in which images are drawn."""
        return nullcontext()

    def step(self, index: int) -> StepResult:
        batch = self.problem.draw(index)
        with self.drawing():
            drawn = self.rollout(batch)
        rewards = self.problem.rewards.combine(drawn.scores, batch.prompt_index)
        learnt = self.learn(index, batch, drawn.latents, rewards)
        self.follow()
        return self.result(drawn, learnt)

    def learn(self, index: int, batch: Batch, latents: Tensor, rewards: Tensor) -> dict[str, float]:
        """The step's updates on all images with a finite reward."""
        problem, config, times = self.problem, self.config, self.config.times
        denoiser = problem.backend.denoiser(batch.conditioning)
        better = advantages(rewards, batch.prompt_index, config.advantage_std)
        grid = denoiser.path.times(config.grid).to(latents.device)
        sources = (seeding.generator(seeding.derive(image, "rl-times")) for image in batch.seeds)
        t = grid[torch.stack([self.positions(source) for source in sources]).to(latents.device)].flatten()
        behaviour = self.copied() if config.updates > 1 else None

        def losses(rows: Tensor) -> dict[str, Tensor]:
            image = rows // times
            pairs = zip(image.tolist(), rows.tolist(), strict=True)
            seeds = [seeding.derive(batch.seeds[i], "rl-noise", row % times) for i, row in pairs]
            x0, noise = latents[image], seeding.normal(seeds, latents.shape[1:], latents.device)
            x = noised(denoiser.path, x0, noise, t[rows])
            found = Noised(denoiser.rows(image), x0, noise, x, t[rows], better[image])
            return self.losses(found, behaviour)

        return self.update(index, rewards.isfinite(), times, losses)

    @torch.no_grad()
    def follow(self) -> None:
        """old <- d old + (1 - d) theta."""
        decay = self.decay()
        for name, parameter in self.parameters.items():
            self.old[name].lerp_(parameter, 1 - decay)

    def state(self) -> State:
        state = super().state()
        state.tensors |= {f"{OLD}{name}": tensor.cpu().clone() for name, tensor in self.old.items()}
        return state

    def load_state(self, state: State) -> None:
        super().load_state(state)
        for name, tensor in self.old.items():
            tensor.copy_(state.tensors[f"{OLD}{name}"])
