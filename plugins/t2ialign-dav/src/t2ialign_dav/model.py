"""The model as the search sees it: predictions, values and value gradients of many latents, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2ialign import Denoiser, Prediction, RewardError, seeding
from t2ialign.tensors.batching import split
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_dav.cost import Cost


class Model:
    """A denoiser bound to B trajectories, an autoencoder and a reward, in micro-batches.

    Attributes:
        cost: evaluations so far, summed over trajectories.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        decode: Callable[[Tensor], Tensor],
        reward: Callable[[Tensor, Sequence[str]], Tensor],
        micro_batch: int,
    ) -> None:
        """
        Args:
            denoiser: bound to one row per trajectory.
            decode: clean latents (n, ...) to images (n, 3, H, W).
            reward: images and prompts to (n,), in units of the temperature.
            micro_batch: latents per forward and per decode.
        """
        self.denoiser, self.decode, self.reward, self.micro_batch = denoiser, decode, reward, micro_batch
        self.cost = Cost()

    @property
    def path(self) -> DiffusionPath:
        return self.denoiser.path

    def rows(self, index: Sequence[int]) -> Model:
        """The same model for some of the trajectories; evaluations are counted together."""
        part = Model(self.denoiser.rows(index), self.decode, self.reward, self.micro_batch)
        part.cost = self.cost
        return part

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        """(x0, eps), shaped like x: K latents of every trajectory (B, K, *latent)."""
        flat, trajectory = x.flatten(0, 1), self._trajectories(x)
        parts = [self.denoiser.rows(trajectory[rows])(flat[rows], t) for rows in split(len(flat), self.micro_batch)]
        self.cost.forwards += len(flat)
        return Prediction(*(torch.cat(tensors).view_as(x) for tensors in zip(*parts, strict=True)))

    def value(self, x0: Tensor) -> Tensor:
        """Rewards (B, K) of K clean latents of every trajectory (B, K, *latent)."""
        flat, trajectory = x0.flatten(0, 1), self._trajectories(x0)
        prompts = [self.denoiser.conditioning.prompts[row] for row in trajectory]
        parts = [self._reward(flat[rows], prompts[rows]) for rows in split(len(flat), self.micro_batch)]
        self.cost.decodes += len(flat)
        return torch.cat(parts).view(x0.shape[:2])

    def images(self, x0: Tensor) -> Tensor:
        """One clean latent of every trajectory (B, *latent) to (B, 3, H, W)."""
        self.cost.decodes += len(x0)
        return torch.cat([self.decode(x0[rows]) for rows in split(len(x0), self.micro_batch)])

    def value_gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Prediction]:
        """d r(x0(x_t)) / d x_t through reward, autoencoder and network, and the prediction there.

        Args:
            x: one latent of every trajectory (B, *latent).

        Raises:
            RewardError: the gradient is not finite.
        """
        gradients, predictions = [], []
        for rows in split(len(x), self.micro_batch):
            with torch.enable_grad():
                leaf = x[rows].detach().requires_grad_(True)
                prediction = self.denoiser.rows(range(len(x))[rows])(leaf, t)
                value = self._reward(prediction.x0, self.denoiser.conditioning.prompts[rows])
                gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
            predictions.append([part.detach() for part in prediction])
        self.cost.forwards += len(x)
        self.cost.decodes += len(x)
        self.cost.backwards += len(x)
        gradient = torch.cat(gradients)
        if not bool(gradient.isfinite().all()):
            raise RewardError("the gradient of the reward is not finite; set optimizer.value_gradient = false")
        return gradient, Prediction(*map(torch.cat, zip(*predictions, strict=True)))

    def _reward(self, x0: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.reward(self.decode(x0), prompts)

    @staticmethod
    def _trajectories(x: Tensor) -> list[int]:
        """The trajectory of each row of the flattened (B, K, ...)."""
        return [row // x.shape[1] for row in range(x.shape[0] * x.shape[1])]


class Draws:
    """The randomness of B trajectories, each a function of its own seed alone, wherever and with whom it is drawn."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds, self.shape, self.device = seeds, tuple(shape), device

    def rows(self, index: Sequence[int]) -> Draws:
        """The same randomness for some of the trajectories."""
        return Draws([self.seeds[row] for row in index], self.shape, self.device)

    def initial(self, count: int) -> Tensor:
        """Initial noise (B, count, *latent); a single one is that of the seed, as in plain sampling."""
        if count == 1:
            return seeding.normal(self.seeds, self.shape, self.device)[:, None]
        return self._normal("initial", 0, count)

    def noise(self, step: int, count: int) -> Tensor:
        """Unit Gaussian (B, count, *latent) of one step."""
        return self._normal("particles", step, count)

    def choose(self, step: int | str, probabilities: Tensor) -> Tensor:
        """One index (B,) per row of (B, K) probabilities, by inversion of their distribution."""
        seeds = [seeding.derive(seed, "choice", step) for seed in self.seeds]
        uniform = torch.stack([torch.rand(1, generator=seeding.generator(seed)) for seed in seeds])
        below = probabilities.double().cumsum(1)
        return (below / below[:, -1:] <= uniform.to(below)).sum(1)

    def _normal(self, purpose: str, step: int, count: int) -> Tensor:
        seeds = [seeding.derive(seed, purpose, step) for seed in self.seeds]
        return seeding.normal(seeds, (count, *self.shape), self.device)
