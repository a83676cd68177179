"""A diffusion model as solvers see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from t2ialign.tensors.conditioning import Conditioning
    from t2ialign.tensors.paths import DiffusionPath, Prediction


class Denoiser(ABC):
    """A diffusion model bound to B rows of conditioning, as solvers see it: (x_t, t) -> (x0, eps).

    Whatever the network predicts (epsilon, v, flow velocity, TrigFlow F, sample), guidance included.

    Attributes:
        path: alpha, sigma, the time grid and the solver's integration variable.
        evaluations: network evaluations per row so far (classifier-free guidance counts once).
        watchers: told the rows of every network call of every denoiser; see ``t2ialign.evaluation.counting``.
    """

    watchers: ClassVar[list[Callable[[int], None]]] = []

    def __init__(self, path: DiffusionPath, conditioning: Conditioning) -> None:
        self.path = path
        self.conditioning = conditioning
        self.evaluations = 0

    def __call__(self, x: Tensor, t: Tensor | float) -> Prediction:
        """Predict (x0, eps).

        Args:
            x: noisy latents (B, *latent_shape), float32.
            t: path time, one for all rows or one per row (B,).
        """
        return self.predict(x.float(), self._asked(x, t))

    def output(self, x: Tensor, t: Tensor | float) -> Tensor:
        """What the network itself says (B, *latent_shape), float32, whatever it predicts; arguments as above."""
        return self.network_output(x.float(), self._asked(x, t))

    def _asked(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Count an evaluation; one time per row (B,)."""
        import torch

        self.evaluations += 1
        for watch in self.watchers:
            watch(len(x))
        # Neither form makes a GPU wait, as torch.as_tensor would.
        if isinstance(t, torch.Tensor):
            times = t.to(x.device, torch.float32, non_blocking=True)
        else:
            times = torch.full((), t, dtype=torch.float32, device=x.device)
        return times.expand(x.shape[0])

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor) -> Prediction:
        """The network and the conversion of its output; x float32 (B, ...), t float32 (B,)."""

    def network_output(self, x: Tensor, t: Tensor) -> Tensor:
        """Before the conversion; arguments as those of ``predict``. Only methods that train the network's output ask.

        Raises:
            TypeError: this denoiser does not tell.
        """
        raise TypeError(f"{type(self).__name__} does not tell what its network says: it has no network_output")

    @abstractmethod
    def rows(self, index: Tensor | Sequence[int]) -> Denoiser:
        """The same model over conditioning rows ``index``: a subset, or repeats for particles and probes."""
