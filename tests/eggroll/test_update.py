import math

import pytest
import torch
from torch import nn

from t2ialign_eggroll import update
from t2ialign_eggroll.noise import Members, Noise
from t2ialign_eggroll.shaping import shape
from t2ialign_eggroll.update import ascend, mean_perturbation, schedule, step_scale

SHAPES = {"weight": (4, 3), "bias": (4,)}


def dense_mean(members, fitness, noise):
    """The definition: mean over the members that take part of f_i E_i."""
    everyone = members.draw(noise, slice(0, members.count))
    count = fitness.used.sum()
    return {n: torch.einsum("i,i...->...", fitness.values, e.dense()) / count for n, e in everyone.items()}


@pytest.mark.parametrize("count", [6, 7])
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("rank", [1, 2, None])
def test_contraction_over_pairs_equals_the_mean_over_members(count, antithetic, rank):
    members, noise = Members(count, antithetic), Noise(SHAPES, rank).of(0, 0)
    scores = torch.randn(count, generator=torch.Generator().manual_seed(1))
    scores[2] = torch.nan
    fitness = shape(scores, "zscore")
    found = mean_perturbation(noise, members, fitness)
    for name, expected in dense_mean(members, fitness, noise).items():
        torch.testing.assert_close(found[name], expected)


def test_blocks_of_pairs_do_not_change_the_update(monkeypatch):
    members, noise = Members(10), Noise(SHAPES).of(0, 0)
    fitness = shape(torch.randn(10, generator=torch.Generator().manual_seed(1)), "zscore")
    whole = mean_perturbation(noise, members, fitness)
    monkeypatch.setattr(update, "PAIRS_PER_BLOCK", 2)
    for name, value in mean_perturbation(noise, members, fitness).items():
        torch.testing.assert_close(value, whole[name])


def test_antithetic_recipe_gives_the_mean_pair_difference_over_its_rms():
    members, noise = Members(8), Noise(SHAPES).of(0, 0)
    scores = torch.randn(8, generator=torch.Generator().manual_seed(1))
    d = scores[::2] - scores[1::2]
    pairs = members.draw(noise, slice(0, 8))["weight"].dense()[::2]
    expected = (d[:, None, None] * pairs).mean(0) / d.square().mean().sqrt()
    found = mean_perturbation(noise, members, shape(scores, "antithetic"))["weight"]
    torch.testing.assert_close(found, expected)


def test_textbook_rule_estimates_the_gradient():
    """For F = c . theta the expectation of mean(f E) / sigma with raw scores is c."""
    sigma, members, noise = 0.1, Members(20000), Noise({"w": (3, 2)}).of(0, 0)
    target = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]])
    scores = sigma * (members.draw(noise, slice(0, 20000))["w"].dense() * target).sum((1, 2))
    fitness = shape(scores, "zscore")
    scale = step_scale("textbook", sigma, 20000) * scores.std()  # undo the standardisation
    estimate = scale * mean_perturbation(noise, members, fitness)["w"]
    torch.testing.assert_close(estimate, target, rtol=0, atol=0.15)


def test_step_rules_convert_into_each_other():
    sigma, count = 0.05, 16
    upstream = step_scale("upstream", sigma, count)
    assert step_scale("eggroll", sigma, count) == pytest.approx(upstream * math.sqrt(count))
    assert step_scale("textbook", sigma, count) == pytest.approx(upstream / sigma**2)
    assert step_scale("output", sigma, count) == 8**0.5
    assert step_scale("output", sigma, count, antithetic=False) == 4
    with pytest.raises(ValueError, match="upstream, eggroll, textbook or output"):
        step_scale("adam", sigma, count)


def parameters():
    return {"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(2))}


def test_parameters_without_a_direction_stay_bit_identical_under_weight_decay():
    p = parameters()
    solver = torch.optim.AdamW(list(p.values()), lr=0.1, weight_decay=0.5)
    moved = ascend(solver, p, {"a": torch.ones(3)})
    assert torch.equal(p["b"].data, torch.ones(2))
    assert not torch.equal(p["a"].data, torch.ones(3))
    assert moved == pytest.approx((p["a"].data - 1).norm().item())
    assert p["a"].grad is None


def test_step_cap_then_norm_cap():
    p = parameters()
    moved = ascend(torch.optim.SGD(p.values(), lr=1.0), p, {"a": torch.full((3,), 5.0)}, max_step_norm=0.5)
    assert moved == pytest.approx(0.5)
    torch.testing.assert_close(p["a"].data, torch.full((3,), 1 + 0.5 / 3**0.5))
    ascend(torch.optim.SGD(p.values(), lr=1.0), p, {"a": torch.zeros(3), "b": torch.zeros(2)}, max_norm=1.0)
    assert update.norm(p.values()) == pytest.approx(1.0)


def test_steps_below_the_caps_are_exact():
    p, free = parameters(), parameters()
    direction = {"a": torch.full((3,), 0.1)}
    ascend(torch.optim.SGD(p.values(), lr=1.0), p, direction, max_step_norm=10.0, max_norm=40.0)
    ascend(torch.optim.SGD(free.values(), lr=1.0), free, direction)
    torch.testing.assert_close(p["a"].data, free["a"].data)


def test_schedules_run_from_1_to_the_final_fraction():
    assert schedule("constant", 0.7, 0.1) == 1
    for kind in ("linear", "cosine"):
        assert schedule(kind, 0, 0.1) == 1
        assert schedule(kind, 1, 0.1) == pytest.approx(0.1)
        assert schedule(kind, 0.5, 0.1) == pytest.approx(0.55)
    assert schedule("cosine", 0.25, 0) > schedule("linear", 0.25, 0)
