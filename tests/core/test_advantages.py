"""Who is better than those one can be compared with: the same rule for every algorithm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ialign.config import RewardMixConfig
from t2ialign.problem.advantages import centred, centred_ranks, leave_one_out, standardised
from t2ialign.problem.mix import normalise

NAN = torch.nan
RULES = {
    "centred": centred,
    "standardised": standardised,
    "standardised, unbiased": lambda x: standardised(x, correction=1, eps=1e-8),
    "leave one out": leave_one_out,
    "ranks": lambda x: torch.stack([centred_ranks(row) for row in x]),
    "zscore": lambda x: torch.stack([normalise(row, RewardMixConfig(normalise="zscore")) for row in x]),
    "rank": lambda x: torch.stack([normalise(row, RewardMixConfig(normalise="rank")) for row in x]),
}


@pytest.mark.parametrize("rule", RULES)
def test_nobody_to_compare_with_means_zero(rule):
    """The case that gave 22 beside +-0.2: one image of a prompt survived."""
    found = RULES[rule](torch.tensor([[NAN, 22.0, NAN], [22.1, 21.9, 22.3]]))
    assert found[0, 1] == 0
    assert found[0].isnan().tolist() == [True, False, True]
    assert found[1].argmax() == 2
    assert found[1].abs().max() < 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25)
@given(value=st.floats(-1e6, 1e6), steps=st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_a_group_that_differs_by_rounding_gets_zeros(rule, dtype, value, steps):
    start = torch.tensor(value, dtype=dtype)
    near = [start]
    for _ in range(2):
        near.append(torch.nextafter(near[-1], torch.tensor(torch.inf, dtype=dtype)))
    group = torch.stack([near[step] for step in steps])[None]
    if value == 0 or abs(value) < 1e-30:
        group = torch.zeros_like(group)
    assert torch.equal(RULES[rule](group), torch.zeros_like(group))


@pytest.mark.parametrize("rule", RULES)
def test_small_differences_that_are_no_rounding_count(rule):
    assert RULES[rule](torch.tensor([[1.0, 1.0001, 0.9999]]))[0].argsort().tolist() == [2, 0, 1]


def test_leave_one_out_is_the_score_minus_the_mean_of_the_others():
    found = leave_one_out(torch.tensor([[1.0, NAN, 3.0], [2.0, 2.0, NAN], [1.0, 2.0, 6.0]]))
    assert torch.equal(found.nan_to_num(0.0), torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0], [-3.0, -1.5, 4.5]]))
