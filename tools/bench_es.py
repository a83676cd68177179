"""CPU time of one EGGROLL generation on a small MLP, beside bare inference and the set-weights-and-evaluate loop.

    OMP_NUM_THREADS=1 python tools/bench_es.py

An MLP 784-256-10 with biases, a population of 256 and one minibatch of 256 shared by all members; everything in one
process and one thread, best of several rounds:

    bare forwards   256 forwards of the MLP, nothing else
    EGGROLL         one generation of EggrollTrainer: noise, batched evaluation, shaping, update
    one by one      the same trainer as a black box: weights set, model called, member by member
    dense loop      the form of the first PyTorch ports: a population-by-parameters matrix of low-rank noise, weights
                    set member by member, and the update as a product with that matrix
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from t2ialign_eggroll import EggrollTrainer

POPULATION, BATCH, SIGMA = 256, 256, 0.05


def make_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


@torch.no_grad()
def dense_loop(model: nn.Module, fitness: Callable[[nn.Module], Tensor]) -> None:
    """One generation with every perturbation stored in full."""
    parameters = list(model.parameters())
    theta = nn.utils.parameters_to_vector(parameters)
    half = []
    for p in parameters:
        if p.ndim == 2:
            e = torch.randn(POPULATION // 2, len(p), 1) @ torch.randn(POPULATION // 2, p.shape[1], 1).mT
        else:
            e = torch.randn(POPULATION // 2, *p.shape)
        half.append(e.flatten(1))
    noise = torch.cat(half, 1)
    noise = torch.cat([noise, -noise])
    scores = []
    for member in range(POPULATION):
        nn.utils.vector_to_parameters(theta + SIGMA * noise[member], parameters)
        scores.append(fitness(model))
    s = torch.stack(scores)
    shaped = (s - s.mean()) / (s.std() + 1e-8)
    nn.utils.vector_to_parameters(theta + SIGMA * math.sqrt(POPULATION) * (shaped @ noise) / POPULATION, parameters)


def cpu_seconds(run: Callable[[], object], rounds: int) -> float:
    """Best process CPU time of one call, after a warm-up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    model = make_mlp()
    x, labels = torch.randn(BATCH, 784), torch.randint(0, 10, (BATCH,))

    def fitness(network: nn.Module) -> Tensor:
        return -nn.functional.cross_entropy(network(x), labels)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(POPULATION):
                model(x)

    def trainer(batched: bool) -> EggrollTrainer:
        return EggrollTrainer(
            make_mlp(), fitness, population_size=POPULATION, sigma=SIGMA, learning_rate=0.1, batched=batched
        )

    seconds = {
        "bare forwards": cpu_seconds(bare, arguments.rounds),
        "EGGROLL": cpu_seconds(trainer(batched=True).step, arguments.rounds),
        "one by one": cpu_seconds(trainer(batched=False).step, arguments.rounds),
        "dense loop": cpu_seconds(lambda: dense_loop(model, fitness), arguments.rounds),
    }
    if arguments.json:
        print(json.dumps(seconds))
        return
    print(f"MLP 784-256-10, population {POPULATION}, shared batch {BATCH}, one thread, torch {torch.__version__}")
    print(f"{'':16}{'CPU s':>8}{'/ bare':>9}{'/ dense loop':>14}")
    for name, value in seconds.items():
        print(f"{name:16}{value:8.3f}{value / seconds['bare forwards']:9.2f}{value / seconds['dense loop']:14.2f}")


if __name__ == "__main__":
    main()
