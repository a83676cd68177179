"""The one-step sampler of the HyperscaleES text-to-image code, kept to reproduce its published numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from t2ialign import Denoiser, Sampler


class UpstreamOneStep(Sampler):
    """x0 = 0.964 x0' + 0.267 z, where x0' is the exact one-step result and z the noise.

    The constants are sin 1.3 and cos 1.3: the coefficients of the second of two steps, applied to the first, so that
    27 % of the initial noise stays in the latents. ``one-step`` is the correct sampler.
    """

    def sample(self, denoiser: Denoiser, noise: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        start = denoiser.path.t_start
        return 0.964 * denoiser(denoiser.path.prior(noise), start).x0 + 0.267 * noise
