"""Flow-GRPO (arXiv 2505.05470): PPO on the denoising steps of a stochastic sampler, with advantages per prompt.

    x_T ... x_0 ~ policy, every step Gaussian;   log p = mean log-density of x_s over the latent's dimensions
    ratio = exp(log p_theta(x_s | x_t) - log p_old(x_s | x_t))            for the stored x_s
    L = mean of max(-A ratio, -A clamp(ratio, 1 - clip, 1 + clip)) + kl KL(p_theta || p_base)(x_t)

With a VP model and "ddim" this is DDPO (arXiv 2305.13301) with advantages per prompt.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from t2ialign.tensors.gaussian import divergence

KlForm = Literal["published", "exact"]


def kl(mean: Tensor, reference: Tensor, std: Tensor, length: Tensor, form: KlForm) -> Tensor:
    """KL of two transitions of equal std, the mean over dimensions (n,).

    Args:
        mean, reference: (n, ...).
        std: broadcasts.
        length: of the step in flow time, positive (n,).
        form: "published" multiplies the exact one by the length: recipes' weights belong to it.
    """
    exact = divergence(mean, reference, std)
    return exact if form == "exact" else exact * length
