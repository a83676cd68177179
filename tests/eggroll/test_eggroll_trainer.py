"""Programs written for eggroll-trainer run with another import."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from t2ialign_eggroll import eggroll_trainer
from t2ialign_eggroll.eggroll_trainer import EGGROLLTrainer, ESTrainer, SimpleES, VanillaESTrainer

X = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(10, 20)
        self.second = nn.Linear(20, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def closeness(model):
    return -(model(X)[:, 0] - X[:, 0]).square().mean().item()


def test_the_first_program_of_its_front_page(net, caplog, capsys):
    """Its fitness is a random number, which is the same for all members here: said, and no step is taken."""

    def fitness(model):
        return torch.randn(1).item()

    trainer = EGGROLLTrainer(
        net.parameters(),
        model=net,
        fitness_fn=fitness,
        population_size=256,
        learning_rate=0.01,
        sigma=0.1,
        rank=1,
        noise_reuse=0,
        group_size=0,
        freeze_nonlora=False,
        seed=42,
    )
    before = trainer.current_params
    result = trainer.train(num_generations=100)
    assert result["generation"] == 100
    assert len(result["fitness_history"]) == 100
    assert len(capsys.readouterr().out.splitlines()) == 100
    assert torch.equal(trainer.current_params, before)
    assert "random numbers are the same for all members" in caplog.text


class Own(ESTrainer):
    """The second program of its front page: a strategy on flat vectors."""

    def sample_perturbations(self, population_size):
        return torch.randn(population_size, self.current_params.shape[0], device=self.device)

    def compute_update(self, perturbations, fitnesses):
        standardised = (fitnesses - fitnesses.mean()) / fitnesses.std()
        return (standardised[:, None] * perturbations).mean(0)


@pytest.mark.parametrize("kind", [Own, VanillaESTrainer, SimpleES, EGGROLLTrainer])
def test_the_surface(net, kind, capsys):
    trainer = kind(
        net.parameters(), model=net, fitness_fn=closeness, population_size=32, learning_rate=0.1, sigma=0.1, seed=3
    )
    assert isinstance(trainer, torch.optim.Optimizer)
    assert trainer.device == torch.device("cpu")
    start, first = trainer.evaluate_fitness(net), trainer.current_params
    assert trainer.best_fitness is None
    assert trainer.best_params is None
    assert trainer.best_state_dict is None
    trainer.zero_grad()
    line = trainer.step(lambda: 1 / 0)
    assert set(line) == {"generation", "mean_fitness", "best_fitness", "std_fitness"}
    trainer.train(30, verbose=False)
    assert capsys.readouterr().out == ""
    assert trainer.generation == len(trainer.fitness_history) == 31
    assert trainer.evaluate_fitness(net) > start
    assert not torch.equal(trainer.current_params, first)
    best = trainer.get_best_model()
    assert closeness(best) == pytest.approx(trainer.best_fitness, rel=1e-5)
    assert trainer.best_state_dict.keys() == net.state_dict().keys()
    assert trainer.best_params.shape == first.shape
    once = trainer.current_params
    trainer.reset()
    assert torch.equal(trainer.current_params, first)
    assert (trainer.generation, trainer.fitness_history, trainer.best_fitness) == (0, [], None)
    trainer.step()
    trainer.train(30, verbose=False)
    assert torch.equal(trainer.current_params, once)


def test_assigned_values_and_schedulers_change_the_next_step(net):
    trainer = EGGROLLTrainer(net.parameters(), net, closeness, population_size=8, learning_rate=0.1, seed=0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer, 0.5)
    trainer.step()
    scheduler.step()
    assert trainer.learning_rate == pytest.approx(0.05)
    before = trainer.current_params
    trainer.learning_rate = 1e-12
    trainer.step()
    assert torch.allclose(trainer.current_params, before, atol=1e-9)
    trainer.population_size, trainer.sigma, trainer.rank = 12, 0.2, 2
    trainer.step()
    assert trainer.param_names == [name for name, _ in net.named_parameters()]
    assert trainer.is_matrix == [True, False, True, False]
    assert sum(trainer.param_dims) == len(before)


def test_without_rate_and_sigma_it_learns(net):
    trainer = EGGROLLTrainer(net.parameters(), model=net, fitness_fn=closeness, population_size=32, seed=0)
    start = closeness(net)
    trainer.train(40, verbose=False)
    assert closeness(net) > start / 4


def test_older_spellings_need_no_parameters(net):
    trainer = SimpleES(model=net, fitness_fn=closeness, population_size=4)
    trainer.train(1, verbose=False)


def test_what_is_missing_is_said(net):
    with pytest.raises(TypeError, match="VanillaESTrainer needs model"):
        VanillaESTrainer(net.parameters())
    with pytest.raises(ValueError, match="at least 2"):
        EGGROLLTrainer(net.parameters(), net, closeness, population_size=1)
    with pytest.raises(NotImplementedError, match="sample_perturbations"):
        ESTrainer(net.parameters(), net, closeness).step()
    from t2ialign_eggroll import ESTrainer as Ours

    with pytest.raises(TypeError, match=r"t2ialign_eggroll\.eggroll_trainer"):
        Ours(net.parameters(), closeness)


def names_on_the_porting_page():
    """{where: names} of the page's table for eggroll-trainer, and the names that it says are not here."""
    page = (Path(__file__).parents[2] / "docs" / "porting.md").read_text(encoding="utf-8")
    table = page.split("## From eggroll-trainer")[1].split("\n## ")[0]
    listed, absent = {}, set()
    for row in re.findall(r"^\| (`.*) \|$", table, re.MULTILINE):
        names, where, here = (cell.strip() for cell in row.split("|"))
        found = set(re.findall(r"`(\w+)", names))
        if here.startswith("not here"):
            absent |= found
        else:
            listed.setdefault(where, set()).update(found)
    return listed, absent


@pytest.mark.parametrize("kind", [ESTrainer, VanillaESTrainer, EGGROLLTrainer])
def test_the_porting_page_lists_every_name_and_every_listed_name_is_here(net, kind):
    listed, absent = names_on_the_porting_page()
    assert listed.keys() == {"", "all", "ESTrainer", "EGGROLL"}
    assert listed[""] == set(eggroll_trainer.__all__)
    own = "EGGROLL" if kind is EGGROLLTrainer else "ESTrainer"
    trainer = kind(net.parameters(), net, closeness, population_size=4, seed=0)
    here = {name for name in dir(trainer) if not name.startswith("_")} | set(inspect.signature(kind).parameters)
    of_torch = {name for name in dir(torch.optim.SGD(net.parameters(), lr=0.1)) if not name.startswith("_")}
    assert here - of_torch <= listed["all"] | listed[own]
    assert listed["all"] | listed[own] <= here
    assert not absent & here
