import pytest
import torch

from t2ialign_eggroll.shaping import GROUPED, PAIRED, SHAPINGS, shape

SCORES = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))


def apply(kind, scores, **options):
    return shape(scores, kind, group_size=4 if kind in GROUPED else 0, **options)


def test_every_shaping_is_distinct():
    results = {kind: apply(kind, SCORES).values for kind in SHAPINGS}
    kinds = list(results)
    for i, first in enumerate(kinds):
        for second in kinds[:i]:
            assert not torch.allclose(results[first], results[second], atol=1e-4), (first, second)


@pytest.mark.parametrize("kind", SHAPINGS)
def test_a_common_offset_per_prompt_changes_nothing(kind):
    shifted = SCORES + torch.tensor([5.0, -3.0, 0.0, 10.0, 1.0])
    torch.testing.assert_close(apply(kind, shifted).values, apply(kind, SCORES).values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", SHAPINGS)
def test_better_members_get_more(kind):
    scores = torch.linspace(0, 1, 8)
    values = apply(kind, scores).values
    if kind in PAIRED:
        assert (values[1::2] > values[::2]).all()
    elif kind in GROUPED:
        assert (values.view(2, 4).diff() > 0).all()
    elif kind == "nes":  # its utilities are the same for the lower half
        assert (values.diff() >= 0).all()
        assert (values[4:].diff() > 0).all()
    else:
        assert (values.diff() > 0).all()


@pytest.mark.parametrize("kind", SHAPINGS)
def test_constant_scores_give_zeros_and_say_so(kind):
    shaped = apply(kind, torch.full((8, 5), 0.7))
    assert torch.equal(shaped.values, torch.zeros(8))
    assert shaped.constant
    assert not apply(kind, SCORES).constant


@pytest.mark.parametrize("kind", SHAPINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_member_is_left_out_and_poisons_nobody(kind, bad):
    scores = SCORES.clone()
    scores[3] = bad
    shaped = apply(kind, scores)
    assert shaped.values.isfinite().all()
    assert shaped.values[3] == 0
    assert not shaped.used[3]
    if kind in PAIRED:
        assert shaped.used.tolist() == [True, True, False, False, True, True, True, True]
    else:
        assert shaped.used.sum() == 7


@pytest.mark.parametrize("kind", ["zscore", "zscore-biased", "prompt-centred", "prompt-zscore", "centred-rank"])
def test_the_others_are_shaped_as_if_the_broken_member_did_not_exist(kind):
    scores = SCORES.clone()
    scores[3] = torch.nan
    kept = [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(shape(scores, kind).values[kept], shape(SCORES[kept], kind).values)


@pytest.mark.parametrize("kind", SHAPINGS)
def test_a_population_without_any_score_makes_no_update(kind):
    shaped = apply(kind, torch.full((8, 5), torch.nan))
    assert torch.equal(shaped.values, torch.zeros(8))
    assert not shaped.used.any()


def test_a_missing_sample_favours_nobody():
    scores = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    scores[2, 1, 0] = torch.nan
    filled = scores.clone()
    filled[2, 1, 0] = scores[[0, 1, 3, 4, 5], 1, 0].mean()
    shaped = shape(scores, "zscore")
    torch.testing.assert_close(shaped.values, shape(filled.mean(2), "zscore").values)
    assert shaped.used.all()


@pytest.mark.parametrize("kind", SHAPINGS)
def test_a_population_of_one_is_refused(kind):
    with pytest.raises(ValueError, match="at least 2"):
        shape(torch.ones(1, 5), kind)


@pytest.mark.parametrize("group_size", [0, 1, 3])
def test_groups_must_divide_the_population(group_size):
    with pytest.raises(ValueError, match="group_size"):
        shape(SCORES, "group-zscore", group_size=group_size)


def test_ranks_average_ties():
    values = shape(torch.tensor([1.0, 2.0, 2.0, 5.0]), "centred-rank").values
    torch.testing.assert_close(values, torch.tensor([-0.5, 0.0, 0.0, 0.5]))


def test_antithetic_divides_differences_by_their_rms_but_not_below_the_floor():
    scores = torch.tensor([0.3, 0.1, 0.5, 0.9])  # d = 0.2, -0.4
    rms = (0.2**2 / 2 + 0.4**2 / 2) ** 0.5
    expected = torch.tensor([0.2, -0.2, -0.4, 0.4])
    torch.testing.assert_close(shape(scores, "antithetic").values, expected / rms)
    torch.testing.assert_close(shape(scores * 1e-4, "antithetic", floor=1e-3).values, expected * 0.1)


@pytest.mark.parametrize("kind", PAIRED)
def test_the_unpaired_member_of_an_odd_population_takes_no_part_in_pair_shaping(kind):
    shaped = shape(SCORES[:7], kind)
    torch.testing.assert_close(shaped.values[:6], shape(SCORES[:6], kind).values)
    assert shaped.used.tolist() == [True] * 6 + [False]


def test_antithetic_sign_counts_prompts():
    scores = torch.tensor([[1.0, 2.0, 9.0], [0.0, 3.0, 8.0]])
    torch.testing.assert_close(shape(scores, "antithetic-sign").values, torch.tensor([1 / 3, -1 / 3]))


@pytest.mark.parametrize("kind", SHAPINGS)
def test_rounding_is_no_fitness(kind):
    """Scores around 0.3 that differ in the last bit alone, as two summation orders give them."""
    scores = torch.full((8, 5), 0.3)
    scores[::2] = torch.nextafter(scores[::2], torch.tensor(1.0))
    scores[3] = torch.nextafter(scores[3], torch.tensor(1.0))
    assert torch.equal(apply(kind, scores).values, torch.zeros(8))


def test_a_constant_group_beside_others_gets_no_fitness():
    scores = torch.tensor([0.29, 0.31, 0.3, 0.3, 0.1, 0.7, 0.3, 0.3])
    scores[3::4] = torch.nextafter(scores[3::4], torch.tensor(1.0))
    values = shape(scores, "group-zscore", group_size=2).values
    assert values[[2, 3, 6, 7]].tolist() == [0, 0, 0, 0]
    assert values[[0, 1, 4, 5]].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5] * 2, rel=1e-4)
