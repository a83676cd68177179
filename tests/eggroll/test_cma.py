"""CMA-ES and xNES against numbers recorded from evotorch; these and CEM as trainers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from t2ialign_eggroll import CEMTrainer, CMAESTrainer, XNESTrainer

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


@pytest.mark.parametrize("function", ["f1", "f2"])
@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("xnes")])
def test_xnes_is_evotorchs(case, function):
    config = CASES[case]
    golden = {name.rpartition("/")[2]: GOLDEN[name] for name in GOLDEN if name.startswith(f"{case}/{function}/")}

    class Recorded(XNESTrainer):
        def normals(self, members):
            return golden["z"][self.generation][list(members)]

    score = {"f1": f1, "f2": f2}[function]
    size = {} if case == "xnes" else {"population_size": config["popsize"]}
    trainer = Recorded(Point(golden["center_init"]), lambda m: score(m.x), sigma=1.0, **size)
    trainer.factor = golden["sigma_init"].expand(trainer.size).diag()
    assert trainer.members.count == config["popsize"]
    for generation in range(CASES["generations"]):
        torch.testing.assert_close(trainer.evaluate().double(), golden["fitness"][generation], rtol=1e-4, atol=1e-4)
        trainer.step()
        torch.testing.assert_close(trainer.model.x.detach(), golden["center"][generation], **CLOSE)
        torch.testing.assert_close(trainer.factor, golden["sigma"][generation], **CLOSE)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def closeness(model):
    return -(model(X) - X[:, :2] * 2).square().mean()


@pytest.mark.parametrize("kind", [CMAESTrainer, partial(CMAESTrainer, separable=True), XNESTrainer, CEMTrainer])
def test_it_learns_and_resumes(kind):
    def make():
        return kind(net(), closeness, population_size=24, batched=True)

    trainer = make()
    start = closeness(trainer.model)
    trainer.train(60)
    assert closeness(trainer.model) > start / 4
    resumed = make()
    resumed.load_state_dict(trainer.state_dict())
    for each in (trainer, resumed):
        each.train(3)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.parametrize("kind", [CMAESTrainer, XNESTrainer, CEMTrainer])
def test_a_constant_fitness_moves_nothing_and_lost_members_do_not_count(kind):
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    trainer = kind(model, lambda m: 1.0)
    trainer.train(2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    learnt = trainer.spread["0.weight"] if kind is CEMTrainer else trainer.step_size * trainer.factor.diagonal()
    assert learnt.eq(1).all()
    values = iter(range(1000))

    def lost(m):
        return float("nan") if next(values) % 3 else closeness(m)

    trainer = kind(net(), lost)
    trainer.train(3)
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert not torch.equal(trainer.model[0].weight, before[0])


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="keeps a covariance of 10,100 x 10,100 numbers; 4,000 x 4,000 are the most"):
        CMAESTrainer(nn.Linear(100, 100), closeness)
    CMAESTrainer(nn.Linear(100, 100), closeness, separable=True)
    for kind, name in ((CMAESTrainer, "CMA-ES"), (XNESTrainer, "xNES"), (CEMTrainer, "CEM")):
        with pytest.raises(ValueError, match=f"{name} decides optimizer itself"):
            kind(net(), closeness, optimizer="adam")
    with pytest.raises(ValueError, match="SNESTrainer is its separable form"):
        XNESTrainer(net(), closeness, separable=True)
    with pytest.raises(ValueError, match="the elite of 4 members is 1 with elite_share 0"):
        CEMTrainer(net(), closeness, population_size=4)
