"""The share of signal in a population's scores."""

import math

import pytest
import torch

from t2ialign_eggroll.signal import BEGIN, END, Signal, quantile, spread

#: Pair differences of three steps, and what the definitions give for them, by hand.
FIRST = torch.tensor([[1, 2, 0, 1], [-1, 0, -2, -1], [0.5, 0.5, -0.5, 0.5], [3, 2, 2, 3]])
SECOND = torch.tensor([[1, -1, 0, 1], [2, 0, -2, 1], [0.5, 0.5, -0.5, 0.5], [0, 2, -1, 1]])


def members(differences):
    """Scores of pairs with these differences, on prompts of any difficulty."""
    half = differences / 2
    return torch.stack([half, -half], 1).flatten(0, 1) + torch.tensor([3.0, -1.0, 0.0, 7.0])


def test_three_steps_give_the_numbers_of_the_definition():
    signal = Signal()
    found = []
    for differences in (FIRST, SECOND, FIRST):
        step = spread(members(differences), antithetic=True)
        gain = signal.add(step)
        found.append((step.between, step.within, step.total, signal.n**2 / signal.n2, signal.ratio, gain))
    expected = [
        (2.078125, 0.119792, 2.4375, 1, 17.34783, 0.76223),
        (0.109375, 0.359375, 1.1875, 1.994475, 2.47768, 0),
        (2.078125, 0.119792, 2.4375, 2.978022, 4.50025, 0.66126),
    ]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("pairs", "prompts", "begin", "end"), [(16, 6, 2.001, 3.840), (8, 48, 2.260, 4.567)])
def test_quantiles_equal_the_tabulated_ones(pairs, prompts, begin, end):
    freedom = (pairs, pairs * (prompts - 1))
    assert quantile(BEGIN, *freedom) == pytest.approx(begin, abs=6e-4)
    assert quantile(END, *freedom) == pytest.approx(end, abs=6e-4)
    assert quantile(END, 1, 1) is None  # nothing can be told from two images of one pair


@pytest.mark.parametrize("antithetic", [True, False])
def test_chance_passes_the_first_threshold_as_seldom_as_it_should(antithetic):
    source = torch.Generator().manual_seed(0)
    begun = 0
    for _ in range(2000):
        step = spread(torch.randn(32, 6, generator=source), antithetic)
        begun += step.between / step.within > quantile(BEGIN, step.f1, step.f2)
    assert 0.012 < begun / 2000 < 0.034  # 0.0228, at three standard errors


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_random_reward_leaves_next_to_no_steps_and_a_real_one_all_of_them(antithetic):
    source = torch.Generator().manual_seed(1)
    quality = torch.linspace(-1, 1, 32)[torch.randperm(32, generator=source), None]
    random, real = Signal(), Signal()
    gains = [
        (random.add(spread(noise, antithetic)), real.add(spread(noise + quality, antithetic)))
        for noise in torch.randn(40, 32, 6, generator=source)
    ]
    chance, signal = torch.tensor(gains).T
    assert chance.mean() < 0.05
    assert signal[2:].min() == 1
    assert random.share < 0.3 < real.share < 1


def test_prompts_of_any_difficulty_and_rewards_of_any_unit_change_nothing():
    scores = torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for antithetic in (True, False):
        plain = spread(scores, antithetic)
        moved = spread(1000 * scores + torch.arange(5) * 10.0, antithetic)
        assert moved.between / moved.within == pytest.approx(plain.between / plain.within)
        assert Signal().add(moved) == pytest.approx(Signal().add(plain))


def test_images_stand_in_for_prompts_when_there_is_one_prompt():
    scores = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
    assert spread(scores[:, None], True) == spread(scores, True)
    for lone in (scores[:, :1], scores[:, :1, None], scores[:, 0]):
        with pytest.raises(ValueError, match="two images"):
            spread(lone, True)


def test_images_of_a_prompt_are_averaged():
    scores = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(3))
    found, expected = spread(scores, True), spread(scores.mean(2), True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_broken_members_are_left_out_with_their_partners():
    scores = torch.randn(9, 5, generator=torch.Generator().manual_seed(4))
    expected = spread(scores[2:8], True)
    scores[1] = math.nan
    found = spread(scores, True)
    assert found.f1 == 3
    assert found == pytest.approx(expected)


def test_scores_that_are_all_equal_have_no_signal_and_are_no_evidence():
    signal = Signal()
    assert signal.add(spread(torch.ones(8, 5), True)) == 0
    assert signal == Signal()


def test_prompts_that_agree_completely_have_all_the_signal():
    signal = Signal()
    signal.add(spread(torch.arange(32.0)[:, None] ** 2 * torch.ones(6), True))
    assert signal.gain == signal.share == 1


def test_the_average_survives_a_checkpoint():
    signal = Signal()
    signal.add(spread(members(FIRST), True))
    again = Signal.of(signal.state())
    later = spread(members(SECOND), True)
    assert again.add(later) == signal.add(later)
    assert again == signal
