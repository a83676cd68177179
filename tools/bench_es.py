"""CPU time of one EGGROLL generation on small networks, beside bare inference and the set-weights-and-evaluate loop.

    OMP_NUM_THREADS=1 python tools/bench_es.py --models mlp cnn transformer

A population of 256 and one minibatch shared by all members: an MLP 784-256-10 with biases (minibatch 256), two
convolutions of 8 and 16 channels on 8 x 8 images (32), a transformer block of width 32 on 10 tokens (16); everything in
one process and one thread, best of several rounds, in turns:

    bare forwards   256 forwards of the network, nothing else
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


class Transformer(nn.Module):
    """A pre-norm block of width 32 with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 32)
        self.before, self.between = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 2, 16)).movedim(-3, 0).transpose(-2, -3)
        x = x + self.out((((q @ k.mT) / 4).softmax(-1) @ v).transpose(-2, -3).flatten(-2))
        x = x + self.down(nn.functional.gelu(self.up(self.between(x))))
        return self.head(x.mean(-2))


def make_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def make_transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer()


#: Network, and inputs of one minibatch.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (make_mlp, lambda: torch.randn(BATCH, 784)),
    "cnn": (make_cnn, lambda: torch.randn(32, 1, 8, 8)),
    "transformer": (make_transformer, lambda: torch.randint(0, 9, (16, 10))),
}


def measure(name: str, rounds: int) -> dict[str, float]:
    """CPU seconds of each form, the best of some rounds taken in turns."""
    make, inputs = MODELS[name]
    model, x = make(), inputs()
    labels = torch.randint(0, 10, (len(x),))

    def fitness(network: nn.Module) -> Tensor:
        return -nn.functional.cross_entropy(network(x), labels)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(POPULATION):
                model(x)

    def trainer(batched: bool) -> EggrollTrainer:
        return EggrollTrainer(make(), fitness, population_size=POPULATION, batched=batched)

    forms: dict[str, Callable[[], object]] = {
        "bare forwards": bare,
        "EGGROLL": trainer(batched=True).step,
        "one by one": trainer(batched=False).step,
    }
    if name == "mlp":
        forms["dense loop"] = lambda: dense_loop(model, fitness)
    seconds = dict.fromkeys(forms, math.inf)
    for _ in range(rounds):
        for form, run in forms.items():
            seconds[form] = min(seconds[form], cpu_seconds(run, 1))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = {name: measure(name, arguments.rounds) for name in arguments.models}
    if arguments.json:
        print(json.dumps(measured))
        return
    print(f"population {POPULATION}, one shared minibatch, one thread, torch {torch.__version__}")
    for name, seconds in measured.items():
        print(f"\n{name:16}{'CPU s':>8}{'/ bare':>9}")
        for form, value in seconds.items():
            print(f"{form:16}{value:8.3f}{value / seconds['bare forwards']:9.2f}")


if __name__ == "__main__":
    main()
