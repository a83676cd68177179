"""EvoSearch and zero-order search against numbers of the published codes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from t2ialign import Denoiser, Prediction
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import DiffusionPath
from t2ialign_reno.engine import Engine, Method
from t2ialign_reno.searches import Item, Search
from t2ialign_search import evolution
from t2ialign_search.config import EvoConfig
from t2ialign_search.evolution import (
    Archive,
    Evolution,
    best_first,
    evolve,
    mutated_latents,
    mutated_noise,
    offspring,
    winners,
)
from t2ialign_search.walk import Walk, pick
from t2ialign_search.zero_order import neighbours, next_pivots
from t2ialign_solvers.config import DdimConfig
from t2ialign_solvers.ddim import Ddim

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "rl_evosearch.safetensors")
SCHEDULE = GOLDEN["hp/evolution_schedule"].tolist()
SIZES = GOLDEN["hp/population_schedule"].tolist()
STEPS, ELITES = int(GOLDEN["hp/num_steps"]), int(GOLDEN["hp/elite_size"])
RATE, SHARE = GOLDEN["hp/mutation_rate"].item(), GOLDEN["hp/tournament_frac"].item()


def close(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


def options(reentry):
    return Evolution(SCHEDULE, SIZES, ELITES, RATE, SHARE, reentry)


class Table(DiffusionPath):
    """The golden schedule: time s is step s, and T the end."""

    def __init__(self):
        self.abar = torch.cat([GOLDEN["run/abar"], GOLDEN["run/abar_prev"][-1:]])

    def times(self, steps):
        return torch.arange(steps + 1, dtype=torch.float32)

    def time(self, v):
        raise NotImplementedError

    def alpha(self, t):
        return self.abar[t.long()].sqrt()

    def sigma(self, t):
        return (1 - self.abar[t.long()]).sqrt()

    def prior(self, noise, t=None):
        return noise


class Tanh(Denoiser):
    """e(z) = tanh(M z)."""

    def predict(self, x, t):
        eps = torch.tanh(x.flatten(1) @ GOLDEN["run/M"].T).view_as(x)
        alpha, sigma = self.path.coefficients(t.view(-1, *(1,) * (x.ndim - 1)))
        return Prediction((x - sigma * eps) / alpha, eps)

    def rows(self, index):
        return Tanh(self.path, self.conditioning[index])


class Recorded:
    """The golden file's draws; what populations and roll-outs were is kept to be looked at."""

    def initial(self, count):
        return GOLDEN["run/x_T"][None]

    def step(self, phase, generation, i, count):
        name, first = {
            "before": (f"noise_pre_{i}", i),
            "roll": (f"noise_roll_{generation}", SCHEDULE[generation]),
            "main": (f"noise_main_{generation}", SCHEDULE[generation]),
        }[phase]
        tensor = GOLDEN[f"run/{name}"]
        return (tensor if phase == "before" else tensor[i - first])[None]

    def tournaments(self, generation, members, drawn, count):
        found = GOLDEN[f"run/cand_{generation}"]
        assert found.shape == (count, drawn)
        return found[None]

    def mutation(self, generation, count):
        return GOLDEN[f"run/mut_{generation}"][None]


class Watched(Walk):
    """Keeps the inputs of every step, and what was scored."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.inputs, self.scored = [], []

    def step(self, x, i, noise):
        self.inputs.append((i, x[0]))
        return super().step(x, i, noise)

    def score(self, x0):
        found = super().score(x0)
        self.scored.append(found.total[0])
        return found


def score(images, prompts, optimised_only):
    flat = images.flatten(1)
    return {"toy": flat @ GOLDEN["run/a"] / flat.shape[1] ** 0.5 - 0.05 * flat.square().mean(1)}


@pytest.fixture
def walk():
    problem = SimpleNamespace(
        sampler=Ddim(DdimConfig(steps=STEPS, eta=GOLDEN["hp/eta"].item())),
        backend=SimpleNamespace(denoiser=lambda rows: Tanh(Table(), rows), decode=lambda x: x),
        rewards=SimpleNamespace(score=score, combine=lambda raw: raw["toy"]),
        retrying=lambda run: run(7),
        device=torch.device("cpu"),
    )
    return Watched(problem, Conditioning(("-",), {}))


def test_noise_of_the_steps(walk):
    close(walk.std, GOLDEN["run/sigma"])
    for i in range(STEPS):
        a, b = walk.renoising(i)
        rho = GOLDEN["run/abar"][i] / GOLDEN["run/abar_prev"][i]
        close(a, rho.sqrt())
        close(b, (1 - rho).sqrt())


def test_operators():
    fitness, population, noise = GOLDEN["op/fitness"][None], GOLDEN["op/population"][None], GOLDEN["op/mut_noise"]
    elites = best_first(fitness)[:, : len(GOLDEN["op/elite_idx"])]
    assert torch.equal(elites[0], GOLDEN["op/elite_idx"])
    assert best_first(fitness)[0, 0] == GOLDEN["op/best_idx"]
    parents = winners(fitness, GOLDEN["op/cand"][None])
    assert torch.equal(parents[0], GOLDEN["op/parent_idx"])
    assert torch.equal(pick(population, parents)[0], GOLDEN["op/parents"])
    kept = pick(population, elites)[0]
    at_noise = mutated_noise(GOLDEN["op/parents"], noise, RATE)
    on_the_way = mutated_latents(GOLDEN["op/parents"], noise, GOLDEN["hp/sigma_t"].item())
    close(at_noise, GOLDEN["op/children_xT"])
    close(on_the_way, GOLDEN["op/children_xt"])
    close(torch.cat([kept, at_noise]), GOLDEN["op/next_xT"])
    close(torch.cat([kept, on_the_way]), GOLDEN["op/next_xt"])
    assert len(kept) + len(at_noise) == GOLDEN["hp/pop_next"]


def test_a_whole_search_in_the_published_form(walk, monkeypatch):
    selected = []

    class Seen(Archive):
        """Keeps what a generation selects from."""

        @property
        def outputs(self):
            selected.append(super().outputs[0])
            return super().outputs

    monkeypatch.setattr(evolution, "Archive", Seen)
    best = evolve(walk, Recorded(), options("post"))
    for k in range(len(SCHEDULE)):
        assert any(x.shape == GOLDEN[f"run/archive_{k}"].shape for x in selected)
        close(next(x for x in selected if len(x) == len(GOLDEN[f"run/archive_{k}"])), GOLDEN[f"run/archive_{k}"])
    assert len(GOLDEN["run/timesteps"]) == STEPS
    assert walk.evaluations == GOLDEN["run/nfe"]
    close(best.fitness[0], GOLDEN["run/best_fit"])
    close(best.latents[0], GOLDEN["run/best_image"])
    close(walk.scored[-1], GOLDEN["run/final_fit"])
    position = SCHEDULE[0]
    for k, s in enumerate(SCHEDULE):
        rolled = torch.stack([x for _, x in walk.inputs[position : position + STEPS - s]])
        close(rolled, GOLDEN[f"run/in_{k}"])
        close(torch.cat(walk.scored[: k + 1]), GOLDEN[f"run/archive_fit_{k}"])
        position += STEPS - s
        i, population = walk.inputs[position]
        assert i == s
        close(population, GOLDEN[f"run/pop_{k + 1}"])
        position += ([*SCHEDULE[1:], STEPS])[k] - s
    assert position == len(walk.inputs)


@pytest.mark.parametrize("reentry", ["input", "renoise"])
def test_the_forms_that_come_back_at_the_right_level(walk, reentry):
    last = len(SCHEDULE) - 1
    archive = Archive()
    archive.add(GOLDEN["alt/archive_in"][None], GOLDEN[f"run/archive_{last}"][None])
    found = offspring(walk, Recorded(), archive, GOLDEN[f"run/archive_fit_{last}"][None], options(reentry), last)
    close(found[0], GOLDEN[f"alt/next_{reentry}"])


def test_the_cost_is_known_before():
    config = EvoConfig(evolution_schedule=SCHEDULE, population_size_schedule=SIZES, elite_size=ELITES)
    sampler = SimpleNamespace(provides=lambda: {"stochastic"})
    spec = SimpleNamespace(sampler=sampler, sampler_config=SimpleNamespace(evaluations=lambda: STEPS))
    assert config.cost(spec) == GOLDEN["run/nfe"]


def zero_order_round(r):
    candidates, scores = GOLDEN["zo/candidates"][r], GOLDEN["zo/scores"][r]
    top = 1 + int(scores[1:].argmax())
    return candidates[:1], scores[:1], candidates[top][None], scores[top][None]


def test_neighbours():
    assert torch.equal(GOLDEN["zo/candidates"][0][:1].view_as(GOLDEN["zo/pivot_0"]), GOLDEN["zo/pivot_0"])
    assert GOLDEN["zo/v"].shape[:2] == (int(GOLDEN["hp/zo_rounds"]), int(GOLDEN["hp/zo_neighbors"]))
    cosine = GOLDEN["hp/zo_threshold"].item()
    for candidates, directions in zip(GOLDEN["zo/candidates"], GOLDEN["zo/v"], strict=True):
        pivots = candidates[:1].expand(len(directions), *candidates.shape[1:])
        found = neighbours(pivots, directions.view(pivots.shape), cosine)
        close(found, candidates[1:], 1e-5)
        close(found.flatten(1).norm(dim=1), pivots.flatten(1).norm(dim=1), 1e-6)


@pytest.mark.parametrize("rule", ["upstream", "paper", "keep"])
def test_pivots(rule):
    for r, improved in enumerate(GOLDEN["zo/improved"].tolist()):
        pivots, _, known = next_pivots(rule, *zero_order_round(r), GOLDEN["zo/fresh"][r][None])
        close(pivots[0], GOLDEN[f"zo/next_{rule}"][r])
        assert bool(known) == (bool(improved) or rule != "upstream")
        if rule == "upstream" and r + 1 < len(GOLDEN["zo/candidates"]):
            close(pivots[0], GOLDEN["zo/candidates"][r + 1][0])


class Listed(Method):
    """Images whose scores are known beforehand."""

    def __init__(self, scores):
        self.scores = scores

    def begin(self, searches):
        return {}

    def evaluate(self, point, conditioning, searches, iterations, move):
        return {"total": self.scores[list(iterations)]}, torch.zeros(len(searches), 3, 1, 1)

    def update(self, point, values, improved):
        return point, {}

    def best(self, point, row, search, iteration):
        return iteration, None


def engine(scores, iterations):
    problem = SimpleNamespace(spec=SimpleNamespace(run=SimpleNamespace(steps=0)), retrying=lambda run: run(4))
    searches = [Search(Item("-", 0, 0), 0, 0)]
    return Engine(problem, Listed(scores), Conditioning(("-",), {}), searches, 1, iterations=iterations)


def test_the_engine_carries_the_best_of_all_over():
    """Rounds of 2, 4, 8 ... new noises: the best of each round, and the best so far."""
    scores, end = GOLDEN["rs/scores"], 0
    for r in range(int(GOLDEN["hp/rs_rounds"])):
        begin, end = end, end + 2 ** (r + 1)
        (found,) = engine(scores, end).run()
        assert found.iteration == GOLDEN["rs/best_so_far"][r]
        (alone,) = engine(scores[begin:end], end - begin).run()
        assert alone.iteration == GOLDEN["rs/best_in_round"][r]


def test_zero_order_keeps_the_best_of_all_rounds():
    flat = GOLDEN["zo/scores"].flatten()
    (found,) = engine(flat, len(flat)).run()
    close(torch.tensor(found.reward), GOLDEN["zo/best_score"])
    close(GOLDEN["zo/candidates"].flatten(0, 1)[found.iteration], GOLDEN["zo/best_overall"])
    verifier = GOLDEN["zo/verifier"]
    scores = torch.tanh(GOLDEN["zo/candidates"].flatten(2)) @ verifier / len(verifier) ** 0.5
    close(scores, GOLDEN["zo/scores"])
