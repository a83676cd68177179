"""Random tables: who depends on what, and what no draw can leave."""

from __future__ import annotations

import pytest
import torch

from t2ialign_ppo.policy import Policy
from t2ialign_solvers.starts import arithmetic_table, symmetric_table

START = arithmetic_table(torch.tensor([10.0, 3.0, 1.0, 0.05]), 2)


def test_a_table_depends_on_its_seed_alone():
    policy = Policy(START, 20.0, scale_dir="bounded", scale_time="log-normal")()
    several = policy.draw([5, 6, 7])
    alone = policy.draw([6])
    assert all(torch.equal(a[1], b[0]) for a, b in zip(several, alone, strict=True))
    assert not torch.equal(several.segments[0], several.segments[1])


def test_draws_have_the_policys_mean_and_density():
    """The mean of many draws, and E[log p] = -H."""
    policy = Policy(START, 20.0, scale_dir="bounded", scale_time="log-normal", scale_std=0.1)()
    draws = policy.draw(range(4000))
    for drawn, mean in zip(draws, policy.mean, strict=True):
        assert torch.allclose(drawn.mean(0), mean, atol=0.01)
    log_prob, entropy = policy.log_prob(draws).mean(0), policy.entropy()
    assert torch.allclose(log_prob, -entropy, atol=0.2)
    assert draws.scale_time.log().std(0).mean().item() == pytest.approx(0.1, rel=0.05)
    assert draws.scale_dir.std(0).mean().item() == pytest.approx(0.1, rel=0.05)


def test_bounded_scales_stay_in_their_range_wherever_the_policy_goes():
    policy = Policy(START, 20.0, scale_dir="bounded", scale_bound=0.2)
    torch.nn.init.normal_(policy.output_linear.bias, std=20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        draws = policy().draw(range(100))
    for scales in (draws.scale_dir, policy().mean.scale_dir):
        assert ((scales >= 0.8) & (scales <= 1.2)).all()
    assert policy().log_prob(draws).isfinite().all()
    draws.table(START)  # positions and weights are those of a valid table


@pytest.mark.parametrize("points", [1, 4])
def test_any_number_of_probes(points):
    """One probe has one possible weight: its density is 1 and its entropy 0."""
    start = symmetric_table(3, points)
    policy = Policy(start, 20.0)
    draws = policy().draw([0, 1])
    assert policy().log_prob(draws).isfinite().all()
    assert torch.allclose(policy().mean.table(start).positions, start.positions, atol=1e-6)
    if points == 1:
        assert torch.equal(policy().weights.entropy().detach(), torch.zeros(3, dtype=torch.float64))
        assert torch.equal(draws.weights, torch.ones_like(draws.weights))


def test_no_loss_of_a_draw_to_a_zero_density():
    """Very small Dirichlet parameters draw exact zeros; they are kept away from the edge."""
    with torch.no_grad():
        policy = Policy(START, 0.02)()
        draws = policy.draw(range(50))
    assert draws.segments.min() >= 0.9e-6
    assert policy.log_prob(draws).isfinite().all()
    draws.table(START)
