"""What is verified before the first step: every adapted layer reaches the image, and batching changes nothing.

Some models read a layer's weight and never call its forward (fused attention, fused MLPs); a LoRA there is dead, and
its share of the noise would be wasted without any error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from t2ialign.errors import T2IAlignError, UsageError
from t2ialign.tensors.batching import split
from t2ialign_eggroll.noise import Perturbation
from t2ialign_eggroll.population import Chunk, Form

if TYPE_CHECKING:
    from t2ialign.problem.problem import Batch, Problem
    from t2ialign.tensors.conditioning import Conditioning
    from t2ialign_eggroll.spaces import Space

log = logging.getLogger(__name__)

#: The probe's perturbations are this many sigma, so that a layer that matters shows even in 16-bit images.
PROBE = 10.0
#: Differences of pixels up to this are rounding; of predicted latents, up to this share of the largest above 1.
ROUNDING = 1e-6
#: Largest mean difference between batched and one-by-one images, as a fraction of what the perturbation changes.
TOLERANCE = 0.05


def layer_of(parameter: str) -> str:
    """Module path of a parameter: "a.b.lora_A.weight" and "a.b.weight" belong to "a.b"."""
    return parameter.removesuffix(".weight").removesuffix(".lora_A").removesuffix(".lora_B")


def member_images(
    problem: Problem,
    space: Space,
    noise: Mapping[str, Perturbation],
    chunk: Chunk,
    batch: Batch,
    form: Form | None,
    draw: Callable[[Conditioning, Sequence[int]], Tensor] | None = None,
) -> Tensor:
    """The first images of a batch for every member (members, images, 3, H, W); one member at a time without a form.

    Args:
        draw: gives something else than images.
    """
    draw = draw or problem.render
    seeds = batch.seeds[: chunk.images]
    rows = torch.arange(chunk.images)
    if form is None:
        single = []
        for member in range(chunk.members):
            index, one = torch.tensor([member], device=problem.device), torch.ones(1, device=problem.device)
            with space.member({name: e.select(index, one) for name, e in noise.items()}):
                single.append(draw(batch.conditioning[rows], seeds))
        return torch.stack(single)
    with space.population(noise, chunk, form):
        images = draw(batch.conditioning[rows.repeat(chunk.members)], seeds * chunk.members)
    return images.unflatten(0, (chunk.members, chunk.images))


def every_layer_matters(
    problem: Problem,
    space: Space,
    noise: Mapping[str, Perturbation],
    batch: Batch,
    form: Form | None,
    micro_batch: int,
) -> None:
    """Perturb one layer at a time, each in a member of its own; the image must differ from the centre's.

    A diffusion model's image does if the network's first answer does, so that only layers that leave it alone are worth
    all steps of the sampler and a decoded image.

    Args:
        noise: a member's perturbation (the first of the stack).
        form: how to evaluate; None one member at a time.
        micro_batch: images in one forward.

    Raises:
        UsageError: names the layers without effect.
    """

    def first_answer(conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        denoiser = problem.backend.denoiser(conditioning)
        return denoiser(denoiser.path.prior(problem.backend.noise(seeds)), denoiser.path.t_start).x0

    form = form if micro_batch > 2 else None
    dead = list(dict.fromkeys(layer_of(name) for name in noise))
    for draw in [first_answer] * (problem.backend.info.family == "diffusion") + [problem.render]:
        changes: dict[str, bool] = {}
        for part in split(len(dead), max(1, micro_batch - 2)):
            changes |= _changes(problem, space, noise, batch, form, dead[part], draw)
        dead = [layer for layer, matters in changes.items() if not matters]
    if dead:
        shown = ", ".join(dead[:8]) + (f" and {len(dead) - 8} more" if len(dead) > 8 else "")
        raise UsageError(
            f"a perturbation of {shown} changes no image: the model bypasses the layer, or sigma is far too small;"
            " leave such layers out of backend.lora.targets"
        )


def _changes(
    problem: Problem,
    space: Space,
    noise: Mapping[str, Perturbation],
    batch: Batch,
    form: Form | None,
    layers: Sequence[str],
    draw: Callable[[Conditioning, Sequence[int]], Tensor],
) -> dict[str, bool]:
    """Whether a perturbation of each layer changes what is drawn by more than rounding does."""
    chunk = Chunk(len(layers) + 2, 1)  # the first and the last member are the centre: their difference is rounding
    own = {}
    for name, perturbation in noise.items():
        factor = torch.zeros(chunk.members, device=problem.device)
        if (layer := layer_of(name)) in layers:
            factor[1 + layers.index(layer)] = PROBE
        index = torch.zeros(chunk.members, dtype=torch.long, device=problem.device)
        own[name] = perturbation.select(index, factor)
    drawn = member_images(problem, space, own, chunk, batch, form, draw)[:, 0].float()
    change = (drawn - drawn[0]).abs().flatten(1).amax(1)
    alive = change[1:-1] > 4 * change[-1] + ROUNDING * drawn[0].abs().max().clamp(min=1)
    return dict(zip(layers, alive.tolist(), strict=True))


def batched_equals_sequential(
    problem: Problem, space: Space, noise: Mapping[str, Perturbation], batch: Batch, form: Form
) -> None:
    """Compare a few members evaluated in one batch with the same members one at a time.

    Args:
        noise: the perturbations of two members.

    Raises:
        T2IAlignError: they differ by more than rounding.
    """
    chunk = Chunk(2, min(2, len(batch.seeds), problem.micro_batch // 2))
    batched = member_images(problem, space, noise, chunk, batch, form).float()
    single = member_images(problem, space, noise, chunk, batch, None).float()
    effect = (single[0] - single[1]).abs().mean().item()
    error = (batched - single).abs().mean().item()
    log.info("batched against one-by-one members: mean difference %.1e, effect of the noise %.1e", error, effect)
    if error > TOLERANCE * effect + ROUNDING:
        message = (
            f"members evaluated in one batch differ from the same members one by one: mean pixel difference {error:.1e}"
            f" where the noise itself changes {effect:.1e}"
        )
        if problem.backend.config.dtype == "float32":
            raise T2IAlignError(f"{message}; set optimizer.form = 'sequential' and report this model")
        log.warning("%s; in %s that may be rounding", message, problem.backend.config.dtype)
