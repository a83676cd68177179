"""The policy's and PPO's mathematics against numbers of the published code, in float64."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from t2ialign.problem.advantages import leave_one_out, standardised
from t2ialign_ppo import ppo
from t2ialign_ppo.convert_snapshot import published_mapping, sanitise
from t2ialign_ppo.distributions import Draws
from t2ialign_ppo.policy import Policy, simplices
from t2ialign_solvers.starts import published_table
from t2ialign_solvers.table import SolverTable, load_table

FILE = Path(__file__).parents[1] / "golden/epd_ppo.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as stream:
    CONFIG = json.loads(stream.metadata()["config"])


def close(found, name, tolerance=1e-10):
    torch.testing.assert_close(found.detach(), GOLDEN[name], rtol=tolerance, atol=tolerance)


def table_of(prefix):
    parts = ("positions", "weights", "scale_dir", "scale_time")
    ones = torch.ones_like(GOLDEN[f"{prefix}.positions"])
    return SolverTable(*(GOLDEN.get(f"{prefix}.{part}", ones) for part in parts))


@pytest.fixture
def policy():
    """The recorded policy, before its updates."""
    made = Policy(
        table_of("cold"),
        CONFIG["concentration"],
        scale_dir="log-normal",
        scale_time="log-normal",
        scale_std=CONFIG["scale_std"],
        width=CONFIG["hidden_dim"],
        blocks=CONFIG["num_layers"],
    )
    before = {k.removeprefix("policy.before."): v for k, v in GOLDEN.items() if k.startswith("policy.before.")}
    for name in [name for name in before if name.startswith("base_")]:
        torch.testing.assert_close(made.get_buffer(name), before[name], rtol=1e-6, atol=1e-6)  # stored as float32
    made.load_state_dict(before)
    return made


@pytest.fixture
def draws():
    return Draws(*(GOLDEN[f"sample.{part}"] for part in ("segments", "weights", "scale_dir", "scale_time")))


@pytest.mark.parametrize("name", [name for name in GOLDEN if re.match(r"init\..*\.positions", name)])
def test_published_start_tables(name):
    points, knots, centre, spread, slope = re.match(r"init\.K(\d)\.N(\d+)\.rb(.*)\.re(.*)\.we(.*)\.pos", name).groups()
    first = 0.7 if centre == "0.9" else None
    table = published_table(
        int(knots) - 1,
        int(points),
        centre=float(centre),
        spread=float(spread),
        first_weight=first,
        weight_slope=float(slope),
    )
    close(table.positions.double(), name, 1e-7)  # tables are float32
    close(table.weights.double(), name.replace("positions", "weights"), 1e-7)
    stored = {key: GOLDEN[name.replace("positions", key)] for key in ("r_params", "weight_logits")}
    mapped = from_raw(stored["r_params"], stored["weight_logits"])
    close(mapped.positions.double(), name, 1e-6)
    close(mapped.weights.double(), name.replace("positions", "weights"), 1e-6)


def from_raw(r_params, weight_s, scale_params=None, scale_range=0.0):
    """Published raw parameters, both scales alike, as a table."""
    scales = torch.zeros_like(r_params) if scale_params is None else scale_params
    parameters = {"r_params": r_params, "weight_s": weight_s}
    settings = {"schedule_type": "discrete", "schedule_rho": 1.0, "scale_dir": scale_range, "scale_time": scale_range}
    return published_mapping(parameters | dict.fromkeys(("scale_dir_params", "scale_time_params"), scales), settings)


def test_published_exports_cut_scales_to_their_range_and_ours_do_not(tmp_path):
    raw = (GOLDEN[f"export.{name}"] for name in ("r_params", "weight_s", "scale_params_range0.05"))
    published, learnt = from_raw(*raw, 0.05), GOLDEN["export.scale_in"].float()
    cold = table_of("cold")
    torch.testing.assert_close(published.positions, cold.positions.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(published.weights, cold.weights.float(), rtol=1e-6, atol=1e-6)
    for scales in (published.scale_dir, published.scale_time):
        torch.testing.assert_close(scales, learnt.clamp(0.95, 1.05), rtol=1e-6, atol=1e-6)
    assert (learnt > 1.05).sum() == 4
    ours = published.like(scale_dir=learnt, scale_time=learnt)
    ours.save(tmp_path / "table.json")
    assert torch.equal(load_table(str(tmp_path / "table.json")).scale_dir, learnt)


def test_the_mean_starts_at_the_table():
    cold = table_of("cold")
    segments, weights = simplices(cold)
    close(segments, "cold.segments")
    close(CONFIG["concentration"] * segments, "cold.alpha_pos")
    close(CONFIG["concentration"] * weights, "cold.alpha_weight")
    close(
        Policy(cold, CONFIG["concentration"])().segments.concentration, "policy.init_output.alpha_pos", 1e-6
    )  # stored as float32
    kinds = {"scale_dir": "bounded", "scale_time": "bounded", "scale_bound": 0.5}
    for options in ({}, {"scale_dir": "log-normal"}, kinds):
        mean = Policy(cold, 20.0, **options)().mean
        torch.testing.assert_close(mean.segments[:, :-1].cumsum(-1), cold.positions, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mean.weights, cold.weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean.scale_dir, cold.scale_dir, rtol=1e-12, atol=1e-12)


def test_degenerate_rows_become_even():
    segments, weights = simplices(table_of("cold_bad"))
    close(CONFIG["concentration"] * segments, "cold_bad.alpha_pos")
    close(CONFIG["concentration"] * weights, "cold_bad.alpha_weight")
    for parts, name in ((segments, "cold_bad.invalid_pos"), (weights, "cold_bad.invalid_weight")):
        assert torch.equal((parts == parts[:, :1]).all(-1), GOLDEN[name].bool())


def test_rows_are_put_in_order():
    parts = ("positions", "weights", "scale_dir", "scale_time")
    given = [GOLDEN[f"sanitize.in_{part}"] for part in parts]
    found = sanitise(*given)
    for part, tensor in zip(parts, found, strict=True):
        close(tensor, f"sanitize.{part}", 1e-12)
    assert torch.equal((given[1] != found[1]).any(-1), GOLDEN["sanitize.reordered"].bool())
    assert torch.equal((given[0].sort(-1).values != found[0]).any(-1), GOLDEN["sanitize.adjusted"].bool())


def test_policy_outputs(policy):
    distribution = policy()
    close(distribution.segments.concentration, "policy.out.alpha_pos")
    close(distribution.weights.concentration, "policy.out.alpha_weight")
    for name, scales in (("dir", distribution.scale_dir), ("time", distribution.scale_time)):
        close(scales.distribution.loc, f"policy.out.scale_{name}_loc")
        close(scales.distribution.scale.log(), f"policy.out.scale_{name}_log_std")
        close(scales.mean, f"policy.mean.scale_{name}")
    close(distribution.mean.segments[:, :-1].cumsum(-1), "policy.mean.positions")
    close(distribution.mean.weights, "policy.mean.weights")
    close(distribution.entropy(), "policy.entropy")
    close(distribution.kl(policy.start()), "policy.kl_to_base")
    assert torch.equal(policy.start().kl(policy.start()), torch.zeros(CONFIG["num_steps"] - 1, dtype=torch.float64))


def test_densities_of_recorded_tables(policy, draws):
    log_prob = policy().log_prob(draws)
    close(log_prob, "sample.log_prob_step")
    close(log_prob.sum(-1), "sample.log_prob")
    table = draws.table(table_of("cold"))
    close(table.positions.double(), "sample.positions", 1e-6)
    for factor, name in ((policy().segments, "pos"), (policy().weights, "weight")):
        close(factor.entropy().expand(len(log_prob), -1), f"sample.entropy_{name}_step")


def test_a_table_per_image_is_made_of_segments():
    solvers = load_file(FILE.parent / "epd_solvers.safetensors")
    segments, weights = solvers["epd.perimage.segments"], solvers["epd.perimage.w"]
    table = Draws(segments, weights).table(table_of("cold"))
    torch.testing.assert_close(table.positions.double(), solvers["epd.perimage.r"], rtol=1e-6, atol=1e-6)


def test_advantages():
    rewards, k = GOLDEN["adv.rewards"], CONFIG["rloo_k"]
    own = leave_one_out(rewards.view(-1, k)).flatten()
    close(own, "adv.same_prompt_rloo.raw")
    close(standardised(own), "adv.same_prompt_rloo.normalized")
    mixed = leave_one_out(rewards.view(k, -1).T).T.flatten()  # what the published code does
    close(mixed, "adv.upstream_mixed.raw")
    close(standardised(mixed), "adv.upstream_mixed.normalized")
    close(standardised(rewards), "adv.k1.normalized")  # published, for one image a prompt: nobody to compare with


def test_two_consecutive_updates(policy, draws):
    solver = torch.optim.AdamW(policy.parameters(), lr=CONFIG["learning_rate"], weight_decay=0.0)
    advantages, old = GOLDEN["adv.upstream_mixed.normalized"], GOLDEN["ppo.old_log_prob"]
    for j, index in enumerate(GOLDEN["ppo.permutation"].split(4)):
        distribution = policy()
        part = ppo.loss(
            distribution,
            policy.start(),
            draws.rows(index),
            old[index],
            advantages[index],
            CONFIG["clip_range"],
            CONFIG["kl_coef"],
            CONFIG["entropy_coef"],
        )
        close(distribution.log_prob(draws.rows(index)).sum(-1), f"ppo.mb{j}.new_log_prob")
        for name, value in (("loss", part.total), ("policy_loss", part.policy), ("kl", part.kl), ("ratio", part.ratio)):
            close(value, f"ppo.mb{j}.{name}")
        outside = (GOLDEN[f"ppo.mb{j}.ratio_per_sample"] - 1).abs() > CONFIG["clip_range"]
        assert part.clipped.item() == outside.double().mean().item()
        close(ppo.update(policy, solver, part, CONFIG["max_grad_norm"]), f"ppo.mb{j}.grad_norm")
        for name, parameter in policy.named_parameters():
            close(parameter.grad, f"ppo.mb{j}.grad_clipped.{name}")
            close(parameter, f"policy.after{j}.{name}", 1e-9)
