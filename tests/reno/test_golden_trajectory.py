"""The reference implementation's numbers: regulariser, and whole trajectories with every solver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from t2ialign_reno.noise_optimization import Ascent, ascend, clip, keep_best, objective_gradient, start
from t2ialign_reno.objective import minimum_penalty, noise_penalty, noise_penalty_gradient, norms

GOLDEN = Path(__file__).parents[1] / "golden"
REGULARISER = load_file(GOLDEN / "reno_regulariser.safetensors")
TRAJECTORY = load_file(GOLDEN / "reno_trajectory.safetensors")
RUNS = {
    "sgd": Ascent(),
    "sgd_lr10": Ascent(learning_rate=10),
    "sgd_noreg": Ascent(regularisation=0),
    "sgd_clip10": Ascent(learning_rate=1, max_gradient_norm=10),
    "sgd_plain_momentum": Ascent(solver="sgd"),
    "adam": Ascent(solver="adam", learning_rate=0.05),
    "sgd_far": Ascent(),
    "sgd_overshoot": Ascent(learning_rate=40),
    "preprocess": Ascent(),
}


def generate(latents: Tensor) -> Tensor:
    pixels = torch.sigmoid(latents.flatten(1) @ TRAJECTORY["model.A"] + TRAJECTORY["model.b"])
    return pixels.view(-1, 3, 12, 12)


def preprocess(images: Tensor) -> Tensor:
    small = F.interpolate(images, size=(8, 8), mode="bicubic", align_corners=False, antialias=True)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    return (small - mean) / std


def losses(images: Tensor) -> dict[str, Tensor]:
    """The recorded reward losses (B,), lower is better."""
    x = images.flatten(1)
    size = x.shape[1]
    cosine = F.cosine_similarity(x @ TRAJECTORY["reward.P"][:size], TRAJECTORY["reward.t"].expand(len(x), -1))
    linear = x @ TRAJECTORY["reward.w"][:size] + TRAJECTORY["reward.c"]
    return {"CLIP": 100 - 100 * cosine, "Linear": 2 - linear}


def reward(latents: Tensor, transform: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Combined reward, the losses and the reward's gradient."""
    latents = latents.clone().requires_grad_()
    found = losses(transform(generate(latents)))
    total = -(0.01 * found["CLIP"] + found["Linear"])
    (gradient,) = torch.autograd.grad(total.sum(), latents)
    return total.detach(), {name: loss.detach() for name, loss in found.items()}, gradient


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["d256", "d256_small", "d16384", "d16384_large"])
def test_regulariser(case):
    latents = REGULARISER[f"{case}.z"].clone().requires_grad_()
    size = latents[0].numel()
    penalty = noise_penalty(latents)
    torch.testing.assert_close(0.01 * (penalty[0] + minimum_penalty(size)), REGULARISER[f"{case}.penalty"])
    close(norms(latents)[0], REGULARISER[f"{case}.norm"])
    close(0.01 * noise_penalty_gradient(latents), REGULARISER[f"{case}.grad"])
    (by_autograd,) = torch.autograd.grad(0.01 * penalty.sum(), latents)
    close(by_autograd, REGULARISER[f"{case}.grad"])


def test_the_penalty_is_zero_at_its_minimum_and_positive_elsewhere():
    latents = torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    latents *= (16383**0.5 * torch.tensor([1.0, 0.9, 1.1]) / norms(latents)).view(3, 1, 1, 1)
    least, below, above = noise_penalty(latents)
    assert abs(least) < 1e-2
    assert below > 100
    assert above > 100


@pytest.mark.parametrize("run", RUNS)
def test_trajectory(run):
    golden = {k.removeprefix(f"{run}."): v for k, v in TRAJECTORY.items() if k.startswith(f"{run}.")}
    ascent = RUNS[run]
    transform = preprocess if run == "preprocess" else torch.nn.Identity()
    point = start(golden["latents"][0], ascent.solver)
    best, best_iteration = torch.tensor([-torch.inf]), -1
    iterations = len(golden["latents"])
    for i in range(iterations):
        close(point["latents"], golden["latents"][i])
        close(norms(point["latents"])[0], golden["latent_norm"][i])
        total, found, gradient = reward(point["latents"], transform)
        for name, loss in found.items():
            close(loss[0], golden[f"loss.{name}"][i])
        close(-total[0], golden["reward_loss_total"][i])
        improved = total > best
        best, best_iteration = torch.maximum(total, best), i if improved else best_iteration
        point = keep_best(point, improved)
        if i == iterations - 1:
            break
        penalty = noise_penalty(point["latents"])[0] + minimum_penalty(256)
        close(-total[0] + ascent.regularisation * penalty, golden["objective"][i])
        gradient = objective_gradient(point, gradient, ascent)
        close(-gradient, golden["grad_raw"][i])
        close(norms(gradient)[0], golden["grad_norm"][i])
        close(-clip(gradient, ascent.max_gradient_norm), golden["grad_clipped"][i])
        point = ascend(point, gradient, ascent)
    assert best_iteration == golden["best_iteration"]
    for name, latents in (("init", golden["latents"][0]), ("best", point["best_latents"])):
        pixels = (generate(latents)[0] * 255).round().permute(1, 2, 0)
        assert (pixels - golden[f"{name}_image_u8"].float()).abs().max() <= 1


def test_a_batch_is_its_samples_one_by_one():
    """Three different starts at once, each with its own clip, norm and best."""
    starts = torch.cat([TRAJECTORY["z0"], TRAJECTORY["sgd_far.latents"][0], 0.7 * TRAJECTORY["z0"]])
    for solver in ("nesterov", "adam"):
        ascent = Ascent(solver=solver, learning_rate=0.05 if solver == "adam" else 40)

        def search(latents: Tensor, ascent: Ascent = ascent) -> tuple[Tensor, Tensor]:
            point = start(latents, ascent.solver)
            best = torch.full((len(latents),), -torch.inf)
            for _ in range(10):
                total, _, gradient = reward(point["latents"], torch.nn.Identity())
                point = keep_best(point, total > best)
                best = torch.maximum(best, total)
                point = ascend(point, objective_gradient(point, gradient, ascent), ascent)
            return point["best_latents"], best

        together, best = search(starts)
        for row, alone in enumerate(starts.split(1)):
            latents, reached = search(alone)
            close(together[row], latents[0])
            close(best[row], reached[0])


def test_a_gradient_that_is_not_finite_sends_only_its_own_row_back():
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ascent = Ascent()
    point = ascend(start(latents, "nesterov"), torch.ones_like(latents), ascent)
    gradient = torch.ones_like(latents)
    gradient[0, 0, 0, 0] = torch.nan
    after = ascend(point, gradient, ascent)
    assert torch.equal(after["latents"][0], latents[0])
    assert not after["first"][0].any()
    assert after["updates"].tolist() == [0, 2]
    assert torch.equal(after["latents"][1], ascend(point, torch.ones_like(latents), ascent)["latents"][1])
