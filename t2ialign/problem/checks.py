"""Images and scores are looked at where they arrive, so that a fault is told by the name of who made it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from t2ialign.errors import PartError, UsageError
from t2ialign.foreign import shown
from t2ialign.parts.backend import Backend
from t2ialign.parts.sampler import Sampler
from t2ialign.problem.mix import RewardMix
from t2ialign.spec.model import ChosenReward
from t2ialign.tensors.conditioning import Conditioning

log = logging.getLogger(__name__)
#: How far pixels may leave [0, 1] by rounding.
SLACK = 1e-3


def images(backend: Backend, batch: Tensor, count: int) -> Tensor:
    """A backend's images, as they are.

    Raises:
        PartError: another type or shape than (count, 3, H, W) floats.
    """
    height, width = backend.info.image_size
    if not isinstance(batch, Tensor):
        raise PartError(f"{backend.label} returned {type(batch).__name__}; images are a tensor (B, 3, H, W)")
    if batch.shape != (count, 3, height, width) or not batch.dtype.is_floating_point:
        wanted = (count, 3, height, width)
        raise PartError(
            f"{backend.label} returned {batch.dtype} images of shape {tuple(batch.shape)}; must be floats {wanted}"
        )
    return batch


def first_images(backend: Backend, batch: Tensor) -> None:
    """Look at pixels, which makes a device wait: once a run.

    Raises:
        PartError: they are not finite, or not in [0, 1].
    """
    if not bool(batch.isfinite().all()):
        raise PartError(f"{backend.label} returned images that are not finite; try a wider dtype")
    low, high = batch.aminmax()
    if low < -SLACK or high > 1 + SLACK:
        raise PartError(f"{backend.label} returned pixels from {low:.3g} to {high:.3g}; images are in [0, 1]")


@torch.no_grad()
def broken_at(backend: Backend, sampler: Sampler | None, conditioning: Conditioning, seed: int) -> str:
    """Where one image that is not finite went wrong, and what helps: a sentence."""
    config = backend.config
    kept = f"backend.dtype = '{config.dtype}'"
    if sampler is None:
        return f"{backend.label} gave them with {kept}; try a wider one"
    latents = sampler.sample(backend.denoiser(conditioning), backend.noise([seed]), [seed])
    if not bool(latents.isfinite().all()):
        return f"already the latents are not finite, with {kept}; try 'bfloat16' or 'float32', or less guidance"
    wider = "backend.vae_dtype = 'float32'" if hasattr(config, "vae_dtype") else "a wider backend.dtype"
    return f"the latents are finite, the decoder's pixels are not, with {kept}; try {wider}"


def finite_images(
    backend: Backend, sampler: Sampler | None, batch: Tensor, conditioning: Conditioning, seeds: Sequence[int]
) -> None:
    """
    Raises:
        PartError: an image has pixels that are no finite numbers; names its prompt and where that began.
    """
    good = batch.isfinite().flatten(1).all(1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        where = broken_at(backend, sampler, conditioning[[row]], seeds[row])
        prompt = shown(conditioning.prompts[row], 80)
        raise PartError(f"the image of '{prompt}' (seed {seeds[row]}) has pixels that are no finite numbers: {where}")


@torch.no_grad()
def batch_independence(mix: RewardMix, pair: Tensor, prompts: Sequence[str]) -> None:
    """Warn of rewards whose score of an image changes beyond rounding with the image beside it.

    Args:
        pair: two images (2, 3, H, W).
    """
    if len(pair) < 2 or mix.references:
        return
    together, alone = mix.score(pair, prompts, check=False), mix.score(pair[:1], prompts[:1], check=False)
    for name, values in together.items():
        spread = max(float((values[1] - values[0]).abs()), abs(float(values[0])), 1e-3)
        if abs(float(values[0] - alone[name][0])) > 0.02 * spread:
            log.warning(
                "reward '%s' scores an image %.4g beside another one and %.4g alone: a score must not depend on its"
                " batch, or results change with the micro-batch",
                name,
                values[0],
                alone[name][0],
            )


def repeatable(mix: RewardMix, chosen: Sequence[ChosenReward], pictures: Tensor, prompts: Sequence[str]) -> list[str]:
    """One sentence for every reward whose scores of the same images differ.

    Raises:
        UsageError: the spec refuses such a reward.
    """
    different = mix.unrepeatable(pictures, prompts)
    told = {
        name: f"reward '{name}' scores the same images otherwise the second time, by up to {size:.3g}"
        for name, size in different.items()
    }
    for reward in chosen:
        if reward.name in told and reward.mix.deterministic:
            raise UsageError(f"{told[reward.name]}; its deterministic = true refuses that")
    return list(told.values())
