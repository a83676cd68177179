"""The pure functions against what the upstream codes computed from the same draws."""

import math

import pytest
import torch
from torch import nn

from t2ialign import seeding
from t2ialign_eggroll import EggrollTrainer
from t2ialign_eggroll.batched import evaluate_members
from t2ialign_eggroll.noise import FullRank, LowRank, Members
from t2ialign_eggroll.shaping import Fitness, shape
from t2ialign_eggroll.update import ascend, mean_perturbation, pair_weights, step_scale

FITNESS = {"rtol": 1e-4, "atol": 1e-4}
EXACT = {"rtol": 2e-5, "atol": 2e-6}


def low_rank(left, right):
    """Unit factors (P, a, k), (P, b, k) as a stack of perturbations."""
    return LowRank(left / math.sqrt(left.shape[-1]), right, torch.Size((left.shape[1], right.shape[1])))


def fitness(values):
    return Fitness(values, torch.ones(len(values), dtype=torch.bool), torch.tensor(False))


def direction(perturbation, values, weights=None):
    weights = values if weights is None else weights
    return perturbation.contract(weights) / len(values)


def sgd(parameters, lr):
    return torch.optim.SGD(list(parameters.values()), lr=lr)


# HyperscaleES_T2I stores the negative halves after the positive ones; ours are neighbours.
def t2i_draws(block):
    draws = {}
    for index in range(3):
        if f"A.{index}" in block:
            draws[str(index)] = low_rank(block[f"A.{index}"], block[f"B.{index}"])
        elif f"G.{index}" in block:
            draws[str(index)] = FullRank(block[f"G.{index}"])
    return draws


@pytest.mark.parametrize("case", ["even_r1", "plain_r1"])
def test_t2i_members(golden, case):
    block = golden(f"t2i/{case}")
    count, _, paired, _ = block["cfg"].tolist()
    sigma = block["sigma_lrscale"][0].item()
    index = torch.arange(count)
    pair, sign = (index % 3, torch.where(index < 3, 1.0, -1.0)) if paired else (index, torch.ones(count))
    eps = torch.cat([d.select(pair, sign).dense().flatten(1) for d in t2i_draws(block).values()], 1)
    torch.testing.assert_close(eps, block["eps"], **EXACT)
    torch.testing.assert_close(block["theta"] + sigma * eps, block["theta_pop"], **EXACT)
    centres = block["theta"].split([d.shape.numel() for d in t2i_draws(block).values()])
    for (name, draw), centre in zip(t2i_draws(block).items(), centres, strict=True):
        (member,) = draw.select(pair[-1:], sign[-1:] * sigma).added_to(centre.view(draw.shape))
        torch.testing.assert_close(member, block[f"param_last.{name}"], **EXACT)


@pytest.mark.parametrize("case", ["even_r1/upd", "even_r1/upd_mean", "plain_r1/upd"])
def test_t2i_update(golden, case):
    block, update = golden("t2i/" + case.split("/")[0]), golden(f"t2i/{case}")
    count, _, paired, _ = block["cfg"].tolist()
    sigma, lr = block["sigma_lrscale"].tolist()
    max_step, max_norm = (cap or None for cap in update["caps"].tolist())

    shaped = shape(update["S"], "zscore")
    torch.testing.assert_close(shaped.values, update["fitness"], **FITNESS)
    torch.testing.assert_close(shape(update["scores_mean"], "zscore").values, update["fitness"], **FITNESS)
    assert torch.equal(shaped.used, update["finite_mask"])
    centred = shape(update["S"], "prompt-centred").values
    torch.testing.assert_close(centred, update["scores_promptnorm"], **FITNESS)
    # Upstream's promptnorm cancels: standardising the prompt-centred scores gives the plain z-score again.
    torch.testing.assert_close(shape(centred, "zscore").values, update["fitness_from_mean"], **FITNESS)

    interleaved = shaped.values.view(2, -1).T.flatten() if paired else shaped.values
    weights = pair_weights(interleaved, Members(count, bool(paired)))
    draws = t2i_draws(block)
    steps = {n: step_scale("upstream", sigma, count) * direction(d, shaped.values, weights) for n, d in draws.items()}
    for caps, expected in (
        ((None, None), "theta_after"),
        ((max_step, None), "theta_step_capped"),
        ((max_step, max_norm), "theta_capped"),
    ):
        centres = block["theta"].split([d.shape.numel() for d in draws.values()])
        parameters = {
            n: nn.Parameter(c.view(d.shape).clone()) for (n, d), c in zip(draws.items(), centres, strict=True)
        }
        ascend(sgd(parameters, lr), parameters, steps, *caps)
        theta = torch.cat([p.detach().flatten() for p in parameters.values()])
        torch.testing.assert_close(theta, update[expected], rtol=1e-4, atol=1e-5)


def test_t2i_constant_reward(golden):
    block = golden("t2i/const")
    shaped = shape(block["S"], "zscore")
    assert torch.equal(shaped.values, block["fitness"])
    assert shaped.constant


def test_t2i_draws_of_prompts(golden):
    """Ours come from other generators and in another order; what a draw is stays the same."""
    block = golden("t2i/sampling")
    for row, (seed, total, count) in enumerate(block["triples"].tolist()):
        recorded = block[f"indices.{row}"].tolist()
        ours = seeding.choose(seed, total, min(count, total))
        assert len(ours) == len(recorded) == len(set(ours))
        assert set(ours) <= set(range(total))
        if count >= total:  # everything there is
            assert set(ours) == set(recorded)
    # Upstream mixes a seed with two numbers into 32 bits and never uses it; ours keeps the same inputs apart.
    mixed = {seeding.derive(*words) for words in block["mix_seed_in"].tolist()}
    assert len(mixed) == len(block["mix_seed_out"].unique())


@pytest.mark.parametrize("case", ["sgd_r1", "adamw_r2_group", "freeze_reuse"])
@pytest.mark.usefixtures("factored")
def test_jax_forward(golden, case):
    """The factored product for a weight (out, in), for its transpose, and the perturbed bias."""
    block = golden(f"jax/{case}")
    count, frozen, sigma = len(block["sign"]), bool(block["cfg"][-1]), block["sigma_lr"][0].item()
    everyone, signed = torch.arange(count), block["sign"] * sigma
    noise = low_rank(block["A_unit"], block["B_unit"]).select(everyone, signed)
    mirrored = LowRank(noise.v, noise.u, torch.Size(reversed(noise.shape)))
    for weight, own, x, y in ((block["W"], noise, "x", "y_mm"), (block["W"].T, mirrored, "xT", "y_Tmm")):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight
        crossed = evaluate_members(layer, lambda layer, x=block[x]: layer(x), {"weight": own})
        torch.testing.assert_close(crossed[everyone, everyone].detach(), block[y], rtol=1e-4, atol=1e-5)
    biases = block["b"] if frozen else FullRank(block["b_noise_unit"]).select(everyone, signed).added_to(block["b"])
    torch.testing.assert_close(biases.expand(count, -1), block["b_noisy"], **EXACT)


def test_jax_baseline_subtraction(golden):
    """No option of ours: with pairs or a mean over members the centre need not be scored.

    Upstream scores it twice (directions 0 and 1 have no noise), subtracts that score per prompt and divides by the
    prompt's spread. Per-prompt standardisation differs from this by one number common to all directions, which has no
    part in a comparison.
    """
    block = golden("jax/baseline_sub")
    ours = shape(block["S"].T, "prompt-zscore").values
    compared = [shape(values[2:], "zscore").values for values in (ours, block["fitness_per_direction"])]
    torch.testing.assert_close(*compared, **FITNESS)
    assert torch.equal(block["fitness_per_direction"][:2], torch.zeros(2))


@pytest.mark.parametrize("case", ["sgd_r1", "adamw_r2_group", "freeze_reuse"])
def test_jax_update(golden, case):
    block = golden(f"jax/{case}")
    count, _, group_size, _, _, frozen = block["cfg"].tolist()
    sigma, lr = block["sigma_lr"].tolist()
    kind = "group-centred" if group_size else "zscore-biased"
    shaped = shape(block["raw_scores"], kind, group_size=group_size)
    torch.testing.assert_close(shaped.values, block["fitness"], **FITNESS)

    scale = step_scale("eggroll", sigma, count)
    signed = shaped.values * block["sign"]
    noise = low_rank(block["A_unit"], block["B_unit"])
    steps = {"W": scale * direction(noise, signed)}
    torch.testing.assert_close(-steps["W"], block["grad_W"], **FITNESS)
    torch.testing.assert_close(-scale * direction(noise.sign(), signed), block["alt_grad_W"], **FITNESS)
    full_rank = FullRank(block["openes_noise_unit_W"])
    torch.testing.assert_close(-scale * direction(full_rank, signed), block["openes_grad_W"], **FITNESS)
    if not frozen:
        steps["b"] = scale * direction(FullRank(block["b_noise_unit"]), signed)
        torch.testing.assert_close(-steps["b"], block["grad_b"], **FITNESS)
    else:
        assert not block["grad_b"].any()

    # One draw per pair and the difference of the pair's fitness give the same direction.
    weights = pair_weights(shaped.values, Members(count))
    pairs = low_rank(block["A_unit"][::2], block["B_unit"][::2])
    torch.testing.assert_close(scale * direction(pairs, shaped.values, weights), steps["W"], **FITNESS)

    parameters = {name: nn.Parameter(block[name].clone()) for name in ("W", "b")}
    solver = (
        torch.optim.AdamW(list(parameters.values()), lr=lr, weight_decay=1e-4)
        if case.startswith("adamw")
        else sgd(parameters, lr)
    )
    ascend(solver, parameters, steps)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.data, block[f"{name}_new"], **FITNESS)
        if frozen and name == "b":
            assert torch.equal(parameter.data, block["b"])
    if case.startswith("adamw"):
        ascend(solver, parameters, steps)
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, block[f"{name}_new2"], **FITNESS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("case", ["sgd_r1", "freeze_reuse"])
def test_broken_members_leave_the_recorded_update_as_it_is(golden, case, bad):
    """A further pair without a finite score, and wild noise: not one number of the others' update changes."""
    block = golden(f"jax/{case}")
    scores = torch.cat([block["raw_scores"], torch.tensor([bad, -bad])])
    pairs = [torch.cat([block[name][::2], torch.full_like(block[name][:1], 1e3)]) for name in ("A_unit", "B_unit")]
    noise = low_rank(*pairs)

    def draw(pair):
        return {"W": noise.select(torch.tensor(pair), torch.ones(len(pair)))}

    groups = {"kind": "group-centred", "group_size": 2} if block["cfg"][2] else {"kind": "zscore-biased"}
    shaped = shape(scores, **groups)
    scale = step_scale("eggroll", block["sigma_lr"][0].item(), int(shaped.used.sum()))
    found = scale * mean_perturbation(draw, Members(len(scores)), shaped)["W"]
    torch.testing.assert_close(-found, block["grad_W"], **FITNESS)


@pytest.mark.parametrize("case", ["r1", "r2_anti_group", "freeze"])
def test_trainer_update(golden, case):
    block = golden(f"trainer/{case}")
    count, _, _, group_size, frozen, _, _ = block["cfg"].tolist()
    lr, sigma = block["lr_sigma"].tolist()
    shaped = shape(block["raw_scores"], "group-zscore" if group_size else "zscore", group_size=group_size)
    torch.testing.assert_close(shaped.values, block["fitness"], **FITNESS)
    for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
        if f"{name}.A" in block:  # the recorded factor already holds the sign, sigma and 1 / sqrt(k)
            noise = LowRank(block[f"{name}.A"] / sigma, block[f"{name}.B"], block[name].shape)
        else:
            noise = FullRank(block[f"{name}.pert"] / sigma)
        members = block[name] + sigma * noise.dense()
        torch.testing.assert_close(members, block[f"{name}.pop"], **EXACT)
        # Upstream adds each perturbation to the last member's weights; its scores belong to these.
        walked = block[name] + (sigma * noise.dense()).cumsum(0)
        torch.testing.assert_close(walked, block[f"{name}.pop_upstream_step"], rtol=1e-4, atol=1e-5)
        if frozen and name.endswith("bias"):
            assert torch.equal(block[f"{name}.new"], block[name])
            continue
        parameters = {name: nn.Parameter(block[name].clone())}
        mean = sigma * direction(noise, shaped.values)
        torch.testing.assert_close(mean, block[f"{name}.update"], **FITNESS)
        steps = {name: step_scale("eggroll", sigma, count) * direction(noise, shaped.values)}
        ascend(sgd(parameters, lr), parameters, steps)
        torch.testing.assert_close(parameters[name].data, block[f"{name}.new"], **FITNESS)


@pytest.mark.parametrize("case", ["r1", "r2_anti_group", "freeze"])
def test_trainer_history(golden, case):
    block = golden(f"trainer/{case}")
    scores = iter(block["raw_scores"].tolist())
    trainer = EggrollTrainer(nn.Linear(2, 1), lambda model: next(scores), population_size=len(block["raw_scores"]))
    trainer.generation = int(block["cfg"][-1])
    line = trainer.step()
    found = [line[key] for key in ("generation", "mean_fitness", "best_fitness", "std_fitness")]
    assert found == pytest.approx(block["metrics"].tolist(), rel=1e-5)


def test_vanilla_update(golden):
    """Their learning rate has no sigma: it is ours divided by sigma."""
    block = golden("vanilla")
    lr, sigma = block["lr_sigma"].tolist()
    noise = FullRank(block["perturbations"])
    torch.testing.assert_close(block["theta"] + sigma * noise.dense(), block["theta_pop"], **EXACT)
    shaped = shape(block["raw_scores"], "zscore")
    parameters = {"theta": nn.Parameter(block["theta"].clone())}
    torch.testing.assert_close(direction(noise, shaped.values), block["update"], **FITNESS)
    steps = {"theta": step_scale("upstream", sigma, 5) * direction(noise, shaped.values)}
    ascend(sgd(parameters, lr / sigma), parameters, steps)
    torch.testing.assert_close(parameters["theta"].data, block["theta_new"], **FITNESS)
