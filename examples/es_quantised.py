"""Weights that survive rounding: train the float weights for the accuracy of the 2-bit network.

    pip install t2ialign-eggroll scikit-learn
    python examples/es_quantised.py

A classifier is trained as usual, then every weight is rounded to -1, 0 or 1 times one scale per row. Rounding has no
useful gradient; the fitness simply is the loss of the rounded network, and the strategy moves the float weights.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

from t2ialign_eggroll import EggrollTrainer


class Ternary(nn.Linear):
    """A linear layer whose weight is rounded to {-1, 0, 1} x scale when ``rounding`` is on."""

    rounding = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if self.rounding:
            scale = 1.5 * weight.abs().mean(1, keepdim=True)
            weight = scale * (weight / scale).round().clamp(-1, 1)
        return F.linear(x, weight, self.bias)


digits = load_digits()
train_x, test_x, train_y, test_y = (
    torch.as_tensor(part)
    for part in train_test_split(
        digits.data.astype("float32") / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
)


def fitness(model: nn.Module) -> torch.Tensor:
    rows = torch.randint(0, len(train_x), (256,))
    return -F.cross_entropy(model(train_x[rows]), train_y[rows])


@torch.no_grad()
def test_accuracy(model: nn.Module) -> float:
    return (model(test_x).argmax(1) == test_y).float().mean().item()


torch.manual_seed(0)
model = nn.Sequential(Ternary(64, 64), nn.ReLU(), Ternary(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(300):
    optimizer.zero_grad()
    (-fitness(model)).backward()
    optimizer.step()
print(f"float weights                 {test_accuracy(model):.3f}")

Ternary.rounding = True
print(f"rounded to three values       {test_accuracy(model):.3f}")
EggrollTrainer(
    model,
    fitness,
    population_size=128,
    sigma=0.05,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.005),
    batched=True,
).train(100)
print(f"rounded, after evolution      {test_accuracy(model):.3f}")
