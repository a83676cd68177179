"""A contract: what every part of a kind must do, as a list of checks that run one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

#: Room for rounding: sums in another order, kernels for another batch size.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """One check: what was looked at, and what was wrong, empty where nothing was."""

    title: str
    error: str = ""


class Contract(ABC):
    """The checks of one part. A check is a method that raises an AssertionError; its docstring is its title."""

    name: str

    @abstractmethod
    def checks(self) -> list[Callable[[], None]]:
        """What this part promises; later checks may rely on earlier ones."""

    def outcomes(self) -> Iterator[Outcome]:
        """Every check in turn, whatever the others gave."""
        for check in self.checks():
            title = (check.__doc__ or check.__name__).strip().splitlines()[0].rstrip(".")
            try:
                self._run(check)
            except AssertionError as error:
                yield Outcome(title, str(error))
            else:
                yield Outcome(title)

    def hold(self) -> None:
        """All checks.

        Raises:
            AssertionError: the first that fails; one sentence on what is wrong, and what the contract says.
        """
        for check in self.checks():
            self._run(check)

    def _run(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            raise AssertionError(f"{self.name} raised {type(error).__name__}: {text}") from error


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Equal up to rounding; NaN equals NaN."""
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def random_images(count: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """Uniform noise (count, 3, H, W) in [0, 1]."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def check_tensor(found: object, what: str, shape: tuple[int, ...], contract: str) -> Tensor:
    """A finite float32 tensor of a shape; ``contract`` ends the sentence."""
    assert isinstance(found, Tensor), f"{what} is a {type(found).__name__}; {contract}"
    assert found.shape == shape, f"{what} has shape {tuple(found.shape)} and not {shape}; {contract}"
    assert found.dtype == torch.float32, f"{what} is {str(found.dtype).removeprefix('torch.')}; {contract}"
    assert bool(found.isfinite().all()), f"{what} is not finite; {contract}"
    return found


def check_images(found: object, what: str, shape: tuple[int, ...]) -> Tensor:
    """Images in [0, 1]."""
    images = check_tensor(found, what, shape, f"images are finite float32 {shape} in [0, 1]")
    low, high = images.min().item(), images.max().item()
    assert low >= 0 and high <= 1, f"{what} lies in [{low:.3g}, {high:.3g}]; images lie in [0, 1]"  # noqa: PT018
    return images


@contextmanager
def no_ambient_draws(what: str) -> Iterator[None]:
    """Inside, nothing may be drawn from torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before), (
        f"{what} draws from torch's global generator; all randomness is derived with t2ialign.seeding, so that a"
        " resumed run repeats it"
    )
