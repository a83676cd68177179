"""The contract of samplers, on models whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from t2ialign.errors import T2IAlignError
from t2ialign.parts.denoiser import Denoiser
from t2ialign.parts.sampler import Sampler, StepSampler
from t2ialign.tensors import seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import DiffusionPath, FlowPath, Prediction, TrigFlowPath, VPPath
from t2ialign.testing.contract import Contract, check_tensor, close, no_ambient_draws

SHAPE = (3, 4, 4)
LATENTS = "a sampler returns finite float32 latents of the noise's shape"
#: How far from the data a sampler may stop that ends a little before noise level zero.
REST = 0.25


class KnownDenoiser(Denoiser):
    """Predicts its row's picture, moved by at most ``spread`` by what it sees; without spread, the answer is known."""

    def __init__(self, path: DiffusionPath, conditioning: Conditioning, spread: float = 0.5) -> None:
        super().__init__(path, conditioning)
        self.spread = spread

    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (value.view(-1, *(1,) * (x.ndim - 1)) for value in self.path.coefficients(t))
        x0 = self.conditioning.tensors["picture"] + self.spread * torch.tanh(x)
        return Prediction(x0, (x - alpha * x0) / sigma.clamp(min=1e-6))

    def rows(self, index: Tensor | Sequence[int]) -> KnownDenoiser:
        return KnownDenoiser(self.path, self.conditioning[index], self.spread)


def standard_paths() -> dict[str, DiffusionPath]:
    """One of every family: Stable Diffusion's schedule, rectified flow, TrigFlow."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return {"VP": VPPath((1 - betas).cumprod(0)), "flow": FlowPath(), "TrigFlow": TrigFlowPath()}


class SamplerContract(Contract):
    """See ``check_sampler``."""

    def __init__(
        self, sampler: Sampler, paths: Mapping[str, DiffusionPath] | None = None, differentiable: bool = False
    ) -> None:
        self.sampler, self.name, self.differentiable = sampler, type(sampler).__name__, differentiable
        self.paths = dict(standard_paths() if paths is None else paths)
        self.refusals: list[str] = []

    def checks(self) -> list[Callable[[], None]]:
        checks = [self.latents, self.evaluations, self.repeats, self.alone, self.noise_matters, self.lands]
        if isinstance(self.sampler, StepSampler):
            checks.insert(2, self.transitions)
        if self.differentiable:
            checks.append(self.gradients)
        return checks

    def denoiser(self, path: DiffusionPath, rows: Sequence[int], spread: float = 0.5) -> KnownDenoiser:
        pictures = seeding.normal([100 + row for row in rows], SHAPE, self.sampler.device)
        prompts = tuple(f"picture {row}" for row in rows)
        return KnownDenoiser(path, Conditioning(prompts, {"picture": pictures}), spread)

    def noise(self, rows: Sequence[int]) -> Tensor:
        return seeding.normal(list(rows), SHAPE, self.sampler.device)

    def sample(self, path: DiffusionPath, rows: Sequence[int] = range(4), spread: float = 0.5) -> Tensor:
        return self.sampler.sample(self.denoiser(path, rows, spread), self.noise(rows), list(rows))

    def latents(self) -> None:
        """Finite float32 latents of the noise's shape."""
        for name, path in list(self.paths.items()):
            try:
                found = self.sample(path)
            except T2IAlignError as error:  # the sampler says that it is not for this family
                self.refusals.append(f"{name}: {error}")
                del self.paths[name]
                continue
            check_tensor(found, f"what {self.name}.sample returns on the {name} path", (4, *SHAPE), LATENTS)
        assert self.paths, f"{self.name} refuses every path ({'; '.join(self.refusals)}); it must serve one"

    def evaluations(self) -> None:
        """The options tell how often the network is called."""
        for name, path in self.paths.items():
            denoiser = self.denoiser(path, range(2))
            self.sampler.sample(denoiser, self.noise(range(2)), [0, 1])
            told = self.sampler.config.evaluations()
            assert denoiser.evaluations == told, (
                f"{self.name} calls the network {denoiser.evaluations} times on the {name} path, and its options'"
                f" evaluations() say {told}; plans and tables count with that number"
            )

    def transitions(self) -> None:
        """Times fall, and every step has a mean and a standard deviation."""
        assert isinstance(self.sampler, StepSampler)
        for name, path in self.paths.items():
            times = self.sampler.times(path)
            assert times.ndim == 1 and bool((times.diff() < 0).all()), (  # noqa: PT018
                f"{self.name}.times on the {name} path is not a falling list; times go from noise to data (steps + 1,)"
            )
            x, denoiser = self.noise(range(2)), self.denoiser(path, range(2))
            times = times.to(x.device)
            for t, s in pairwise(times):
                mean, std = self.sampler.transition(path, x, denoiser(x, t), t, s)
                check_tensor(mean, f"the mean of {self.name}.transition", (2, *SHAPE), "it is that of x_s, (B, ...)")
                assert bool((torch.as_tensor(std) >= 0).all()), (
                    f"{self.name}.transition has a standard deviation of {torch.as_tensor(std).min().item():.3g} on the"
                    f" {name} path; it is 0 or more"
                )

    def repeats(self) -> None:
        """The same noise and seeds give the same latents again."""
        for name, path in self.paths.items():
            with no_ambient_draws(self.name):
                same = close(self.sample(path), self.sample(path), 0)
            assert same, (
                f"{self.name} gives other latents for the same noise and seeds on the {name} path; a stochastic sampler"
                " draws with t2ialign.seeding from each image's seed"
            )

    def alone(self) -> None:
        """An image does not depend on its batch."""
        for name, path in self.paths.items():
            together = self.sample(path)
            for rows in ([2], [3, 1, 0]):
                assert close(self.sample(path, rows), together[rows]), (
                    f"{self.name} gives an image other latents in another batch on the {name} path; an image depends on"
                    " its own noise, seed and prompt alone"
                )

    def noise_matters(self) -> None:
        """Other noise and seeds give another image, and the noise is left as it was."""
        for name, path in self.paths.items():
            noise, denoiser = self.noise([0, 1]), self.denoiser(path, [0, 0])
            given = noise.clone()
            found = self.sampler.sample(denoiser, given, [0, 1])
            assert torch.equal(given, noise), f"{self.name} changes the noise that it is given; others still need it"
            assert not close(found[:1], found[1:]), (
                f"{self.name} gives the same latents for other noise and seeds on the {name} path; it starts from them"
            )

    def lands(self) -> None:
        """Where every prediction is the same picture, that picture comes out."""
        rows = range(64)
        for name, path in self.paths.items():
            denoiser = self.denoiser(path, [0] * len(rows), spread=0)
            found, again = (
                self.sampler.sample(denoiser, self.noise(rows), [seed + i for i in rows]) for seed in (0, 99)
            )
            if not torch.equal(found, again):  # what a stochastic sampler leaves of its noise averages out
                found = found.mean(0, keepdim=True)
            error = (found - denoiser.conditioning.tensors["picture"][:1]).abs().max().item()
            assert error <= REST, (
                f"{self.name} ends {error:.2g} away from the only picture of a model on the {name} path; x0 must come"
                " out, so look at path.scale, path.prior and the last step"
            )

    def gradients(self) -> None:
        """Gradients flow from the latents to the noise."""
        for name, path in self.paths.items():
            noise = self.noise(range(2)).requires_grad_()
            found = self.sampler.sample(self.denoiser(path, range(2)), noise, [0, 1])
            reaches = found.requires_grad
            gradient = torch.autograd.grad(found.sum(), noise, allow_unused=True)[0] if reaches else None
            assert gradient is not None and bool((gradient != 0).any()), (  # noqa: PT018
                f"{self.name} gives latents without a gradient on the {name} path, and it provides 'differentiable';"
                " never detach or wrap in no_grad then"
            )
            assert bool(gradient.isfinite().all()), f"{self.name} has a gradient that is not finite on the {name} path"


def check_sampler(
    sampler: Sampler, paths: Mapping[str, DiffusionPath] | None = None, differentiable: bool = False
) -> None:
    """Check that a sampler keeps its contract, on models whose answer is known.

    Args:
        sampler: ``MySampler(MySampler.Config(...))``.
        paths: name -> path; default: a VP, a rectified-flow and a TrigFlow path. A sampler that is not for a family
            raises a ``UsageError`` there, and is checked on the others.
        differentiable: whether it provides "differentiable".

    Raises:
        AssertionError: one sentence on what is wrong, and what the contract says.
    """
    SamplerContract(sampler, paths, differentiable).hold()
