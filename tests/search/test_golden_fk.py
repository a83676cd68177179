"""FK steering against numbers of the published code, and of a float64 reference of the exact form."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2ialign_search import particles
from t2ialign_search.particles import Particles

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "rl_fk.safetensors")
NAMES = {"diff": "difference", "max": "max", "add": "sum", "rt": "reward"}
FORMS = [
    (golden, potential, adaptive)
    for golden, potential in NAMES.items()
    for adaptive in (0, 1)
    if f"ex.{golden}.adapt{adaptive}.ess" in GOLDEN
]


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def schedule():
    names = ("time_steps", "t_start", "t_end", "frequency")
    return particles.events(*(int(GOLDEN[f"in.{name}"]) for name in names))


def test_events():
    assert schedule() == GOLDEN["out.events"].tolist()
    for case, mask in zip(GOLDEN["sched.cases"].tolist(), GOLDEN["sched.mask"], strict=True):
        first, last, every, steps = case
        assert particles.events(steps, first, last, every) == mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("published", [True, False], ids=["published", "exact"])
@pytest.mark.parametrize(("golden", "potential", "adaptive"), FORMS)
def test_a_whole_run(golden, potential, adaptive, published):
    """Weights, effective sizes, resamplings, states, products and latents after every event."""
    expected = {
        key.rpartition(".")[2]: tensor
        for key, tensor in GOLDEN.items()
        if key.startswith(f"{'up' if published else 'ex'}.{golden}.adapt{adaptive}.")
    }
    rewards, uniforms, latents = (GOLDEN[f"in.{name}"] for name in ("rewards", "uniforms", "latents"))
    steps, count = rewards.shape
    now = Particles.start((1, count), GOLDEN["in.reward_min"].item())
    for event, step in enumerate(schedule()):
        last = step == steps - 1
        now, log_g = particles.weigh(
            now, rewards[step][None].double(), potential, GOLDEN["in.lmbda"].item(), last, published
        )
        probabilities = particles.weights(now.log_weights)
        size = particles.effective_size(probabilities)
        close(size[0], expected["ess"][event])
        if published:
            close(now.log_weights[0].exp(), expected["w"][event])
        else:
            close(log_g[0], expected["log_G"][event])
            close(now.log_weights[0], expected["log_W"][event])
            close(probabilities[0], expected["weights"][event])
        where = size < 0.5 * count
        if not adaptive and not last:
            where = torch.ones_like(where)
        assert int(where) == expected["resampled"][event]
        index = particles.draw(probabilities, uniforms[step][None], "multinomial")
        now = particles.resampled(now, log_g, index, where, published)
        index = torch.where(where[:, None], index, torch.arange(count))
        assert torch.equal(index[0], expected["indices"][event])
        if published:
            close(now.state[0], expected["population_rs"][event])
            close(now.log_product[0].exp(), expected["product"][event])
            assert torch.equal(latents[step][index[0]], expected["latents"][event])
        else:
            close(now.state[0], expected["state"][event])
            close(now.log_product[0], expected["log_prod"][event])


def test_resampling_of_grouped_weights():
    probabilities = particles.weights(GOLDEN["resample.log_w"])
    close(probabilities, GOLDEN["resample.weights"])
    close(particles.effective_size(probabilities), GOLDEN["resample.ess"])
    each = GOLDEN["resample.u_stratified"]
    once = GOLDEN["resample.u_systematic"][:, None].expand_as(each)
    for how, uniforms in (("systematic", once), ("stratified", each), ("multinomial", each)):
        assert torch.equal(particles.draw(probabilities, uniforms, how), GOLDEN[f"resample.{how}"]), how


def test_rewards_that_are_not_finite_and_rewards_without_measure():
    rewards = GOLDEN["edge.rewards"].double()
    start = Particles.start(tuple(rewards.shape), 0.0)
    after, _ = particles.weigh(start, rewards, "reward", GOLDEN["edge.lmbda"].item())
    probabilities = particles.weights(after.log_weights)
    close(probabilities, GOLDEN["edge.weights"])
    close(particles.effective_size(probabilities), GOLDEN["edge.ess"])


@pytest.mark.parametrize("potential", NAMES.values())
@pytest.mark.parametrize("shift", [0.0, -50.0], ids=["as-it-is", "negative"])
def test_without_resampling_the_weights_are_those_of_the_last_reward(potential, shift):
    """The potentials of a path multiply to exp(lambda r(x0)), whatever the rewards in between were, and their sign."""
    rewards = GOLDEN["in.rewards"].double() + shift
    now = Particles.start((1, rewards.shape[1]), particles.starting_state(potential))
    for step, values in enumerate(rewards):
        now, _ = particles.weigh(now, values[None], potential, 2.0, last=step == len(rewards) - 1)
    expected = torch.softmax(2.0 * rewards[-1], 0)
    torch.testing.assert_close(particles.weights(now.log_weights)[0], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("potential", NAMES.values())
def test_a_particle_without_a_score_dies_and_takes_nobody_along(potential):
    rewards = torch.tensor([[-5.0, torch.nan, -4.0], [torch.nan] * 3])
    start = Particles.start((2, 3), particles.starting_state(potential))
    after, _ = particles.weigh(start, rewards, potential, 1.0)
    probabilities = particles.weights(after.log_weights)
    assert probabilities[0, 1] == 0
    assert probabilities[0, 2] > probabilities[0, 0] > 0
    torch.testing.assert_close(probabilities[1], torch.full((3,), 1 / 3))
    for how in ("systematic", "stratified", "multinomial"):
        uniforms = torch.tensor([[0.0, 0.5, 0.999], [0.0, 0.5, 0.999]])
        assert 1 not in particles.draw(probabilities, uniforms, how)[0]
    finished, _ = particles.weigh(after, torch.full((2, 3), -3.0), potential, 1.0, last=True)
    assert not particles.weights(finished.log_weights).isnan().any()
