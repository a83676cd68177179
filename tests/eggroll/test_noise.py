import pytest
import torch

from t2ialign_eggroll.noise import Members, Noise

SHAPES = {"first.weight": (6, 5), "second.weight": (6, 5), "conv.weight": (4, 3, 3, 3), "bias": (6,)}


def draw(rank=1, pairs=range(4), step=0, seed=0):
    return Noise(SHAPES, rank).of(seed, step)(pairs)


@pytest.mark.parametrize("rank", [1, 2, None])
def test_entries_have_mean_0_and_variance_1(rank):
    for name, perturbation in draw(rank, range(4000)).items():
        dense = perturbation.dense()
        assert dense.shape == (4000, *SHAPES[name])
        assert dense.mean().abs() < 0.02
        assert dense.square().mean() == pytest.approx(1, abs=0.05)
    if rank is not None:
        kurtosis = draw(rank, range(4000))["first.weight"].dense().pow(4).mean()
        assert kurtosis == pytest.approx(3 + 6 / rank, rel=0.15)


def test_matrices_and_kernels_have_the_noise_rank_and_vectors_full_rank():
    drawn = draw(rank=2)
    assert torch.linalg.matrix_rank(drawn["first.weight"].dense()[0]) == 2
    assert torch.linalg.matrix_rank(drawn["conv.weight"].dense()[0].flatten(1)) == 2
    assert Noise(SHAPES, 2).size == 2 * (6 + 5) * 2 + 2 * (4 + 27) + 6
    assert Noise(SHAPES, None).size == 30 + 30 + 108 + 6


def test_layers_of_equal_shape_differ():
    drawn = draw()
    assert not torch.isclose(drawn["first.weight"].dense(), drawn["second.weight"].dense()).any()


def test_a_pair_is_the_same_alone_and_among_others():
    everyone, third = draw(), draw(pairs=[2])
    for name in SHAPES:
        assert torch.equal(everyone[name].dense()[2], third[name].dense()[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"pairs": range(4, 8)}])
def test_seed_step_and_pair_decide_the_noise(change):
    assert torch.equal(draw()["bias"].dense(), draw()["bias"].dense())
    assert not torch.isclose(draw()["bias"].dense(), draw(**change)["bias"].dense()).any()


@pytest.mark.parametrize("count", [6, 7])
def test_antithetic_members_are_neighbours_of_opposite_sign(count):
    members = Members(count)
    dense = members.draw(Noise(SHAPES).of(0, 0), slice(0, count))["first.weight"].dense()
    assert members.pairs == (count + 1) // 2
    assert torch.equal(dense[0:6:2], -dense[1:6:2])
    assert torch.equal(dense[::2], draw(pairs=range(members.pairs))["first.weight"].dense())


def test_members_without_pairs_are_independent():
    dense = Members(4, antithetic=False).draw(Noise(SHAPES).of(0, 0), slice(0, 4))["first.weight"].dense()
    assert torch.equal(dense, draw()["first.weight"].dense())


@pytest.mark.parametrize("chunk", [slice(0, 3), slice(3, 5), slice(4, 7)])
def test_any_chunk_of_members_can_be_drawn_alone(chunk):
    members, noise = Members(7), Noise(SHAPES, 2).of(3, 9)
    everyone, part = members.draw(noise, slice(0, 7)), members.draw(noise, chunk)
    for name in SHAPES:
        assert torch.equal(everyone[name].dense()[chunk], part[name].dense())


@pytest.mark.parametrize("rank", [1, 3, None])
def test_contraction_is_the_weighted_sum_of_dense_perturbations(rank):
    weights = torch.tensor([0.3, -1.0, 2.0, 0.0])
    for perturbation in draw(rank).values():
        expected = torch.einsum("p,p...->...", weights, perturbation.dense())
        torch.testing.assert_close(perturbation.contract(weights), expected)


def test_a_noise_rank_below_1_is_refused():
    with pytest.raises(ValueError, match="noise rank"):
        Noise(SHAPES, 0)
