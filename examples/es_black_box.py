"""A network of hard switches: its outputs are 0 or 1, its gradient is zero everywhere, and it learns all the same.

    python examples/es_black_box.py

Two interleaved half-moons are told apart by units that are either on or off. The fitness is the number of points on
the right side. Back-propagation has nothing to work with here; an evolution strategy needs only the count.
"""

import torch
from torch import nn

from t2ialign_eggroll import EggrollTrainer


class Switch(nn.Module):
    """1 where the input is positive, else 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(x.dtype)


def moons(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(count, generator=generator)
    side = torch.randint(0, 2, (count,), generator=generator)
    flip = 1.0 - 2.0 * side
    points = torch.stack([torch.cos(angle) * flip + side, torch.sin(angle) * flip + 0.5 * side], 1)
    return points + 0.1 * torch.randn(points.shape, generator=generator), side


train_x, train_side = moons(256, seed=0)
test_x, test_side = moons(2048, seed=1)


def accuracy(model: nn.Module, x: torch.Tensor = train_x, side: torch.Tensor = train_side) -> torch.Tensor:
    return ((model(x)[:, 0] > 0) == side.bool()).float().mean()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 64), Switch(), nn.Linear(64, 32), Switch(), nn.Linear(32, 1))
print(f"test accuracy before {accuracy(model, test_x, test_side):.3f}")
trainer = EggrollTrainer(
    model,
    accuracy,
    population_size=128,
    sigma=0.1,
    rank=1,
    shaping="centred-rank",
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    batched=True,
)
trainer.train(150, callback=lambda line: line["generation"] % 50 == 0 and print(line["mean_fitness"]))
print(f"test accuracy after  {accuracy(model, test_x, test_side):.3f}")
