"""One step of a forward-process method: draw and score images, noise them again, learn from how they are denoised."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ialign import Denoiser, Prediction, State, StepResult, seeding
from t2ialign.problem.problem import Batch, Problem
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_rl.advantages import advantages
from t2ialign_rl.forward import noised, squared_error
from t2ialign_rl.loop import Online

OLD = "old."
log = logging.getLogger(__name__)


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


class SlowPolicy(Online):
    """A second policy that follows theta slowly; subclasses say how, who draws, and how the images are learnt from.

    Attributes:
        old: its tensors: who draws for NFT, who holds AWM back, the reference of DPO.
    """

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.old = self.copied()
        if trouble := self.config.distilled(problem.spec):
            log.warning(trouble)

    @abstractmethod
    def learn(self, index: int, batch: Batch, latents: Tensor, rewards: Tensor) -> dict[str, float]:
        """The step's updates on all images with a finite reward.

        Args:
            latents: clean (N, *latent).
            rewards: (N,).
        """

    @abstractmethod
    def decay(self) -> float:
        """What ``old`` keeps of itself after this step."""

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


class ForwardProcess(SlowPolicy):
    """Every image is learnt from alone, by its advantage; subclasses give the loss."""

    @abstractmethod
    def losses(self, rows: Noised, behaviour: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Per row (n,): "total", and what is reported.

        Args:
            behaviour: theta before the step's first update, where the step has several.
        """

    def whole_images(self) -> bool:
        """Whether ``losses`` gets all times of an image together, one after another, and gives one value for them."""
        return False

    @abstractmethod
    def positions(self, source: torch.Generator) -> Tensor:
        """Positions on the time grid (times,) for one image."""

    def learn(self, index: int, batch: Batch, latents: Tensor, rewards: Tensor) -> dict[str, float]:
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

        def of_images(images: Tensor) -> dict[str, Tensor]:
            return losses((images[:, None] * times + torch.arange(times, device=images.device)).flatten())

        if self.whole_images():
            return self.update(index, rewards.isfinite(), 1, of_images, times)
        return self.update(index, rewards.isfinite(), times, losses)


def predicted(rows: Noised, context: AbstractContextManager[None]) -> Prediction:
    """Another policy's prediction: the network inside the context."""
    with torch.no_grad(), context:
        return rows.denoiser(rows.x, rows.t)


def distance(path: DiffusionPath, prediction: Prediction, other: Prediction | None) -> Tensor:
    """Mean squared difference of the directions (n,); 0 without another one."""
    if other is None:
        return torch.zeros(len(prediction.x0), device=prediction.x0.device)
    return squared_error(path.direction(prediction), path.direction(other))
