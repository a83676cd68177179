"""What networks predict, and how it becomes (x0, eps): x = alpha x0 + sigma eps.

Names as in diffusers: ``epsilon`` predicts eps, ``sample`` x0, ``v_prediction`` alpha eps - sigma x0 (arXiv
2202.00512), ``flow_prediction`` eps - x0.
"""

from __future__ import annotations

from torch import Tensor

from t2ialign.tensors.paths import DiffusionPath, Prediction


def to_prediction(kind: str, path: DiffusionPath, x: Tensor, t: Tensor, output: Tensor) -> Prediction:
    """(x0, eps) from a network's output.

    Args:
        kind: one of the names above.
        path: alpha and sigma.
        x: noisy latents (B, ...).
        t: path times (B,).
        output: what the network predicts at (x, t), (B, ...).

    Raises:
        ValueError: an unknown kind.
    """
    alpha, sigma = path.coefficients(t.reshape(-1, *(1,) * (x.ndim - 1)))
    if kind == "epsilon":
        return Prediction((x - sigma * output) / alpha, output)
    if kind == "sample":
        return Prediction(output, (x - alpha * output) / sigma)
    if kind == "v_prediction":
        norm = alpha**2 + sigma**2
        return Prediction((alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm)
    if kind == "flow_prediction":
        norm = alpha + sigma
        return Prediction((x - sigma * output) / norm, (x + alpha * output) / norm)
    raise ValueError(f"prediction type '{kind}' is none of epsilon, sample, v_prediction, flow_prediction")


def to_output(kind: str, path: DiffusionPath, t: Tensor, prediction: Prediction) -> Tensor:
    """The inverse: what a network of this kind would have predicted.

    Raises:
        ValueError: an unknown kind.
    """
    x0, eps = prediction
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        alpha, sigma = path.coefficients(t.reshape(-1, *(1,) * (x0.ndim - 1)))
        return alpha * eps - sigma * x0
    if kind == "flow_prediction":
        return eps - x0
    raise ValueError(f"prediction type '{kind}' is none of epsilon, sample, v_prediction, flow_prediction")
