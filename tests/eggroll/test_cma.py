"""CMA-ES against numbers recorded from evotorch, and as a trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from t2ialign_eggroll import CMAESTrainer

FILE = Path(__file__).parent.parent / "golden" / "es_search.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as opened:
    CASES = json.loads(opened.metadata()["config"])
CLOSE = {"rtol": 3e-5, "atol": 1e-6}  # members and fitness are float32 here, and weights were there


class Point(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.x = nn.Parameter(start.clone())


def f1(x):
    j = torch.arange(len(x), dtype=x.dtype)
    return -((1 + j / 2) * (x - torch.sin(j + 1)).square()).sum()


def f2(x):
    return -(100 * (x[1:] - x[:-1] ** 2).square() + (1 - x[:-1]).square()).sum()


@pytest.mark.parametrize("function", ["f1", "f2"])
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("cmaes")])
def test_it_is_evotorchs(case, function):
    config = CASES[case]
    golden = {name.rpartition("/")[2]: GOLDEN[name] for name in GOLDEN if name.startswith(f"{case}/{function}/")}

    class Recorded(CMAESTrainer):
        def normals(self, members):
            return golden["z"][self.generation][list(members)]

    score = {"f1": f1, "f2": f2}[function]
    options = {name: config[name] for name in ("separable", "active", "csa_squared") if name in config}
    size = {} if config["popsize"] == 11 else {"population_size": config["popsize"]}  # 11 is the default
    trainer = Recorded(
        Point(golden["center_init"]), lambda m: score(m.x), sigma=golden["sigma_init"].item(), **options, **size
    )
    for name, own in {
        "mu_eff": "mu_eff",
        "c_sigma": "c_sigma",
        "damp_sigma": "damp",
        "c_c": "c_c",
        "c_1": "c_1",
        "c_mu": "c_mu",
        "decompose_C_freq": "refresh_every",
        "chi_n": "chi",
        "mu": "parents",
        "popsize": "population",
    }.items():
        found = trainer.members.count if own == "population" else getattr(trainer, own)
        assert found == pytest.approx(config[name], rel=1e-6), name
    torch.testing.assert_close(trainer.rank_weights, golden["rank_weights"], rtol=1e-5, atol=1e-7)
    for generation in range(CASES["generations"]):
        scores = trainer.evaluate()
        torch.testing.assert_close(scores.double(), golden["fitness"][generation], rtol=1e-4, atol=1e-4)
        trainer.step()
        torch.testing.assert_close(trainer.model.x.detach(), golden["center"][generation], **CLOSE)
        assert trainer.sigma * trainer.step_size == pytest.approx(golden["sigma"][generation].item(), rel=1e-5)
        for name, own in {"C": "covariance", "A": "factor", "p_sigma": "path_sigma", "p_c": "path_c"}.items():
            torch.testing.assert_close(getattr(trainer, own), golden[name][generation], **CLOSE, msg=name)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def closeness(model):
    return -(model(X) - X[:, :2] * 2).square().mean()


@pytest.mark.parametrize("separable", [False, True])
def test_it_learns_and_resumes(separable):
    def make():
        return CMAESTrainer(net(), closeness, population_size=24, separable=separable, batched=True)

    trainer = make()
    start = closeness(trainer.model)
    trainer.train(60)
    assert closeness(trainer.model) > start / 4
    resumed = make()
    resumed.load_state_dict(trainer.state_dict())
    for each in (trainer, resumed):
        each.train(3)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True))


def test_a_constant_fitness_moves_nothing_and_lost_members_do_not_count():
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    trainer = CMAESTrainer(model, lambda m: 1.0)
    trainer.train(2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert trainer.step_size == 1
    values = iter(range(1000))

    def lost(m):
        return float("nan") if next(values) % 3 else closeness(m)

    trainer = CMAESTrainer(net(), lost)
    trainer.train(3)
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert bool(trainer.covariance.isfinite().all())


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="keeps a covariance of 10,100 x 10,100 numbers; 4,000 x 4,000 are the most"):
        CMAESTrainer(nn.Linear(100, 100), closeness)
    CMAESTrainer(nn.Linear(100, 100), closeness, separable=True)
    with pytest.raises(ValueError, match="CMA-ES decides optimizer itself"):
        CMAESTrainer(net(), closeness, optimizer="adam")
