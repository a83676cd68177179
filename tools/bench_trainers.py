"""Trainers at their defaults on four small tasks, beside tuned ones, evotorch and SGD, at equal evaluations.

    OMP_NUM_THREADS=1 python tools/bench_trainers.py --seeds 3
    python tools/bench_trainers.py --tasks digits --rules eggroll pgpe --seeds 1
    python tools/bench_trainers.py --tasks cartpole --tune --seeds 8    the same and other step sizes; default / best of
                                                                them; its seeds differ by .2, so three tell nothing
    python tools/bench_trainers.py --json runs.jsonl            goes on where it was stopped

All rules see the same fitness: one number per member, one minibatch (or one set of starts) per generation; what is
measured is the centre after the last generation:

    digits    64-64-10 MLP on scikit-learn's digits, minibatches of 64, 64 x 300 evaluations; test accuracy
    cartpole  4-16-2 policy, mean return of 4 episodes of at most 300 steps that start up to a metre off, at up to 1 m/s
              and 6 degrees, so that many are nearly lost, 64 x 12 evaluations; mean return of 200 episodes / 300
    cnn       two convolutions and a linear layer on digits, minibatches of 32, 64 x 200; test accuracy
    copy      a transformer block that copies 5 of 8 symbols, minibatches of 16, 64 x 250; share of right symbols

"eggroll-trainer" follows that package's equations and defaults (population 256), its members' perturbations adding up
and its one random stream for all parameters included; "eggroll-trainer, repaired" has the same numbers on our class of
that interface: members around the centre, noise of their own.
evotorch (not needed by anything else here) takes part where it can be imported: PGPE with ClipUp and SNES, with the
radius of 4.5 and the speed radius / 15 of its examples, all members in one vmap; its centre lacks the last update.
SGD back-propagates the same loss and gets as many forwards, a backward counted as two.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign_eggroll import CMAESTrainer, EggrollTrainer, OpenESTrainer, PGPETrainer, SNESTrainer
from t2ialign_eggroll.eggroll_trainer import EGGROLLTrainer
from t2ialign_eggroll.trainers.covariance import MOST
from t2ialign_eggroll.trainers.defaults import SIGMA

POPULATION = 64
#: eggroll-trainer's default.
THEIRS = 256
#: Factors of the default step that ``--tune`` tries.
GRID = [0.25, 0.5, 2.0, 4.0]


@dataclass
class Task:
    """A task; ``fitness`` draws its minibatch from torch's global generator."""

    model: Callable[[], nn.Module]
    fitness: Callable[[nn.Module], Tensor]
    quality: Callable[[nn.Module], float]
    generations: int
    batched: bool = True
    gradient: bool = True


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    x, held, y, held_y = train_test_split(
        data.data.astype("float32") / 16, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    return torch.tensor(x), torch.tensor(y), torch.tensor(held), torch.tensor(held_y)


def classification(model: Callable[[], nn.Module], shape: tuple[int, ...], batch: int, generations: int) -> Task:
    x, y, held, held_y = digits()
    x, held = x.view(-1, *shape), held.view(-1, *shape)

    def fitness(net: nn.Module) -> Tensor:
        rows = torch.randint(0, len(x), (batch,))
        return -F.cross_entropy(net(x[rows]), y[rows])

    return Task(model, fitness, lambda net: (net(held).argmax(1) == held_y).float().mean().item(), generations)


#: Steps of an episode.
LIMIT = 300
#: Largest position (m), speed (m/s), angle and its speed (1/s) at the start of an episode.
STARTS = (1.0, 1.0, math.radians(6), 1.0)


def cartpole_return(net: nn.Module, episodes: int, limit: int = LIMIT) -> Tensor:
    """Mean steps until a pole on a cart falls or the cart leaves its track; the policy pushes left or right."""
    position, speed, angle, spin = (torch.rand(4, episodes) * 2 - 1) * torch.tensor(STARTS)[:, None]
    alive, steps = torch.ones(episodes, dtype=torch.bool), torch.zeros(episodes)
    # To the end, though all may have fallen: the whole population goes through it at once.
    for _ in range(limit):
        force = 20.0 * net(torch.stack([position, speed, angle, spin], 1)).argmax(1) - 10.0
        push = (force + 0.05 * spin.square() * angle.sin()) / 1.1
        turn = (9.8 * angle.sin() - angle.cos() * push) / (0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1))
        pull = push - 0.05 * turn * angle.cos() / 1.1
        position, speed = position + 0.02 * speed, speed + 0.02 * pull
        angle, spin = angle + 0.02 * spin, spin + 0.02 * turn
        steps = steps + alive
        alive = alive & (position.abs() <= 2.4) & (angle.abs() <= math.radians(12))
    return steps.mean()


class Copier(nn.Module):
    """One pre-norm transformer block that is shown 5 symbols and 5 blanks, and fills in the blanks."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Parameter(0.5 * torch.randn(9, 32))
        self.places = nn.Parameter(0.5 * torch.randn(10, 32))
        self.before, self.between, self.last = nn.LayerNorm(32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.one_hot(tokens, 9).to(self.symbols.dtype) @ self.symbols + self.places
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 2, 16)).movedim(-3, 0).transpose(-2, -3)
        attention = ((q @ k.mT) / 4).softmax(-1)
        x = x + self.out((attention @ v).transpose(-2, -3).flatten(-2))
        x = x + self.down(F.gelu(self.up(self.between(x))))
        return self.head(self.last(x[..., 5:, :]))


def copying() -> Task:
    def batch(count: int) -> Tensor:
        symbols = torch.randint(0, 8, (count, 5))
        return torch.cat([symbols, torch.full((count, 5), 8)], 1)

    def fitness(net: nn.Module) -> Tensor:
        tokens = batch(16)
        return -F.cross_entropy(net(tokens).flatten(0, -2), tokens[:, :5].flatten())

    torch.manual_seed(99)
    held = batch(500)
    return Task(Copier, fitness, lambda net: (net(held).argmax(-1) == held[:, :5]).float().mean().item(), 250)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def policy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: classification(mlp, (64,), 64, 300),
    "cartpole": lambda: Task(
        policy,
        lambda net: cartpole_return(net, 4),
        lambda net: cartpole_return(net, 200).item() / LIMIT,
        12,
        gradient=False,
    ),
    "cnn": lambda: classification(cnn, (1, 8, 8), 32, 200),
    "copy": copying,
}


@dataclass(frozen=True)
class Ours:
    """A trainer of ours at its defaults but for some options, and a factor of its step."""

    kind: type
    options: dict[str, object] = field(default_factory=dict)
    factor: float = 1.0

    def __call__(self, task: Task, model: nn.Module, seed: int) -> None:
        options = {"population_size": POPULATION, "batched": task.batched, "seed": seed} | self.options
        trainer = self.kind(model, task.fitness, **options)
        trainer.optimizer.param_groups[0]["lr"] *= self.factor
        trainer.train(task.generations)

    def at(self, factor: float) -> Ours:
        """With steps of another size; CMA-ES has none, but the width that it begins with."""
        if self.kind is CMAESTrainer:
            return Ours(self.kind, self.options | {"sigma": SIGMA * factor})
        return Ours(self.kind, self.options, factor)


def ours(kind: type, **options: object) -> Ours:
    return Ours(kind, options)


def repaired(task: Task, model: nn.Module, seed: int) -> None:
    trainer = EGGROLLTrainer(
        model.parameters(), model, task.fitness, population_size=THEIRS, learning_rate=0.01, sigma=0.1, seed=seed
    )
    trainer.train(task.generations * POPULATION // THEIRS, verbose=False)


@torch.no_grad()
def as_published(task: Task, model: nn.Module, seed: int, lr: float = 0.01, sigma: float = 0.1) -> None:
    """eggroll-trainer: W <- W + lr sqrt(N) mean_i f_i sigma E_i, E = a b^T of a matrix, Gaussian of anything else.

    Member i is scored at W + sigma (E_1 + ... + E_i), and all parameters of a member begin the same random stream, that
    of its generation and number.
    """
    parameters = list(model.parameters())

    def noise(generation: int, member: int) -> list[Tensor]:
        found = []
        for p in parameters:
            stream = torch.Generator().manual_seed((generation * 1_000_000 + member) % 2**31)
            if p.ndim == 2:
                rows, columns = p.shape
                drawn = torch.randn(rows + columns, generator=stream)
                found.append(torch.outer(drawn[columns:], drawn[:columns]))
            else:
                found.append(torch.randn(p.shape, generator=stream))
        return found

    for generation in range(task.generations * POPULATION // THEIRS):
        centre, scores = [p.clone() for p in parameters], torch.empty(THEIRS)
        for member in range(THEIRS):
            for p, e in zip(parameters, noise(generation, member), strict=True):
                p.add_(e, alpha=sigma)
            torch.manual_seed(seed * 100_003 + generation)
            scores[member] = task.fitness(model)
        fitness = (scores - scores.mean()) / (scores.std() + 1e-8)
        for p, start in zip(parameters, centre, strict=True):
            p.copy_(start)
        for member, f in enumerate(fitness.tolist()):
            for p, e in zip(parameters, noise(generation, member), strict=True):
                p.add_(e, alpha=lr * sigma * f / math.sqrt(THEIRS))


def evotorch_rule(name: str, radius: float = 4.5) -> Callable[[Task, nn.Module, int], None]:
    def run(task: Task, model: nn.Module, seed: int) -> None:
        from evotorch import Problem
        from evotorch.algorithms import PGPE, SNES

        names, parameters = zip(*model.named_parameters(), strict=True)
        start = nn.utils.parameters_to_vector(parameters).detach().clone()
        generation = 0

        def member(values: Tensor) -> Tensor:
            parts = values.split([p.numel() for p in parameters])
            own = {name: part.view_as(p) for name, p, part in zip(names, parameters, parts, strict=True)}
            return task.fitness(lambda x: torch.func.functional_call(model, own, (x,)))

        class Members(Problem):
            def _evaluate_batch(self, solutions: object) -> None:
                nonlocal generation
                generation += 1
                torch.manual_seed(seed * 100_003 + generation)
                solutions.set_evals(torch.vmap(member, randomness="same")(solutions.values))

        problem = Members("max", solution_length=len(start), initial_bounds=(-1, 1), seed=seed)
        speed = radius / 15
        if name == "pgpe":
            searcher = PGPE(
                problem,
                popsize=POPULATION,
                center_learning_rate=speed / 2,
                stdev_learning_rate=0.1,
                radius_init=radius,
                center_init=start,
                optimizer="clipup",
                optimizer_config={"max_speed": speed},
            )
        else:
            searcher = SNES(problem, popsize=POPULATION, radius_init=radius, center_init=start)
        with torch.no_grad():
            searcher.run(task.generations)
        nn.utils.vector_to_parameters(searcher.status["center"].clone(), parameters)

    return run


def sgd(task: Task, model: nn.Module, seed: int) -> None:
    steps = POPULATION * task.generations // 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        (-task.fitness(model)).backward()
        optimizer.step()


RULES: dict[str, Callable[[Task, nn.Module, int], None]] = {
    "eggroll": ours(EggrollTrainer),
    "open-es": ours(OpenESTrainer),
    "pgpe": ours(PGPETrainer),
    "snes": ours(SNESTrainer),
    "cma-es": ours(CMAESTrainer),
    "eggroll adam": ours(EggrollTrainer, optimizer="adam"),
    "eggroll momentum": ours(EggrollTrainer, optimizer="momentum"),
    "eggroll sigma 0.2": ours(EggrollTrainer, sigma=0.2),
    "eggroll sigma 1": ours(EggrollTrainer, sigma=1.0),
    "eggroll-trainer": as_published,
    "eggroll-trainer, repaired": repaired,
    "evotorch pgpe": evotorch_rule("pgpe"),
    "evotorch snes": evotorch_rule("snes"),
    "sgd": sgd,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tune", action="store_true", help="our rules at other step sizes too, and default / best")
    parser.add_argument("--factors", type=float, nargs="+", default=GRID, help="of the default step, for --tune")
    parser.add_argument("--json", help="append one JSON object per run to this file; runs that it has are not repeated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    ratios: dict[tuple[str, str], str] = {}
    for name in options.tasks:
        task = TASKS[name]()
        for rule in options.rules:
            if not takes_part(rule, task):
                continue
            run = RULES[rule]
            found[rule, name] = [measured(run, task, name, rule, seed, options.json) for seed in range(options.seeds)]
            if options.tune and isinstance(run, Ours):
                means = {1.0: mean_quality(found[rule, name])}
                for factor in options.factors:
                    label, other = f"{rule} at {factor:g}", run.at(factor)
                    runs = [measured(other, task, name, label, seed, options.json) for seed in range(options.seeds)]
                    means[factor] = mean_quality(runs)
                best = max(means, key=means.__getitem__)
                ratios[rule, name] = f"{means[1.0] / means[best]:.2f} ({means[best]:.3f} at {best:g})"
    print_table("rule", options.rules, options.tasks, {key: cell(runs) for key, runs in found.items()})
    if ratios:
        print_table("default / best step", options.rules, options.tasks, ratios)


def takes_part(rule: str, task: Task) -> bool:
    if rule.startswith("evotorch"):
        return importlib.util.find_spec("evotorch") is not None
    if rule == "cma-es":
        return sum(p.numel() for p in task.model().parameters()) <= MOST
    return rule != "sgd" or task.gradient


def measured(
    run: Callable[[Task, nn.Module, int], None], task: Task, name: str, rule: str, seed: int, file: str | None
) -> tuple[float, float]:
    """Quality and CPU seconds of one training."""
    key = {"task": name, "rule": rule, "seed": seed}
    lines = Path(file).read_text(encoding="utf-8").splitlines() if file and Path(file).exists() else []
    for line in map(json.loads, lines):
        if key.items() <= line.items():
            return line["quality"], line["cpu_seconds"]
    torch.manual_seed(seed)
    model = task.model()
    start = time.process_time()
    run(task, model, seed)
    seconds = time.process_time() - start
    torch.manual_seed(1000)
    with torch.no_grad():
        quality = task.quality(model.eval())
    if file:
        line = key | {"quality": quality, "cpu_seconds": seconds}
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    print(f"{name:10}{rule:24}seed {seed}  {quality:.3f}  {seconds:6.1f} CPU s", flush=True)
    return quality, seconds


def mean_quality(runs: list[tuple[float, float]]) -> float:
    return sum(quality for quality, _ in runs) / len(runs)


def print_table(head: str, rules: list[str], tasks: list[str], cells: dict[tuple[str, str], str]) -> None:
    print(f"\n| {head} | " + " | ".join(tasks) + " |\n|---|" + "---|" * len(tasks))
    for rule in rules:
        if any((rule, name) in cells for name in tasks):
            print(f"| {rule} | " + " | ".join(cells.get((rule, name), "") for name in tasks) + " |")


def cell(runs: list[tuple[float, float]]) -> str:
    """Mean quality with its standard error over seeds, and mean CPU seconds."""
    qualities = [quality for quality, _ in runs]
    error = f" ± {stdev(qualities) / math.sqrt(len(runs)):.3f}" if len(runs) > 1 else ""
    return f"{mean_quality(runs):.3f}{error}, {sum(seconds for _, seconds in runs) / len(runs):.0f} s"


if __name__ == "__main__":
    main()
